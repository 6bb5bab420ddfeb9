package registry_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"dstack.host/gateway/registry"
	"github.com/google/go-cmp/cmp"
)

// instance makes the nth instance of the app-th app, which runs that app's only code.
func instance(app, n int) registry.Instance {
	inst := registry.Instance{Addr: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})}
	fill(inst.ID[:], "instance", n)
	fill(inst.App[:], "app", app)
	fill(inst.Compose[:], "compose", app)
	fill(inst.Key[:], "key", n)
	return inst
}

// fill makes bytes that look random and depend on kind and n alone.
func fill(into []byte, kind string, n int) {
	seed := [32]byte{byte(n), byte(n >> 8), byte(n >> 16)}
	copy(seed[8:], kind)
	rand.NewChaCha8(seed).Read(into)
}

func ids(list []*registry.Instance) []string {
	out := []string{}
	for _, inst := range list {
		out = append(out, inst.ID.String())
	}
	return out
}

func sorted(list ...registry.Instance) []string {
	out := []string{}
	for _, inst := range list {
		out = append(out, inst.ID.String())
	}
	slices.Sort(out)
	return out
}

func TestZeroSnapshotIsEmpty(t *testing.T) {
	var s registry.Snapshot
	inst := instance(1, 1)
	if s.Loaded() || s.Revision() != 0 || s.Len() != 0 || s.Instance(inst.ID) != nil || s.App(inst.App) != nil ||
		s.Compose(inst.Compose) != nil || s.ByKey(inst.Key) != nil || s.ByAddr(inst.Addr) != nil || len(s.Challenges()) != 0 {
		t.Error("not empty")
	}
	for range s.Instances() {
		t.Error("an instance")
	}
	for l := range s.Labels() {
		t.Error("a label", l)
	}
}

func TestResolve(t *testing.T) {
	a1, a2, b := instance(1, 1), instance(1, 2), instance(2, 3)
	a2.Compose = b.Compose // two apps may run the same code
	s := registry.NewSnapshot(7, []registry.Instance{b, a2, a1}, nil)
	for label, want := range map[string][]string{
		a1.ID.String():                  sorted(a1),
		a1.ID.String() + "-8080":        sorted(a1),
		"0x" + b.ID.String():            sorted(b),
		a1.App.String():                 sorted(a1, a2),
		a1.App.String() + "-443s":       sorted(a1, a2),
		b.App.String():                  sorted(b),
		a1.Compose.String():             sorted(a1),
		b.Compose.String() + "g":        sorted(a2, b),
		instance(9, 9).App.String():     {},
		instance(9, 9).ID.String():      {},
		instance(9, 9).Compose.String(): {},
	} {
		n, err := registry.ParseLabel(label)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, ids(s.Resolve(n))); diff != "" {
			t.Errorf("%s (-want +got)\n%s", label, diff)
		}
	}
	for _, n := range []registry.Name{{}, {ID: "x", Kind: registry.KindID}, {ID: a1.ID.String(), Kind: registry.KindCompose}, {ID: a1.Compose.String(), Kind: registry.KindID}, {ID: a1.ID.String(), Kind: 9}} {
		if got := s.Resolve(n); got != nil {
			t.Errorf("%+v reaches %v", n, ids(got))
		}
	}
}

func TestLabelsAreAllThatResolves(t *testing.T) {
	a1, a2, b := instance(1, 1), instance(1, 2), instance(2, 3)
	s := registry.NewSnapshot(7, []registry.Instance{a1, a2, b}, nil)
	got := slices.Sorted(s.Labels())
	want := []string{a1.ID.String(), a2.ID.String(), b.ID.String(), a1.App.String(), b.App.String(), a1.Compose.String(), b.Compose.String()}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for range s.Labels() {
		break // may be left early
	}
}

func TestSnapshotsDoNotChange(t *testing.T) {
	a, b := instance(1, 1), instance(1, 2)
	first := registry.NewSnapshot(1, []registry.Instance{a, b}, map[string][]string{"x.example": {"2", "1"}})
	moved := a
	moved.App, moved.Compose = instance(2, 1).App, instance(2, 1).Compose
	fill(moved.Key[:], "key", 100)
	second := first.With(2, []*registry.Instance{&moved}, b.ID)

	if diff := cmp.Diff(sorted(a, b), ids(first.App(a.App))); diff != "" {
		t.Errorf("first (-want +got)\n%s", diff)
	}
	if first.ByKey(a.Key) == nil || first.ByKey(moved.Key) != nil || first.Len() != 2 || first.ByAddr(b.Addr) == nil {
		t.Error("first has changed")
	}
	if second.ByKey(a.Key) != nil || second.ByKey(moved.Key).ID != a.ID || second.Len() != 1 || second.ByAddr(b.Addr) != nil ||
		second.App(a.App) != nil || second.Compose(a.Compose) != nil || len(second.App(moved.App)) != 1 || second.Revision() != 2 {
		t.Error("second is wrong")
	}
	if diff := cmp.Diff(map[string][]string{"x.example": {"1", "2"}}, second.Challenges()); diff != "" {
		t.Errorf("challenges (-want +got)\n%s", diff)
	}
}

// TestSnapshotFollowsAnyHistory compares many small changes with a snapshot made at once.
func TestSnapshotFollowsAnyHistory(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	model := map[registry.InstanceID]registry.Instance{}
	s := new(registry.Snapshot)
	for turn := range 300 {
		var put []*registry.Instance
		var remove []registry.InstanceID
		for n := range 40 {
			inst := instance(random.IntN(5), n)
			switch random.IntN(10) {
			case 0:
				put = append(put, &inst)
				model[inst.ID] = inst
			case 1:
				remove = append(remove, inst.ID)
				delete(model, inst.ID)
			}
		}
		s = s.With(int64(turn), put, remove...)
		var all []registry.Instance
		for _, inst := range model {
			all = append(all, inst)
		}
		want := registry.NewSnapshot(int64(turn), all, nil)
		if diff := cmp.Diff(describe(want), describe(s)); diff != "" {
			t.Fatalf("turn %d (-want +got)\n%s", turn, diff)
		}
	}
}

func describe(s *registry.Snapshot) map[string][]string {
	out := map[string][]string{"len": {fmt.Sprint(s.Len())}}
	for inst := range s.Instances() {
		out["instances"] = append(out["instances"], inst.ID.String())
		out["compose "+inst.Compose.String()] = ids(s.Compose(inst.Compose))
		out["key"] = append(out["key"], s.ByKey(inst.Key).ID.String())
		out["addr"] = append(out["addr"], s.ByAddr(inst.Addr).ID.String())
	}
	for _, list := range out {
		slices.Sort(list)
	}
	for app, list := range s.Apps() {
		out["app "+app.String()] = ids(list)
		if !slices.IsSortedFunc(list, func(a, b *registry.Instance) int { return bytes.Compare(a.ID[:], b.ID[:]) }) {
			out["unsorted"] = append(out["unsorted"], app.String())
		}
	}
	return out
}

func TestLookupsDoNotAllocate(t *testing.T) {
	a, b := instance(1, 1), instance(1, 2)
	s := registry.NewSnapshot(1, []registry.Instance{a, b}, nil)
	app, _ := registry.ParseLabel(a.App.String())
	compose, _ := registry.ParseLabel(a.Compose.String())
	if n := testing.AllocsPerRun(100, func() {
		if len(s.Resolve(app)) != 2 || len(s.Resolve(compose)) != 2 || s.ByAddr(a.Addr) == nil || s.ByKey(a.Key) == nil {
			t.Fatal("not found")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPortPolicy(t *testing.T) {
	var unknown *registry.PortPolicy
	open := &registry.PortPolicy{Ports: []registry.Port{{Port: 443, Proxy: true}}}
	closed := &registry.PortPolicy{Restrict: true, Ports: []registry.Port{{Port: 8080}, {Port: 443, Proxy: true}}}
	none := &registry.PortPolicy{Restrict: true}
	for _, c := range []struct {
		policy         *registry.PortPolicy
		port           uint16
		allowed, proxy bool
	}{
		{unknown, 80, false, false}, {unknown, 0, false, false},
		{open, 80, true, false}, {open, 443, true, true}, {open, 0, false, false},
		{closed, 80, false, false}, {closed, 8080, true, false}, {closed, 443, true, true}, {closed, 0, false, false},
		{none, 80, false, false}, {none, 65535, false, false},
	} {
		if got := c.policy.Allowed(c.port); got != c.allowed {
			t.Errorf("%+v allows %d: %t", c.policy, c.port, got)
		}
		if got := c.policy.Proxy(c.port); got != c.proxy {
			t.Errorf("%+v wants PROXY on %d: %t", c.policy, c.port, got)
		}
	}
}

const many = 100_000

func bulk(apps int) []registry.Instance {
	list := make([]registry.Instance, many)
	for i := range list {
		list[i] = instance(i%apps, i)
	}
	return list
}

// BenchmarkApply100k is one registration among 100,000.
func BenchmarkApply100k(b *testing.B) {
	for _, apps := range []int{many, 1000, 10} {
		b.Run(fmt.Sprintf("%d apps", apps), func(b *testing.B) {
			list := bulk(apps)
			s := registry.NewSnapshot(1, list, nil)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				changed := list[n%many]
				s = s.With(int64(n), []*registry.Instance{&changed})
				n++
			}
		})
	}
}

// BenchmarkLoad100k is the start of a node.
func BenchmarkLoad100k(b *testing.B) {
	for _, apps := range []int{many, 1} {
		b.Run(fmt.Sprintf("%d apps", apps), func(b *testing.B) {
			list := bulk(apps)
			b.ReportAllocs()
			for b.Loop() {
				registry.NewSnapshot(1, list, nil)
			}
		})
	}
}

func BenchmarkResolve100k(b *testing.B) {
	list := bulk(many)
	s := registry.NewSnapshot(1, list, nil)
	name, err := registry.ParseLabel(list[5].App.String())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if len(s.Resolve(name)) != 1 {
			b.Fatal("lost")
		}
	}
}
