package registry_test

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"dstack.host/gateway/registry"
	"dstack.host/gateway/store"
	"dstack.host/ratls"
)

var narrow = &registry.PortPolicy{Restrict: true, Ports: []registry.Port{{Port: 443, Proxy: true}}}

// TestWhatOthersChangeSurvivesARestart changes everything that no registration brings, and starts anew.
func TestWhatOthersChangeSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	n := start(t, options{dir: dir})
	inst := instance(1, 0)
	inst.Ports, inst.Binding, inst.IPv6 = nil, ratls.BindingCertificate, true
	got := n.register(t, inst)
	if err := n.SetMeasuredPorts(t.Context(), inst.ID, inst.Compose, narrow, true); err != nil {
		t.Fatal(err)
	}
	if err := n.SetOverride(t.Context(), inst.ID, &registry.PortPolicy{}); err != nil {
		t.Fatal(err)
	}
	if drained, err := n.Drain(t.Context(), &got, "policy"); err != nil || !drained {
		t.Fatal(drained, err)
	}
	before := *n.Snapshot().Instance(inst.ID)
	n.stop()
	n = start(t, options{dir: dir})
	after := *n.until(t, func(s *registry.Snapshot) bool { return s.Len() == 1 }).Instance(inst.ID)
	if !equalRecords(before, after) {
		t.Errorf("after a restart %+v, before %+v", after, before)
	}
	if !after.Measured || !after.IPv6 || after.Drain.Reason != "policy" || after.Policy().Restrict || after.Binding != ratls.BindingCertificate || after.Addr != got.Addr {
		t.Errorf("%+v", after)
	}
}

func TestTheAddressOfIPv6EndsWithThatOfIPv4(t *testing.T) {
	prefix := netip.MustParsePrefix("fd12:3456:789a::1/64")
	asked := registry.Instance{IPv6: true, Addr: netip.MustParseAddr("10.0.1.2")}
	for _, row := range []struct {
		name   string
		inst   registry.Instance
		prefix netip.Prefix
		want   netip.Addr
	}{
		{"asked", asked, prefix, netip.MustParseAddr("fd12:3456:789a::a00:102")},
		{"asked, 96 bits", asked, netip.MustParsePrefix("fd00:1:2:3:4:5::/96"), netip.MustParseAddr("fd00:1:2:3:4:5:a00:102")},
		{"asked, no prefix", asked, netip.Prefix{}, netip.Addr{}},
		{"not asked", registry.Instance{Addr: asked.Addr}, prefix, netip.Addr{}},
		{"no address yet", registry.Instance{IPv6: true}, prefix, netip.Addr{}},
	} {
		if got := row.inst.Addr6(row.prefix); got != row.want {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
}

func TestMeasuredPortsCountForTheirCodeAlone(t *testing.T) {
	n := start(t, options{})
	inst := instance(1, 0)
	inst.Ports = &registry.PortPolicy{}
	n.register(t, inst)
	ports := func() *registry.PortPolicy { return n.Snapshot().Instance(inst.ID).Ports }
	set := func(compose registry.ComposeHash, measured bool) {
		t.Helper()
		if err := n.SetMeasuredPorts(t.Context(), inst.ID, compose, narrow, measured); err != nil {
			t.Fatal(err)
		}
	}
	set(registry.ComposeHash{9}, true)
	set(inst.Compose, false) // less than what was reported
	if ports().Restrict {
		t.Error("replaced by what is of another code, or not measured")
	}
	set(inst.Compose, true)
	n.register(t, inst)
	if !ports().Restrict {
		t.Error("what was measured does not survive what is reported")
	}
	inst.Compose = registry.ComposeHash{9}
	n.register(t, inst)
	if ports().Restrict {
		t.Error("what was measured of the old code counts for the new")
	}
}

// TestWhoWasJudgedIsWhoDrains registers between the judgement and its consequence.
func TestWhoWasJudgedIsWhoDrains(t *testing.T) {
	n := start(t, options{})
	judged := n.register(t, instance(1, 0))
	next := instance(1, 0)
	next.Key = instance(2, 7).Key
	n.register(t, next)
	if drained, err := n.Drain(t.Context(), &judged, "policy"); err != nil || drained {
		t.Errorf("drained %t, error %v", drained, err)
	}
	if n.Snapshot().Instance(judged.ID).Draining() {
		t.Error("somebody else drains")
	}
	for _, want := range []bool{true, false} {
		now := *n.Snapshot().Instance(judged.ID)
		if drained, err := n.Drain(t.Context(), &now, "policy"); err != nil || drained != want {
			t.Errorf("drained %t, error %v, want %t", drained, err, want)
		}
	}
	if again := n.register(t, next); again.Draining() {
		t.Error("drains although it was taken again")
	}
}

func TestChangesOfWhatIsNotThere(t *testing.T) {
	n := start(t, options{})
	inst := instance(1, 0)
	_, err := n.Drain(t.Context(), &inst, "policy")
	wantError(t, err, store.ErrNotFound)
	wantError(t, n.SetOverride(t.Context(), inst.ID, nil), store.ErrNotFound)
	_, err = n.RemoveIf(t.Context(), inst.ID, func(*registry.Instance) bool { return true })
	wantError(t, err, store.ErrNotFound)
	n.register(t, inst)
	wantError(t, n.SetOverride(t.Context(), inst.ID, &registry.PortPolicy{Ports: []registry.Port{{}}}), registry.ErrInvalid)
	if removed, err := n.RemoveIf(t.Context(), inst.ID, func(*registry.Instance) bool { return false }); removed || err != nil || n.Snapshot().Len() != 1 {
		t.Errorf("removed %t, error %v", removed, err)
	}
}

// TestChangesAtTheSameTimeAreAllMade has many writers of one record.
func TestChangesAtTheSameTimeAreAllMade(t *testing.T) {
	n := start(t, options{now: func() time.Time { return time.Unix(1700000000, 0) }})
	inst := instance(1, 0)
	inst.Ports = nil
	got := n.register(t, inst)
	var wg sync.WaitGroup
	for _, change := range []func() error{
		func() error { return n.SetOverride(t.Context(), inst.ID, narrow) },
		func() error { return n.SetMeasuredPorts(t.Context(), inst.ID, inst.Compose, narrow, true) },
		func() error { _, err := n.Drain(t.Context(), &got, "policy"); return err },
	} {
		wg.Go(func() {
			if err := change(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if now := n.Snapshot().Instance(inst.ID); now.Override == nil || !now.Measured || !now.Draining() {
		t.Errorf("%+v", now)
	}
}
