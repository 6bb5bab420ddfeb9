package registry_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"dstack.host/gateway/registry"
	"dstack.host/gateway/store"
	"dstack.host/ratls"
)

func TestRegisterGivesTheLowestFreeAddress(t *testing.T) {
	n := start(t, options{pool: "10.8.0.0/24"})
	for i := range 3 {
		got, changed, err := n.Register(t.Context(), instance(1, i))
		if want := netip.AddrFrom4([4]byte{10, 8, 0, byte(i + 1)}); err != nil || !changed || got.Addr != want {
			t.Errorf("%v, changed %t, error %v; want %v", got.Addr, changed, err, want)
		}
		if n.Snapshot().ByAddr(got.Addr) == nil {
			t.Error("not in the snapshot when Register returns")
		}
	}
}

// clock is a time that the test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestRegisterAgain(t *testing.T) {
	type step struct {
		name    string
		change  func(*registry.Instance)
		after   time.Duration
		changed bool
		check   func(first, got registry.Instance) bool
	}
	keepsAll := func(first, got registry.Instance) bool { return equalRecords(first, got) }
	for _, c := range []step{
		{"nothing new", func(*registry.Instance) {}, time.Hour, false, keepsAll},
		{"what does not count", func(i *registry.Instance) {
			i.Addr, i.RegisteredAt, i.EvidenceAt = netip.MustParseAddr("10.9.9.9"), time.Unix(1, 0), time.Unix(1, 0)
		}, time.Hour, false, keepsAll},
		{"no evidence any more", func(i *registry.Instance) { i.Evidence = nil }, 48 * time.Hour, false, keepsAll},
		{"empty evidence", func(i *registry.Instance) { i.Evidence = []byte{} }, 48 * time.Hour, false, keepsAll},
		{"no ports any more", func(i *registry.Instance) { i.Ports = nil }, time.Hour, false, keepsAll},
		{"newer evidence", func(i *registry.Instance) { i.Evidence = []byte("new") }, time.Hour, false, keepsAll},
		{"newer evidence after a day", func(i *registry.Instance) { i.Evidence = []byte("new") }, 25 * time.Hour, true, func(first, got registry.Instance) bool {
			return string(got.Evidence) == "new" && got.EvidenceAt.Sub(first.EvidenceAt) == 25*time.Hour && got.RegisteredAt.Equal(first.RegisteredAt)
		}},
		{"new key", func(i *registry.Instance) { i.Key = instance(1, 50).Key }, time.Hour, true, func(first, got registry.Instance) bool {
			return got.Key == instance(1, 50).Key && got.RegisteredAt.Sub(first.RegisteredAt) == time.Hour && string(got.Evidence) == string(first.Evidence)
		}},
		{"new key, no evidence", func(i *registry.Instance) { i.Key, i.Evidence = instance(1, 50).Key, nil }, time.Hour, true, func(_, got registry.Instance) bool {
			return got.Evidence == nil && got.EvidenceAt.IsZero() // the old evidence is about the old key
		}},
		{"new code, no ports", func(i *registry.Instance) { i.Compose, i.Ports = instance(9, 9).Compose, nil }, time.Hour, true, func(first, got registry.Instance) bool {
			return got.Ports == nil && got.Compose == instance(9, 9).Compose && got.RegisteredAt.Equal(first.RegisteredAt)
		}},
		{"other ports", func(i *registry.Instance) { i.Ports = &registry.PortPolicy{} }, time.Hour, true, func(_, got registry.Instance) bool {
			return got.Ports.Allowed(1)
		}},
		{"other identity", func(i *registry.Instance) { i.Identity = "kms-app-info" }, time.Hour, true, func(_, got registry.Instance) bool {
			return got.Identity == "kms-app-info"
		}},
		{"other app info", func(i *registry.Instance) { i.Info.MRSystem = ratls.Hex{7} }, time.Hour, true, func(_, got registry.Instance) bool {
			return len(got.Info.MRSystem) == 1
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := &clock{now: time.Unix(1_700_000_000, 999)}
			n := start(t, options{now: now.Now})
			first := n.register(t, full())
			now.advance(c.after)
			want := full()
			c.change(&want)
			before := n.Snapshot()
			got, changed, err := n.Register(t.Context(), want)
			if err != nil || changed != c.changed || got.Addr != first.Addr || !c.check(first, got) {
				t.Errorf("changed %t, error %v\nfirst %+v\ngot   %+v", changed, err, first, got)
			}
			if (n.Snapshot() != before) != c.changed {
				t.Error("what changes nothing writes nothing, and the other way round")
			}
			if again, changed, err := n.Register(t.Context(), want); err != nil || changed || !equalRecords(again, got) {
				t.Errorf("once more: changed %t, error %v", changed, err)
			}
		})
	}
}

func TestRegisterRefuses(t *testing.T) {
	n := start(t, options{})
	a := n.register(t, instance(1, 1))
	b := n.register(t, instance(2, 2))
	for name, c := range map[string]struct {
		change func(*registry.Instance)
		want   error
	}{
		"key of another instance":           {func(i *registry.Instance) { i.Key = b.Key }, registry.ErrKeyInUse},
		"key of another, known instance":    {func(i *registry.Instance) { *i = a; i.Key = b.Key }, registry.ErrKeyInUse},
		"instance of another app":           {func(i *registry.Instance) { i.ID = b.ID }, registry.ErrOtherApp},
		"instance of another app, same key": {func(i *registry.Instance) { i.ID, i.Key = b.ID, b.Key }, registry.ErrOtherApp},
		"instance id that is another app":   {func(i *registry.Instance) { i.ID = registry.InstanceID(b.App) }, registry.ErrOtherApp},
		"app id that is another's instance": {func(i *registry.Instance) { i.App = registry.AppID(b.ID) }, registry.ErrOtherApp},
		"no key":                            {func(i *registry.Instance) { i.Key = [32]byte{} }, registry.ErrInvalid},
		"no id":                             {func(i *registry.Instance) { i.ID = registry.InstanceID{} }, registry.ErrInvalid},
		"no app":                            {func(i *registry.Instance) { i.App = registry.AppID{} }, registry.ErrInvalid},
		"no compose hash":                   {func(i *registry.Instance) { i.Compose = registry.ComposeHash{} }, registry.ErrInvalid},
		"port 0":                            {func(i *registry.Instance) { i.Ports = &registry.PortPolicy{Ports: []registry.Port{{}}} }, registry.ErrInvalid},
		"a port twice": {func(i *registry.Instance) {
			i.Ports = &registry.PortPolicy{Ports: []registry.Port{{Port: 1}, {Port: 1}}}
		}, registry.ErrInvalid},
		"too many ports": {func(i *registry.Instance) { i.Ports = &registry.PortPolicy{Ports: make([]registry.Port, 1025)} }, registry.ErrInvalid},
		"large evidence": {func(i *registry.Instance) { i.Evidence = make([]byte, registry.MaxEvidence+1) }, registry.ErrInvalid},
		"long identity":  {func(i *registry.Instance) { i.Identity = string(make([]byte, 33)) }, registry.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			inst := instance(1, 3)
			c.change(&inst)
			_, changed, err := n.Register(t.Context(), inst)
			wantError(t, err, c.want)
			if s := n.Snapshot(); changed || s.Len() != 2 || !equalRecords(*s.Instance(a.ID), a) || !equalRecords(*s.Instance(b.ID), b) || n.Reserved() != 0 {
				t.Error("something has changed")
			}
		})
	}
}

func TestKeysAndAddressesBecomeFree(t *testing.T) {
	n := start(t, options{pool: "10.8.0.0/30"}) // two addresses
	a := n.register(t, instance(1, 1))
	n.register(t, instance(1, 2))
	_, _, err := n.Register(t.Context(), instance(1, 3))
	wantError(t, err, registry.ErrPoolExhausted)

	// The first takes another key; the third may have the old one.
	moved := a
	moved.Key = instance(1, 50).Key
	if got := n.register(t, moved); got.Addr != a.Addr {
		t.Errorf("address %v has become %v", a.Addr, got.Addr)
	}
	if err := n.Remove(t.Context(), instance(1, 2).ID); err != nil {
		t.Fatal(err)
	}
	third := instance(2, 3)
	third.Key = a.Key
	n.register(t, third)

	fourth := instance(2, 2) // the removed one's key
	_, _, err = n.Register(t.Context(), fourth)
	wantError(t, err, registry.ErrPoolExhausted)
	if err := n.Remove(t.Context(), third.ID); err != nil {
		t.Fatal(err)
	}
	n.register(t, fourth)
	wantError(t, n.Remove(t.Context(), third.ID), store.ErrNotFound)
}

func TestRegisterMovesWhatThePoolDoesNotHaveAnyMore(t *testing.T) {
	o := options{dir: t.TempDir(), pool: "10.8.0.0/24"}
	n := start(t, o)
	old := n.register(t, instance(1, 1))
	n.stop()
	o.pool = "10.9.0.0/24"
	n = start(t, o)
	got, changed, err := n.Register(t.Context(), instance(1, 1))
	if err != nil || !changed || got.Addr != netip.MustParseAddr("10.9.0.1") || !got.RegisteredAt.Equal(old.RegisteredAt) {
		t.Errorf("%+v, changed %t, error %v", got, changed, err)
	}
	if n.Snapshot().ByAddr(old.Addr) != nil {
		t.Error("still has the old address")
	}
}

func TestConcurrentRegistrationsShareNothing(t *testing.T) {
	s, err := store.Open(t.Context(), store.Config{DataDir: t.TempDir(), Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	o := options{pool: "10.8.0.0/24"}
	nodes := []*node{run(t, s, o), run(t, s, o)}
	const each = 20
	var wg sync.WaitGroup
	for i := range 2 * each {
		wg.Go(func() {
			if _, _, err := nodes[i%2].Register(t.Context(), instance(i%3, i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, n := range nodes {
		snapshot := n.until(t, func(s *registry.Snapshot) bool { return s.Len() == 2*each })
		for inst := range snapshot.Instances() {
			if snapshot.ByAddr(inst.Addr) != inst || snapshot.ByKey(inst.Key) != inst {
				t.Errorf("node %d: %s shares its address or key", i, inst.ID)
			}
		}
		if n.Reserved() != 0 {
			t.Errorf("node %d: %d addresses stay reserved", i, n.Reserved())
		}
	}
}

func TestConcurrentRegistrationsOfOneInstanceAgree(t *testing.T) {
	n := start(t, options{})
	var wg sync.WaitGroup
	addrs := make([]netip.Addr, 8)
	for i := range addrs {
		wg.Go(func() {
			inst := instance(1, 1)
			inst.Identity = fmt.Sprint(i % 2)
			got, _, err := n.Register(t.Context(), inst)
			if err != nil {
				t.Error(err)
			}
			addrs[i] = got.Addr
		})
	}
	wg.Wait()
	for _, a := range addrs {
		if a != addrs[0] {
			t.Errorf("addresses %v", addrs)
		}
	}
	if n.Snapshot().Len() != 1 {
		t.Errorf("%d instances", n.Snapshot().Len())
	}
}

func TestOneOfTwoGetsAKey(t *testing.T) {
	n := start(t, options{})
	var wg sync.WaitGroup
	errs := make([]error, 6)
	for i := range errs {
		wg.Go(func() {
			inst := instance(1, i)
			inst.Key = instance(1, 100).Key
			_, _, errs[i] = n.Register(t.Context(), inst)
		})
	}
	wg.Wait()
	winners := 0
	for _, err := range errs {
		if err == nil {
			winners++
			continue
		}
		wantError(t, err, registry.ErrKeyInUse)
	}
	if winners != 1 || n.Snapshot().Len() != 1 {
		t.Errorf("%d winners, %d instances", winners, n.Snapshot().Len())
	}
}

// A record that somebody deleted in etcd, but not its key, must not keep the instance out.
func TestKeyWithoutAnInstanceIsFree(t *testing.T) {
	n := start(t, options{})
	gone := n.register(t, instance(1, 1))
	if _, err := n.store.Commit(t.Context(), nil, []store.Op{store.Delete(n.InstancePath(gone.ID))}); err != nil {
		t.Fatal(err)
	}
	n.until(t, func(s *registry.Snapshot) bool { return s.Len() == 0 })
	inst := instance(2, 2)
	inst.Key = gone.Key
	if got := n.register(t, inst); got.Addr == gone.Addr {
		t.Error("got an address that is still claimed")
	}
	n.register(t, instance(1, 5)) // skips the claimed address as well
}
