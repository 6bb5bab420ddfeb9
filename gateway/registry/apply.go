package registry

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"dstack.host/gateway/store"
	"dstack.host/tunnel"
)

// Where things are in the store. What makes the snapshot is below one prefix; the indices, which only transactions
// look at, are not.
const (
	watched       = "registry/"
	instancesDir  = watched + "instances/"
	challengesDir = watched + "challenges/"
	keysDir       = "index/keys/"
	addrsDir      = "index/addresses/"
)

func (r *Registry) instancePath(id InstanceID) string {
	return instancesDir + r.store.Blind("instance", id[:])
}

func (r *Registry) keyPath(key tunnel.PublicKey) string {
	return keysDir + r.store.Blind("key", key[:])
}

func (r *Registry) challengePath(c challengeRecord) string {
	return challengesDir + r.store.Blind("challenge", []byte(c.Name+"\x00"+c.Value))
}

// stored is an instance with where and when it was stored.
type stored struct {
	*Instance
	path     string
	revision int64
}

// apply makes the next snapshot. A record that is unusable is alarmed, and what was known at its path stays.
func (r *Registry) apply(u store.Update) *Snapshot {
	base := r.Snapshot()
	if u.Reset {
		u.Deletes = append(u.Deletes, r.vanished(u)...)
	}
	e := base.edit(u.Revision)
	for _, path := range u.Deletes {
		r.forget(e, path)
	}
	var changed []stored
	for _, entry := range u.Puts {
		if err := r.read(e, entry, &changed); err != nil {
			r.alarm(entry.Path, err)
		}
	}
	r.admit(e, changed)
	return e.done()
}

// vanished returns the known paths that a reset does not mention.
func (r *Registry) vanished(u store.Update) []string {
	mentioned := make(map[string]struct{}, len(u.Puts)+len(u.Skipped))
	for _, entry := range u.Puts {
		mentioned[entry.Path] = struct{}{}
	}
	for _, path := range u.Skipped {
		mentioned[path] = struct{}{}
	}
	var gone []string
	for path := range r.known {
		if _, ok := mentioned[path]; !ok {
			gone = append(gone, path)
		}
	}
	return gone
}

func (r *Registry) forget(e *snapshotEdit, path string) {
	switch was := r.known[path].(type) {
	case InstanceID:
		e.remove(was)
	case challengeRecord:
		e.removeChallenge(was.Name, was.Value)
	}
	delete(r.known, path)
}

// read decodes one entry. Challenges take effect at once, instances are collected.
func (r *Registry) read(e *snapshotEdit, entry store.Entry, changed *[]stored) error {
	switch {
	case strings.HasPrefix(entry.Path, instancesDir):
		inst, err := decode(entry.Value)
		if err != nil {
			return err
		}
		if r.instancePath(inst.ID) != entry.Path {
			return errors.New("record of another instance")
		}
		*changed = append(*changed, stored{inst, entry.Path, entry.Revision})
	case strings.HasPrefix(entry.Path, challengesDir):
		c, err := decodeChallenge(entry.Value)
		if err != nil {
			return err
		}
		if r.challengePath(c) != entry.Path {
			return errors.New("record of another challenge")
		}
		r.known[entry.Path] = c
		e.putChallenge(c.Name, c.Value)
	default:
		return errors.New("unknown kind of record")
	}
	return nil
}

// admit puts instances into the snapshot, the one stored first first, but none whose key or address another one has:
// transactions rule that out, so somebody has been withholding or deleting records, and the traffic of one app must
// not reach another for it.
func (r *Registry) admit(e *snapshotEdit, changed []stored) {
	if len(changed) == 0 {
		return
	}
	slices.SortFunc(changed, func(a, b stored) int { return cmp.Compare(a.revision, b.revision) })
	before := make([]*Instance, len(changed))
	for i, s := range changed {
		if before[i] = e.instance(s.ID); before[i] != nil {
			e.remove(s.ID)
		}
	}
	admitted := make([]*Instance, 0, len(changed))
	for i, s := range changed {
		inst := s.Instance
		if other := e.holder(inst); other != nil {
			r.alarm(s.path, fmt.Errorf("instance %s has the key or the address of instance %s", s.ID, other.ID))
			if inst = before[i]; inst == nil || e.holder(inst) != nil {
				continue
			}
		}
		e.claim(inst)
		r.known[s.path] = s.ID
		admitted = append(admitted, inst)
	}
	e.enlist(admitted)
}
