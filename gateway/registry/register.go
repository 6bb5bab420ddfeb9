package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"dstack.host/gateway/store"
)

const (
	// registerAttempts bounds how often a registration begins again because others changed what it had read.
	registerAttempts = 16
	registerTimeout  = 20 * time.Second
)

// Register makes an instance known, and returns it as it is known then, with its address. It reports whether anything
// had to be written: a registration that says what is known already writes nothing and needs no etcd. When it
// returns without error, the snapshot has the instance.
//
// Addr, RegisteredAt and EvidenceAt of the argument do not count. An instance keeps its address as long as the pool
// has it, also with another key. Without Ports or Evidence the known ones stay, as long as they are about the same
// code, and the same key too for evidence.
//
// It refuses an instance with the key of another one (ErrKeyInUse), an id that is known under another app
// (ErrOtherApp), what makes no sense (ErrInvalid), and new instances when there is no address (ErrPoolExhausted): the
// rules of dstack 0.6 gateway/src/main_service.rs. It is store.ErrUnavailable when etcd does not answer; the
// registration may have happened then, and may be repeated.
func (r *Registry) Register(ctx context.Context, want Instance) (Instance, bool, error) {
	if err := want.check(); err != nil {
		return Instance{}, false, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	if err := r.awaitRevision(ctx, 0); err != nil {
		return Instance{}, false, err
	}
	got, changed, err := r.register(ctx, &want)
	if err != nil {
		return Instance{}, false, fmt.Errorf("instance %s: %w", want.ID, err)
	}
	return got, changed, nil
}

func (r *Registry) register(ctx context.Context, want *Instance) (Instance, bool, error) {
	snapshot := r.Snapshot()
	if err := checkIDs(snapshot, want); err != nil {
		return Instance{}, false, err
	}
	if cur := snapshot.Instance(want.ID); cur != nil {
		if _, changed, err := r.plan(cur, want); err != nil || !changed {
			return *cur, false, err
		}
	}
	attempt := registration{r: r, want: want, excluded: make(map[netip.Addr]struct{})}
	defer attempt.release()
	for range registerAttempts {
		got, changed, err := attempt.try(ctx)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		return got, changed, err
	}
	return Instance{}, false, fmt.Errorf("%w: others kept changing it", store.ErrUnavailable)
}

// checkIDs refuses an instance id that names another app, and an app id that names an instance of another app: a name
// would reach the one instead of the other.
func checkIDs(s *Snapshot, want *Instance) error {
	if AppID(want.ID) != want.App && len(s.App(AppID(want.ID))) > 0 {
		return fmt.Errorf("%w: the instance id is the id of an app", ErrOtherApp)
	}
	if inst := s.Instance(InstanceID(want.App)); inst != nil && inst.App != want.App {
		return fmt.Errorf("%w: the app id is the id of an instance", ErrOtherApp)
	}
	return nil
}

// plan returns what is to be stored for want when cur is known, or nil, and whether that is a change. The address is
// missing where a new one is needed.
func (r *Registry) plan(cur, want *Instance) (*Instance, bool, error) {
	next := *want
	now := r.now().UTC().Truncate(time.Second)
	next.Addr, next.RegisteredAt, next.EvidenceAt, next.Override, next.Drain = netip.Addr{}, now, time.Time{}, nil, Drain{}
	if len(next.Evidence) > 0 {
		next.EvidenceAt = now
	} else {
		next.Evidence = nil
	}
	if cur == nil {
		return &next, true, nil
	}
	if cur.App != want.App {
		return nil, false, ErrOtherApp
	}
	if r.pool.Contains(cur.Addr) {
		next.Addr = cur.Addr
	}
	next.Override = cur.Override
	sameKey, sameCode := cur.Key == next.Key, cur.Compose == next.Compose
	if sameKey {
		next.RegisteredAt = cur.RegisteredAt
	}
	if sameCode && (next.Ports == nil || cur.Measured && !next.Measured) {
		next.Ports, next.Measured = cur.Ports, cur.Measured
	}
	fresh := len(cur.Evidence) > 0 && now.Sub(cur.EvidenceAt) < r.evidenceAge
	if sameKey && sameCode && (fresh && cur.Binding == next.Binding || next.Evidence == nil) {
		next.Evidence, next.EvidenceAt = cur.Evidence, cur.EvidenceAt
	}
	return &next, !cur.equal(&next), nil
}

// equal reports whether two instances have the same record.
func (inst *Instance) equal(other *Instance) bool {
	return inst.ID == other.ID && inst.App == other.App && inst.Compose == other.Compose && inst.Key == other.Key && inst.Addr == other.Addr && inst.IPv6 == other.IPv6 &&
		inst.Ports.equal(other.Ports) && inst.Measured == other.Measured && inst.Override.equal(other.Override) &&
		inst.Identity == other.Identity && inst.Binding == other.Binding && bytes.Equal(inst.Evidence, other.Evidence) &&
		inst.EvidenceAt.Equal(other.EvidenceAt) && inst.RegisteredAt.Equal(other.RegisteredAt) &&
		inst.Info.Equal(other.Info) && inst.Drain.Reason == other.Drain.Reason && inst.Drain.At.Equal(other.Drain.At)
}

func (p *PortPolicy) equal(other *PortPolicy) bool {
	if p == nil || other == nil {
		return p == other
	}
	return p.Restrict == other.Restrict && slices.Equal(p.Ports, other.Ports)
}

// registration is one call of Register.
type registration struct {
	r        *Registry
	want     *Instance
	excluded map[netip.Addr]struct{} // found to be taken
	reserved netip.Addr
}

// try reads, decides and writes once. It is store.ErrConflict when what it read has changed meanwhile.
func (g *registration) try(ctx context.Context) (Instance, bool, error) {
	r := g.r
	cur, revision, err := r.load(ctx, g.want.ID)
	if err != nil {
		return Instance{}, false, err
	}
	next, changed, err := r.plan(cur, g.want)
	if err != nil {
		return Instance{}, false, err
	}
	if !changed {
		return r.confirm(ctx, cur, revision, false)
	}
	tx := transaction{}
	tx.require(r.instancePath(next.ID), revision)
	if cur == nil || cur.Key != next.Key {
		if err := g.takeKey(ctx, &tx, cur, next); err != nil {
			return Instance{}, false, err
		}
	}
	if !next.Addr.IsValid() {
		if err := g.takeAddr(&tx, cur, next); err != nil {
			return Instance{}, false, err
		}
	}
	data, err := encode(next)
	if err != nil {
		return Instance{}, false, err
	}
	tx.put(r.instancePath(next.ID), data)
	revision, err = r.store.Commit(ctx, tx.conds, tx.ops)
	switch {
	case errors.Is(err, store.ErrConflict):
		g.exclude(ctx)
		return Instance{}, false, err
	case err != nil:
		return Instance{}, false, err
	}
	return r.confirm(ctx, next, revision, true)
}

// takeKey adds to the transaction what makes next the owner of its key.
func (g *registration) takeKey(ctx context.Context, tx *transaction, cur, next *Instance) error {
	r := g.r
	revision, err := r.keyRevision(ctx, next)
	if err != nil {
		return err
	}
	tx.require(r.keyPath(next.Key), revision)
	tx.put(r.keyPath(next.Key), ownedBy(next.ID))
	if cur != nil {
		tx.delete(r.keyPath(cur.Key))
	}
	return nil
}

// takeAddr does the same for an address that no other instance has.
func (g *registration) takeAddr(tx *transaction, cur, next *Instance) error {
	addr, err := g.reserve()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPoolExhausted, err)
	}
	next.Addr = addr
	tx.require(g.r.addrPath(addr), 0)
	tx.put(g.r.addrPath(addr), ownedBy(next.ID))
	if cur != nil {
		tx.delete(g.r.addrPath(cur.Addr))
	}
	return nil
}

// reserve picks an address that is neither in the snapshot nor picked by another registration of this node. Other
// nodes may pick the same; the transaction decides.
func (g *registration) reserve() (netip.Addr, error) {
	g.release()
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	snapshot := g.r.Snapshot()
	addr, err := g.r.pool.Allocate(func(a netip.Addr) bool {
		_, excluded := g.excluded[a]
		_, reserved := g.r.reserved[a]
		return excluded || reserved || snapshot.ByAddr(a) != nil
	})
	if err == nil {
		g.reserved = addr
		g.r.reserved[addr] = struct{}{}
	}
	return addr, err
}

func (g *registration) release() {
	if !g.reserved.IsValid() {
		return
	}
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	delete(g.r.reserved, g.reserved)
	g.reserved = netip.Addr{}
}

// exclude avoids the reserved address from now on if somebody has it.
func (g *registration) exclude(ctx context.Context) {
	if !g.reserved.IsValid() {
		return
	}
	_, err := g.r.store.Get(ctx, g.r.addrPath(g.reserved))
	if err == nil || errors.Is(err, store.ErrTampered) {
		g.excluded[g.reserved] = struct{}{}
	}
}

// confirm waits for the snapshot, and makes sure that it has the instance.
func (r *Registry) confirm(ctx context.Context, inst *Instance, revision int64, changed bool) (Instance, bool, error) {
	if err := r.awaitRevision(ctx, revision); err != nil {
		return Instance{}, false, err
	}
	got := r.Snapshot().Instance(inst.ID)
	if got == nil || got.Key != inst.Key || got.Addr != inst.Addr {
		return Instance{}, false, fmt.Errorf("%w: what was stored did not come back", store.ErrUnavailable)
	}
	return *got, changed, nil
}

// load reads an instance from the store: nil and revision 0 when there is none.
func (r *Registry) load(ctx context.Context, id InstanceID) (*Instance, int64, error) {
	entry, err := r.store.Get(ctx, r.instancePath(id))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, 0, nil
	case err != nil:
		return nil, 0, err
	}
	inst, err := decode(entry.Value)
	if err != nil {
		return nil, 0, fmt.Errorf("stored record: %w", err)
	}
	return inst, entry.Revision, nil
}

// keyRevision returns the revision of the entry that says whose key it is, 0 when it is nobody's. It refuses the key
// of another instance, except where that instance does not exist any more or has another key by now.
func (r *Registry) keyRevision(ctx context.Context, inst *Instance) (int64, error) {
	entry, err := r.store.Get(ctx, r.keyPath(inst.Key))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return 0, nil
	case err != nil:
		return 0, err
	}
	id, err := decodeOwner(entry.Value)
	if err != nil {
		return 0, fmt.Errorf("stored owner of the key: %w", err)
	}
	if id == inst.ID {
		return entry.Revision, nil
	}
	owner, _, err := r.load(ctx, id)
	switch {
	case err != nil:
		return 0, err
	case owner != nil && owner.Key == inst.Key:
		return 0, ErrKeyInUse
	}
	return entry.Revision, nil
}

func (r *Registry) addrPath(addr netip.Addr) string {
	return addrsDir + r.store.Blind("address", addr.AsSlice())
}

// transaction collects a commit.
type transaction struct {
	conds []store.Cond
	ops   []store.Op
}

func (t *transaction) require(path string, revision int64) {
	t.conds = append(t.conds, store.Cond{Path: path, Revision: revision})
}

func (t *transaction) put(path string, value []byte) { t.ops = append(t.ops, store.Put(path, value)) }

func (t *transaction) delete(path string) { t.ops = append(t.ops, store.Delete(path)) }

func ownedBy(id InstanceID) []byte {
	data, err := json.Marshal(ownerRecord{Version: recordVersion, ID: id})
	if err != nil {
		panic("registry: " + err.Error()) // an int and text always encode
	}
	return data
}
