package registry_test

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"dstack.host/gateway/registry"
	"dstack.host/gateway/store"
	"dstack.host/tunnel"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testKey = store.Key{1, 2, 3}

func pool(t *testing.T, clients string) tunnel.Pool {
	t.Helper()
	p, err := tunnel.NewPool(netip.MustParsePrefix(clients))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// node is a registry that runs.
type node struct {
	*registry.Registry
	store *store.Store
	stop  func()
}

type options struct {
	dir     string
	pool    string
	now     func() time.Time
	timeout time.Duration
	alarm   func(string, error)
}

// start runs a registry until it is stopped or the test ends.
func start(t *testing.T, o options) *node {
	t.Helper()
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	if o.pool == "" {
		o.pool = "10.8.0.0/16"
	}
	s, err := store.Open(t.Context(), store.Config{DataDir: o.dir, Key: testKey, Timeout: o.timeout})
	if err != nil {
		t.Fatal(err)
	}
	n := run(t, s, o)
	stop := n.stop
	n.stop = sync.OnceFunc(func() {
		stop()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

// run runs a registry on a store.
func run(t *testing.T, s *store.Store, o options) *node {
	t.Helper()
	r, err := registry.New(registry.Config{Store: s, Pool: pool(t, o.pool), Now: o.now, Alarm: o.alarm})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	n := &node{r, s, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})}
	t.Cleanup(n.stop)
	return n
}

func (n *node) register(t *testing.T, inst registry.Instance) registry.Instance {
	t.Helper()
	got, _, err := n.Register(t.Context(), inst)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// until waits until the snapshot satisfies ready.
func (n *node) until(t *testing.T, ready func(*registry.Snapshot) bool) *registry.Snapshot {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := n.Changed()
		if s := n.Snapshot(); ready(s) {
			return s
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("the snapshot does not get there")
		}
	}
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func TestNewNamesAllFaults(t *testing.T) {
	_, err := registry.New(registry.Config{})
	if err == nil || err.Error() != "registry: no store\nregistry: no address pool" {
		t.Errorf("error %v", err)
	}
}

func TestSnapshotBeforeRunIsNotLoaded(t *testing.T) {
	s, err := store.Open(t.Context(), store.Config{DataDir: t.TempDir(), Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := registry.New(registry.Config{Store: s, Pool: pool(t, "10.8.0.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	if r.Snapshot() == nil || r.Snapshot().Loaded() {
		t.Error("loaded")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, _, err = r.Register(ctx, instance(1, 1))
	wantError(t, err, store.ErrUnavailable)
}

func TestRegistrationsSurviveARestart(t *testing.T) {
	o := options{dir: t.TempDir()}
	n := start(t, o)
	var want []registry.Instance
	for i := range 5 {
		inst := full()
		other := instance(i%2, i)
		inst.ID, inst.App, inst.Compose, inst.Key = other.ID, other.App, other.Compose, other.Key
		want = append(want, n.register(t, inst))
	}
	if err := n.Remove(t.Context(), want[0].ID); err != nil {
		t.Fatal(err)
	}
	n.stop()

	n = start(t, o)
	s := n.until(t, (*registry.Snapshot).Loaded)
	if s.Len() != 4 || s.Instance(want[0].ID) != nil {
		t.Errorf("%d instances", s.Len())
	}
	for _, inst := range want[1:] {
		if got := s.Instance(inst.ID); got == nil || !equalRecords(inst, *got) {
			t.Errorf("(-want +got)\n%s", cmp.Diff(inst, got, compareInstances))
		}
	}
	again, changed, err := n.Register(t.Context(), want[3])
	if err != nil || changed || again.Addr != want[3].Addr {
		t.Errorf("%v, changed %t, error %v", again.Addr, changed, err)
	}
	if got := n.register(t, instance(1, 9)); got.Addr != want[0].Addr {
		t.Errorf("new instance has %v, want the one that became free, %v", got.Addr, want[0].Addr)
	}
}

func TestChallenges(t *testing.T) {
	n := start(t, options{})
	const name = "_acme-challenge.example.org"
	set := func(fqdn, value string) {
		t.Helper()
		if err := n.SetChallenge(t.Context(), fqdn, value); err != nil {
			t.Fatal(err)
		}
	}
	want := func(values ...string) {
		t.Helper()
		if diff := cmp.Diff(values, n.Snapshot().Challenges()[name]); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	set(name, "two")
	want("two")
	set("_ACME-challenge.Example.org.", "one")
	want("one", "two")
	set(name, "two")
	want("one", "two")
	before := n.Snapshot()
	set("_acme-challenge.example.com", "three")
	for _, value := range []string{"two", "absent", "two"} {
		if err := n.DeleteChallenge(t.Context(), name+".", value); err != nil {
			t.Fatal(err)
		}
	}
	want("one")
	if err := n.DeleteChallenge(t.Context(), name, "one"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string][]string{"_acme-challenge.example.com": {"three"}}, n.Snapshot().Challenges()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(map[string][]string{name: {"one", "two"}}, before.Challenges()); diff != "" {
		t.Errorf("an older snapshot has changed (-want +got)\n%s", diff)
	}
	for _, c := range [][2]string{{"", "x"}, {".", "x"}, {name, ""}, {name, "a\nb"}, {name, string(make([]byte, 256))}, {"a b.example", "x"}, {name + "..", "x"}} {
		wantError(t, n.SetChallenge(t.Context(), c[0], c[1]), registry.ErrInvalid)
	}
}

func TestChangedTellsOfEverySnapshot(t *testing.T) {
	n := start(t, options{})
	n.until(t, (*registry.Snapshot).Loaded)
	changed := n.Changed()
	select {
	case <-changed:
		t.Fatal("changed without a change")
	default:
	}
	n.register(t, instance(1, 1))
	n.register(t, instance(1, 2)) // two changes are one turn for whoever was busy
	<-changed
	if n.Snapshot().Len() != 2 {
		t.Error("not the newest snapshot")
	}
}

func TestUnusableRecordsAreAlarmedAndTheGoodOnesKept(t *testing.T) {
	var mu sync.Mutex
	alarmed := map[string]int{}
	n := start(t, options{alarm: func(path string, _ error) {
		mu.Lock()
		defer mu.Unlock()
		alarmed[path]++
	}})
	good := n.register(t, instance(1, 1))
	other := n.register(t, instance(1, 2))
	stranger := instance(2, 7)
	stranger.Addr = good.Addr // as if the index had been deleted
	thief := instance(2, 8)
	thief.Key, thief.Addr = good.Key, netip.MustParseAddr("10.8.9.9")
	moved := other
	moved.Addr = good.Addr
	encode := func(inst registry.Instance) []byte {
		data, err := registry.Encode(&inst)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	unusable := map[string][]byte{
		n.InstancePath(good.ID):           []byte("{}\n"),
		n.InstancePath(instance(3, 3).ID): encode(good), // of another path
		n.InstancePath(stranger.ID):       encode(stranger),
		n.InstancePath(thief.ID):          encode(thief),
		n.InstancePath(other.ID):          encode(moved),
		n.ChallengePath("a.example", "x"): []byte(`{"version":1,"name":"b.example","value":"x"}`),
		n.ChallengePath("c.example", "x"): []byte("null"),
		"registry/surprise":               nil,
	}
	for path, data := range unusable {
		if _, err := n.store.Commit(t.Context(), nil, []store.Op{store.Put(path, data)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.SetChallenge(t.Context(), "last.example", "x"); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	for path := range unusable {
		if alarmed[path] != 1 {
			t.Errorf("%d alarms for %s", alarmed[path], path)
		}
	}
	mu.Unlock()
	s := n.Snapshot()
	if s.Len() != 2 || !equalRecords(*s.Instance(good.ID), good) || !equalRecords(*s.Instance(other.ID), other) || len(s.Challenges()) != 1 {
		t.Errorf("%d instances, challenges %v", s.Len(), s.Challenges())
	}
	if s.ByAddr(good.Addr).ID != good.ID || s.ByKey(good.Key).ID != good.ID {
		t.Error("traffic goes astray")
	}

	// A node that starts now sees the same, apart from what was good once and is not any more.
	late := run(t, n.store, options{pool: "10.8.0.0/16"})
	s = late.until(t, (*registry.Snapshot).Loaded)
	for inst := range s.Instances() {
		if s.ByAddr(inst.Addr) != inst || s.ByKey(inst.Key) != inst {
			t.Errorf("instance %s shares its key or address", inst.ID)
		}
	}
}

func TestSnapshotServesWhileEtcdIsAway(t *testing.T) {
	n := start(t, options{timeout: time.Second})
	inst := n.register(t, instance(1, 1))
	n.store.Close() // as good as an etcd that never answers again
	if n.Snapshot().Instance(inst.ID) == nil {
		t.Error("lost")
	}
	if _, changed, err := n.Register(t.Context(), inst); err != nil || changed {
		t.Errorf("a registration that changes nothing: changed %t, error %v", changed, err)
	}
	_, _, err := n.Register(t.Context(), instance(1, 2))
	wantError(t, err, store.ErrUnavailable)
	wantError(t, n.Remove(t.Context(), inst.ID), store.ErrUnavailable)
	wantError(t, n.SetChallenge(t.Context(), "a.example", "x"), store.ErrUnavailable)
}
