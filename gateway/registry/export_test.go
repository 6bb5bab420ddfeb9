package registry

import "net/netip"

var (
	Encode          = encode
	DecodeChallenge = decodeChallenge
	DecodeOwner     = decodeOwner
)

// Decode reads a record.
func Decode(data []byte) (*Instance, error) { return decode(data) }

// With returns the snapshot after a change of some instances.
func (s *Snapshot) With(revision int64, put []*Instance, remove ...InstanceID) *Snapshot {
	e := s.edit(revision)
	for _, id := range remove {
		e.remove(id)
	}
	e.putAll(put)
	return e.done()
}

// Where things are in the store, for tests that break them.

func (r *Registry) InstancePath(id InstanceID) string { return r.instancePath(id) }
func (r *Registry) KeyPath(inst Instance) string      { return r.keyPath(inst.Key) }
func (r *Registry) AddrPath(a netip.Addr) string      { return r.addrPath(a) }
func (r *Registry) ChallengePath(name, value string) string {
	return r.challengePath(challengeRecord{Name: name, Value: value})
}

// Reserved is the number of addresses that are given out and not confirmed.
func (r *Registry) Reserved() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.reserved)
}
