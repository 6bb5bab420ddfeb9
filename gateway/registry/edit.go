package registry

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"

	"dstack.host/tunnel"
)

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

// putAll adds instances, and replaces those with the same ids. The ids differ.
func (e *snapshotEdit) putAll(list []*Instance) {
	e.removeAll(list)
	for _, inst := range list {
		e.claim(inst)
	}
	e.enlist(list)
}

// claim makes an instance known by its id, key and address, which is half of putting it; enlist is the other.
func (e *snapshotEdit) claim(inst *Instance) {
	e.open()
	e.instances.put(inst.ID, inst)
	if inst.Key != (tunnel.PublicKey{}) {
		e.keys.put(inst.Key, inst)
	}
	if inst.Addr.IsValid() {
		e.addrs.put(inst.Addr, inst)
	}
}

// enlist adds instances to the lists of their apps and compose hashes.
func (e *snapshotEdit) enlist(list []*Instance) {
	e.open()
	for _, inst := range slices.SortedFunc(slices.Values(list), func(a, b *Instance) int { return byID(a, b.ID) }) {
		e.apps.insert(inst.App, inst)
		e.composes.insert(inst.Compose, inst)
	}
}

// instance returns what is known by this id, or nil.
func (e *snapshotEdit) instance(id InstanceID) *Instance {
	e.open()
	inst, _ := e.instances.get(id)
	return inst
}

// removeAll removes what has the ids of these instances.
func (e *snapshotEdit) removeAll(list []*Instance) {
	e.open()
	for _, inst := range list {
		e.remove(inst.ID)
	}
}

// holder returns the instance that has the key or the address of inst and is not inst, or nil.
func (e *snapshotEdit) holder(inst *Instance) *Instance {
	e.open()
	if other, ok := e.keys.get(inst.Key); ok && other.ID != inst.ID {
		return other
	}
	if other, ok := e.addrs.get(inst.Addr); ok && other.ID != inst.ID {
		return other
	}
	return nil
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
