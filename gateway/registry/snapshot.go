package registry

import (
	"bytes"
	"iter"
	"maps"
	"net/netip"
	"slices"

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

// NewSnapshot returns a loaded snapshot of these instances and TXT records (fully qualified name without trailing dot
// to values). Of two instances with one id the later counts. It is how tests make one; the registry makes its own.
func NewSnapshot(revision int64, instances []Instance, challenges map[string][]string) *Snapshot {
	e := new(Snapshot).edit(revision)
	instances = slices.Clone(instances)
	slices.SortStableFunc(instances, func(a, b Instance) int { return byID(&a, b.ID) })
	for i := range instances {
		e.put(&instances[i])
	}
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

// snapshotEdit makes the next snapshot from one. Only what it touches is copied.
type snapshotEdit struct {
	base       *Snapshot
	revision   int64
	instances  *tableEdit[InstanceID, *Instance]
	apps       listEdit[AppID]
	composes   listEdit[ComposeHash]
	keys       *tableEdit[tunnel.PublicKey, *Instance]
	addrs      *tableEdit[netip.Addr, *Instance]
	challenges map[string][]string // nil: as in base
}

func (s *Snapshot) edit(revision int64) *snapshotEdit {
	return &snapshotEdit{base: s, revision: revision}
}

// open copies the tables' shard lists, before the first change to an instance.
func (e *snapshotEdit) open() {
	if e.instances != nil {
		return
	}
	e.instances = e.base.instances.edit()
	e.apps = editLists(&e.base.apps)
	e.composes = editLists(&e.base.composes)
	e.keys = e.base.keys.edit()
	e.addrs = e.base.addrs.edit()
}

func (e *snapshotEdit) put(inst *Instance) {
	e.open()
	e.remove(inst.ID)
	e.instances.put(inst.ID, inst)
	e.keys.put(inst.Key, inst)
	if inst.Addr.IsValid() {
		e.addrs.put(inst.Addr, inst)
	}
	e.apps.insert(inst.App, inst)
	e.composes.insert(inst.Compose, inst)
}

func (e *snapshotEdit) remove(id InstanceID) {
	e.open()
	old, ok := e.instances.get(id)
	if !ok {
		return
	}
	e.instances.remove(id)
	if at, _ := e.keys.get(old.Key); at == old {
		e.keys.remove(old.Key)
	}
	if at, _ := e.addrs.get(old.Addr); at == old {
		e.addrs.remove(old.Addr)
	}
	e.apps.drop(old.App, id)
	e.composes.drop(old.Compose, id)
}

func (e *snapshotEdit) putChallenge(name, value string) {
	values, i := e.challengeValues(name, value)
	if i < len(values) && values[i] == value {
		return
	}
	e.challenges[name] = slices.Insert(slices.Clone(values), i, value)
}

func (e *snapshotEdit) removeChallenge(name, value string) {
	values, i := e.challengeValues(name, value)
	if i == len(values) || values[i] != value {
		return
	}
	if len(values) == 1 {
		delete(e.challenges, name)
		return
	}
	e.challenges[name] = slices.Delete(slices.Clone(values), i, i+1)
}

func (e *snapshotEdit) challengeValues(name, value string) (values []string, at int) {
	if e.challenges == nil {
		e.challenges = maps.Clone(e.base.challenges)
	}
	if e.challenges == nil {
		e.challenges = make(map[string][]string)
	}
	values = e.challenges[name]
	at, _ = slices.BinarySearch(values, value)
	return values, at
}

func (e *snapshotEdit) done() *Snapshot {
	next := *e.base
	next.revision, next.loaded = e.revision, true
	if e.instances != nil {
		next.instances = e.instances.done()
		next.apps = e.apps.done()
		next.composes = e.composes.done()
		next.keys = e.keys.done()
		next.addrs = e.addrs.done()
	}
	if e.challenges != nil {
		next.challenges = e.challenges
	}
	return &next
}

func byID(a *Instance, id InstanceID) int { return bytes.Compare(a.ID[:], id[:]) }

// listEdit collects changes to a table of lists that are sorted by instance id. A list is copied once, when first
// written; instances that come in ascending order are appended.
type listEdit[K comparable] struct {
	*tableEdit[K, []*Instance]
	own map[K]struct{} // lists that this edit may write
}

func editLists[K comparable](t *table[K, []*Instance]) listEdit[K] {
	return listEdit[K]{t.edit(), make(map[K]struct{})}
}

func (e listEdit[K]) list(key K) []*Instance {
	list, _ := e.get(key)
	if _, ok := e.own[key]; !ok {
		e.own[key] = struct{}{}
		list = append(make([]*Instance, 0, len(list)+1), list...)
	}
	return list
}

func (e listEdit[K]) insert(key K, inst *Instance) {
	list := e.list(key)
	at := len(list)
	if at > 0 && byID(list[at-1], inst.ID) >= 0 {
		at, _ = slices.BinarySearchFunc(list, inst.ID, byID)
	}
	e.put(key, slices.Insert(list, at, inst))
}

func (e listEdit[K]) drop(key K, id InstanceID) {
	list := e.list(key)
	at, found := slices.BinarySearchFunc(list, id, byID)
	if found {
		list = slices.Delete(list, at, at+1)
	}
	if len(list) == 0 {
		delete(e.own, key)
		e.remove(key)
		return
	}
	e.put(key, list)
}
