package enroll_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// reviewed is a review of a world with a clock.
type reviewed struct {
	*enroll.Review
	*clock
	metrics    *prometheus.Registry
	handshakes func(*registry.Instance) time.Time
}

func (w *world) review(t testing.TB, change ...func(*enroll.ReviewConfig)) *reviewed {
	t.Helper()
	r := &reviewed{clock: newClock(), metrics: prometheus.NewRegistry(), handshakes: func(*registry.Instance) time.Time { return time.Time{} }}
	c := enroll.ReviewConfig{
		Enroll: w.config, Registry: w.registry, Handshake: func(i *registry.Instance) time.Time { return r.handshakes(i) },
		Interval: time.Minute, Drain: time.Minute, Stale: 10 * time.Hour, Metrics: r.metrics, Now: r.Now,
	}
	for _, f := range change {
		f(&c)
	}
	r.Review = must(enroll.NewReview(c))(t)
	return r
}

// TestWhoWouldBeRefusedNowDrainsAndIsRemoved registers one guest of each kind, and changes what it is judged by.
func TestWhoWouldBeRefusedNowDrainsAndIsRemoved(t *testing.T) {
	for _, row := range []struct {
		name   string
		kms    bool
		change func(*testing.T, *world, *enroll.Config)
		reason string // "" stays
	}{
		{"nothing changed", false, func(*testing.T, *world, *enroll.Config) {}, ""},
		{"nothing changed, KMS", true, func(*testing.T, *world, *enroll.Config) {}, ""},
		{"machine revoked", false, func(t *testing.T, w *world, c *enroll.Config) {
			c.Verifier = w.verifier(t, w.vendor.Faulty(simtdx.Faults{RevokedMachine: w.host}))
		}, "bad_quote"},
		{"Platform CA revoked", false, func(t *testing.T, w *world, c *enroll.Config) {
			c.Verifier = w.verifier(t, w.vendor.Faulty(simtdx.Faults{RevokedPlatformCA: true}))
		}, "bad_quote"},
		{"collateral away", false, func(t *testing.T, w *world, c *enroll.Config) {
			c.Verifier = w.verifier(t, ratls.GetterFunc(func(context.Context, string) (http.Header, []byte, error) { return nil, nil, errors.New("away") }))
		}, ""},
		{"policy", false, func(_ *testing.T, _ *world, c *enroll.Config) {
			c.Appraise = ratls.Pins{AppIDs: []ratls.Hex{make([]byte, 20)}}.Judge
		}, "policy"},
		{"policy, KMS", true, func(_ *testing.T, _ *world, c *enroll.Config) {
			c.Appraise = ratls.Pins{AppIDs: []ratls.Hex{make([]byte, 20)}}.Judge
		}, "policy"},
		{"webhook", true, func(_ *testing.T, _ *world, c *enroll.Config) {
			c.Authorize = func(context.Context, ratls.AppInfo) error { return fmt.Errorf("webhook: %w", enroll.ErrDenied) }
		}, "not_authorized"},
		{"webhook away", true, func(_ *testing.T, _ *world, c *enroll.Config) {
			c.Authorize = func(context.Context, ratls.AppInfo) error { return errors.New("away") }
		}, ""},
		{"KMS not trusted any more", true, func(_ *testing.T, _ *world, c *enroll.Config) { c.KMSRoot = nil }, "no_identity"},
		{"KMS not trusted any more, quote", false, func(_ *testing.T, _ *world, c *enroll.Config) { c.KMSRoot = nil }, ""},
		{"quotes required", true, func(_ *testing.T, _ *world, c *enroll.Config) { c.Evidence = enroll.EvidenceRequired }, "bad_evidence"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t)
			td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
			cert := attested(t, td)
			if row.kms {
				cert = w.kms.guest(t, fromKMS(t, td))
			}
			first := register(t, w.at, cert, body(key))
			find := func() *registry.Instance { return w.registry.Snapshot().Instance(idOf(t, td).ID) }
			r := w.review(t, func(c *enroll.ReviewConfig) { row.change(t, w, &c.Enroll) })
			r.Judge(t.Context())
			if got := find().Drain.Reason; got != row.reason {
				t.Fatalf("drains for %q, want %q", got, row.reason)
			}
			r.Sweep(t.Context())
			if find() == nil {
				t.Fatal("removed before its connections had time to end")
			}
			if row.reason == "" {
				return
			}
			// It registers at a gateway that takes it: all is well again.
			if a := register(t, w.at, cert, body(key)); a.status != http.StatusOK || a.body != first.body || find().Draining() {
				t.Errorf("%d %s, drain %v", a.status, a.body, find().Drain)
			}
			r.Judge(t.Context())
			r.add(time.Minute + time.Second)
			r.Sweep(t.Context())
			if find() != nil {
				t.Error("not removed")
			}
			want := fmt.Sprintf("# TYPE dstack_gateway_instances gauge\ndstack_gateway_instances 0\n# TYPE dstack_gateway_instances_drained_total counter\ndstack_gateway_instances_drained_total{reason=%q} 2\n# TYPE dstack_gateway_instances_removed_total counter\ndstack_gateway_instances_removed_total{reason=%[1]q} 1\n", row.reason)
			help := strings.NewReplacer("# TYPE dstack_gateway_instances gauge", "# HELP dstack_gateway_instances Registered instances.\n# TYPE dstack_gateway_instances gauge",
				"# TYPE dstack_gateway_instances_drained", "# HELP dstack_gateway_instances_drained_total Registered instances that get no new connections any more, by reason.\n# TYPE dstack_gateway_instances_drained",
				"# TYPE dstack_gateway_instances_removed", "# HELP dstack_gateway_instances_removed_total Instances that were removed from the registry, by reason.\n# TYPE dstack_gateway_instances_removed")
			if err := testutil.GatherAndCompare(r.metrics, strings.NewReader(help.Replace(want))); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestATCBThatIsNotAcceptedAnyMoreDrains registers a platform that is out of date while that is accepted, and is judged when it is not.
func TestATCBThatIsNotAcceptedAnyMoreDrains(t *testing.T) {
	w := newWorld(t)
	old := must(w.vendor.Machine(simtdx.MachineOptions{Name: "old", Platform: ratls.StatusOutOfDate}))(t)
	td := must(old.Boot(simtdx.VM{AppCompose: "{}"}))(t)
	lenient := must(ratls.NewVerifier(ratls.VerifierConfig{
		Root: w.vendor.Root(), Getter: w.vendor.Getter(), Policy: ratls.Policy{AcceptedTCB: []string{ratls.StatusUpToDate, ratls.StatusOutOfDate}},
	}))(t)
	cert, key := attested(t, td), newKey()
	w.unchanged(t, func() answer { return register(t, w.at, cert, body(key)) }, http.StatusBadRequest, "OutOfDate")
	at := w.serve(t, func(c *enroll.Config) { c.Verifier = lenient })
	if a := register(t, at, cert, body(key)); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	find := func() *registry.Instance { return w.registry.Snapshot().Instance(idOf(t, td).ID) }
	w.review(t, func(c *enroll.ReviewConfig) { c.Enroll.Verifier = lenient }).Judge(t.Context())
	if find().Draining() {
		t.Fatal("drains although its TCB is accepted")
	}
	w.review(t).Judge(t.Context())
	if got := find().Drain.Reason; got != "bad_quote" {
		t.Errorf("drains for %q", got)
	}
}

// TestARefusedRefreshDrains is the same by the other way: the instance comes back, and hears no.
func TestARefusedRefreshDrains(t *testing.T) {
	w := newWorld(t)
	var denied atomic.Bool
	r := w.review(t)
	at := w.serve(t, func(c *enroll.Config) {
		c.Authorize = func(context.Context, ratls.AppInfo) error {
			if denied.Load() {
				return enroll.ErrDenied
			}
			return nil
		}
		c.Refused = func(ctx context.Context, inst *registry.Instance, reason string) {
			r.Refuse(ctx, inst, reason, errors.New("test"))
		}
	})
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	cert := attested(t, td)
	register(t, at, cert, body(key))
	denied.Store(true)
	stranger := w.boot(t, simtdx.VM{AppCompose: `{"name":"other"}`})
	register(t, at, attested(t, stranger), body(newKey()))
	for range 2 {
		if a := register(t, at, cert, body(key)); a.status != http.StatusBadRequest {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	inst := w.registry.Snapshot().Instance(idOf(t, td).ID)
	if inst == nil || inst.Drain.Reason != "not_authorized" || w.registry.Snapshot().Len() != 1 {
		t.Fatalf("%+v", inst)
	}
}

func TestWhoIsNotHeardOfIsForgotten(t *testing.T) {
	w := newWorld(t)
	td := w.boot(t, simtdx.VM{AppCompose: "{}"})
	register(t, w.at, attested(t, td), body(newKey()))
	there := func() bool { return w.registry.Snapshot().Instance(idOf(t, td).ID) != nil }
	r := w.review(t)
	start := r.Now()
	for _, step := range []struct {
		name      string
		add       time.Duration
		handshake time.Duration // after the start; 0 never
		there     bool
	}{
		{"registered a while ago", 10 * time.Hour, 0, true},
		{"handshake lately", time.Hour, 2 * time.Hour, true},
		{"handshake just lately enough", time.Hour, 2 * time.Hour, true},
		{"handshake too long ago", time.Second, 2 * time.Hour, false},
	} {
		r.add(step.add)
		r.handshakes = func(*registry.Instance) time.Time {
			if step.handshake == 0 {
				return time.Time{}
			}
			return start.Add(step.handshake)
		}
		r.Sweep(t.Context())
		if there() != step.there {
			t.Errorf("%s: there %t", step.name, there())
		}
	}
}

// TestAStartedProcessKnowsNothingOfHandshakesBefore registers long ago, and starts now.
func TestAStartedProcessKnowsNothingOfHandshakesBefore(t *testing.T) {
	w := newWorld(t)
	td := w.boot(t, simtdx.VM{AppCompose: "{}"})
	register(t, w.at, attested(t, td), body(newKey()))
	late := newClock()
	late.add(20 * time.Hour)
	r := w.review(t, func(c *enroll.ReviewConfig) { c.Now = late.Now })
	r.Sweep(t.Context())
	late.add(10 * time.Hour)
	r.Sweep(t.Context())
	if w.registry.Snapshot().Len() != 1 {
		t.Fatal("forgotten within ten hours of the start")
	}
	late.add(time.Second)
	r.Sweep(t.Context())
	if w.registry.Snapshot().Len() != 0 {
		t.Error("still there")
	}
}

// TestAReviewRuns lets it find by itself what has to go.
func TestAReviewRuns(t *testing.T) {
	w := newWorld(t)
	td := w.boot(t, simtdx.VM{AppCompose: "{}"})
	register(t, w.at, attested(t, td), body(newKey()))
	r := w.review(t, func(c *enroll.ReviewConfig) {
		c.Enroll.Appraise = func(*ratls.Quote, ratls.AppInfo) error { return errors.New("no") }
	})
	run(t, r.Run)
	deadline := time.After(patience)
	for changed := w.registry.Changed(); !w.registry.Snapshot().Instance(idOf(t, td).ID).Draining(); changed = w.registry.Changed() {
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("does not drain")
		}
	}
}

func TestAReviewNeedsEverything(t *testing.T) {
	w := newWorld(t)
	full := enroll.ReviewConfig{Enroll: w.config, Registry: w.registry, Handshake: func(*registry.Instance) time.Time { return time.Time{} }, Interval: 1, Stale: 1}
	for name, change := range map[string]func(*enroll.ReviewConfig){
		"registry":   func(c *enroll.ReviewConfig) { c.Registry = nil },
		"handshakes": func(c *enroll.ReviewConfig) { c.Handshake = nil },
		"verifier":   func(c *enroll.ReviewConfig) { c.Enroll.Verifier = nil },
		"interval":   func(c *enroll.ReviewConfig) { c.Interval = 0 },
		"stale":      func(c *enroll.ReviewConfig) { c.Stale = 0 },
		"drain":      func(c *enroll.ReviewConfig) { c.Drain = -1 },
	} {
		c := full
		change(&c)
		if _, err := enroll.NewReview(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := enroll.NewReview(full); err != nil {
		t.Error(err)
	}
}
