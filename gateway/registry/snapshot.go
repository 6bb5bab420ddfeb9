package registry

import (
	"iter"
	"net/netip"

	"dstack.host/tunnel"
)

// Snapshot is the registry at one revision of the store. It never changes, and everything it returns is shared: read
// it, keep it as long as you like, never write to it. The zero value is an empty registry that is not loaded.
type Snapshot struct {
	revision int64
	loaded   bool

	instances  table[InstanceID, *Instance]
	apps       table[AppID, []*Instance] // by instance id, ascending
	composes   table[ComposeHash, []*Instance]
	keys       table[tunnel.PublicKey, *Instance]
	addrs      table[netip.Addr, *Instance]
	challenges map[string][]string
}

// NewSnapshot returns a loaded snapshot of these instances, whose ids differ, and TXT records (fully qualified name in
// lower case without trailing dot, to values). It is how tests make one; the registry makes its own.
func NewSnapshot(revision int64, instances []Instance, challenges map[string][]string) *Snapshot {
	e := new(Snapshot).edit(revision)
	list := make([]*Instance, 0, len(instances))
	for _, inst := range instances {
		list = append(list, &inst)
	}
	e.putAll(list)
	for name, values := range challenges {
		for _, v := range values {
			e.putChallenge(name, v)
		}
	}
	return e.done()
}

// Loaded reports whether the snapshot shows a state of the store. Before, it is empty because nothing is known yet.
func (s *Snapshot) Loaded() bool { return s.loaded }

// Revision is the revision of the store that the snapshot shows.
func (s *Snapshot) Revision() int64 { return s.revision }

// Len is the number of instances.
func (s *Snapshot) Len() int { return s.instances.size }

// Instance returns the instance with this id, or nil.
func (s *Snapshot) Instance(id InstanceID) *Instance {
	inst, _ := s.instances.get(id)
	return inst
}

// App returns the instances of an app in ascending order of their ids.
func (s *Snapshot) App(id AppID) []*Instance {
	list, _ := s.apps.get(id)
	return list
}

// Compose returns the instances that run exactly this code, in ascending order of their ids.
func (s *Snapshot) Compose(hash ComposeHash) []*Instance {
	list, _ := s.composes.get(hash)
	return list
}

// ByKey returns the instance with this WireGuard key, or nil.
func (s *Snapshot) ByKey(key tunnel.PublicKey) *Instance {
	inst, _ := s.keys.get(key)
	return inst
}

// ByAddr returns the instance with this address in the tunnel, or nil.
func (s *Snapshot) ByAddr(addr netip.Addr) *Instance {
	inst, _ := s.addrs.get(addr)
	return inst
}

// Instances yields all instances in no particular order.
func (s *Snapshot) Instances() iter.Seq[*Instance] {
	return func(yield func(*Instance) bool) {
		for _, inst := range s.instances.all() {
			if !yield(inst) {
				return
			}
		}
	}
}

// Apps yields all apps with their instances, in no particular order.
func (s *Snapshot) Apps() iter.Seq2[AppID, []*Instance] { return s.apps.all() }

// Challenges returns the TXT records that prove control of names (RFC 8555 section 8.4): fully qualified name in
// lower case without trailing dot, to its values in ascending order.
func (s *Snapshot) Challenges() map[string][]string { return s.challenges }

// Labels yields the canonical labels of everything that is registered: app ids, instance ids and compose hashes. A
// label may come twice.
func (s *Snapshot) Labels() iter.Seq[string] {
	return func(yield func(string) bool) {
		for id := range s.apps.all() {
			if !yield(id.String()) {
				return
			}
		}
		for id := range s.instances.all() {
			if !yield(id.String()) {
				return
			}
		}
		for hash := range s.composes.all() {
			if !yield(hash.String()) {
				return
			}
		}
	}
}

// Resolve returns the instances that a name reaches: the instance with that id, else those of the app with that id;
// for a compose hash those that run that code. It is empty for a name that nobody registered. Whether the instances
// are alive, and whether they allow the port, is the caller's question.
func (s *Snapshot) Resolve(n Name) []*Instance {
	switch n.Kind {
	case KindCompose:
		hash, err := ParseComposeHash(n.ID)
		if err != nil {
			return nil
		}
		return s.Compose(hash)
	case KindID:
		id, err := parseHex(n.ID)
		if err != nil {
			return nil
		}
		if inst := s.Instance(InstanceID(id)); inst != nil {
			return []*Instance{inst}
		}
		return s.App(AppID(id))
	}
	return nil
}
