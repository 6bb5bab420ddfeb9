package enroll_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// withQuote is the second certificate of a guest: for the same key as the first one, with a quote over it.
func (k *kms) withQuote(t testing.TB, td *simtdx.TD, first tls.Certificate) tls.Certificate {
	t.Helper()
	info := fromKMS(t, td)
	return leafFor(t, first.PrivateKey.(*ecdsa.PrivateKey), k.appCA(t, info.AppID), func(spki []byte) []pkix.Extension {
		a := attestation(t, td, ratls.TaggedReportData(ratls.TagCertificate, spki))
		return []pkix.Extension{
			ext(t, 3, info.AppID), ext(t, 4, []byte("app:custom")), ext(t, 8, must(a.MarshalBinary())(t)), ext(t, 9, shortInfo(t, info)),
		}
	})
}

const wantsQuote = "no attestation provided"

// TestTheQuoteThatThisGatewayWants walks a guest of the KMS through each want: what its first certificate gets, what the second, and
// how the refreshes after it go.
func TestTheQuoteThatThisGatewayWants(t *testing.T) {
	w := newWorld(t)
	for _, row := range []struct {
		want                 enroll.Evidence
		hasQuote             bool
		first, second, again string // what is refused; "" for a registration
		identity             string
	}{
		{enroll.EvidenceOff, true, "", "", "", "ratls-v0"},
		{enroll.EvidenceOff, false, "", "", "", "kms-app-info"},
		{enroll.EvidencePreferred, true, wantsQuote, "", "", "ratls-v0"},
		{enroll.EvidencePreferred, false, wantsQuote, "", "", "kms-app-info"},
		{enroll.EvidenceRequired, true, wantsQuote, "", "", "ratls-v0"},
		{enroll.EvidenceRequired, false, wantsQuote, wantsQuote, wantsQuote, ""},
	} {
		t.Run(fmt.Sprintf("%q, has one %t", row.want, row.hasQuote), func(t *testing.T) {
			at := w.serve(t, func(c *enroll.Config) { c.Evidence = row.want })
			td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
			first := w.kms.guest(t, fromKMS(t, td))
			second := first
			if row.hasQuote {
				second = w.kms.withQuote(t, td, first)
			}
			for i, step := range []struct {
				cert   tls.Certificate
				refuse string
			}{{first, row.first}, {second, row.second}, {first, row.again}, {first, row.again}} {
				a := register(t, at, step.cert, body(key))
				if step.refuse == "" && a.status != http.StatusOK || step.refuse != "" && (a.status != http.StatusBadRequest || !strings.Contains(a.body, step.refuse)) {
					t.Errorf("certificate %d: %d %s, want %q", i+1, a.status, a.body, step.refuse)
				}
			}
			got := ""
			if inst := w.registry.Snapshot().Instance(idOf(t, td).ID); inst != nil {
				got = inst.Identity
			}
			if got != row.identity {
				t.Errorf("registered with %q, want %q", got, row.identity)
			}
		})
	}
}

// TestAnotherKeyNeedsItsOwnQuote is a reboot: what was shown for the old key says nothing of the new.
func TestAnotherKeyNeedsItsOwnQuote(t *testing.T) {
	w := newWorld(t)
	at := w.serve(t, func(c *enroll.Config) { c.Evidence = enroll.EvidenceRequired })
	td := w.boot(t, simtdx.VM{AppCompose: "{}"})
	first := w.kms.guest(t, fromKMS(t, td))
	if a := register(t, at, w.kms.withQuote(t, td, first), body(newKey())); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	w.unchanged(t, func() answer { return register(t, at, first, body(newKey())) }, http.StatusBadRequest, wantsQuote)
}

// hook is a webhook that answers what it is told to.
type hook struct {
	mu     sync.Mutex
	status int
	got    []string
}

func (h *hook) set(status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = status
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	text, _ := io.ReadAll(r.Body)
	h.got = append(h.got, r.Method+" "+r.Header.Get("Content-Type")+" "+string(text))
	if h.status/100 == 3 {
		w.Header().Set("Location", "/else")
		if r.URL.Path == "/else" {
			h.status = http.StatusNoContent
		}
	}
	w.WriteHeader(h.status)
}

func TestTheWebhookDecides(t *testing.T) {
	w := newWorld(t)
	h := &hook{status: http.StatusOK}
	server := httptest.NewServer(h)
	defer server.Close()
	client := server.Client()
	defer client.CloseIdleConnections()
	type told struct {
		ID     registry.InstanceID
		Reason string
	}
	var refused []told
	at := w.serve(t, func(c *enroll.Config) {
		c.Authorize = enroll.Webhook(server.URL, client)
		c.Refused = func(_ context.Context, inst *registry.Instance, reason string) {
			refused = append(refused, told{inst.ID, reason})
		}
	})
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	cert := attested(t, td)
	if a := register(t, at, cert, body(key)); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	i := w.registry.Snapshot().Instance(idOf(t, td).ID).Info
	want := fmt.Sprintf(`POST application/json {"app_id":"%x","compose_hash":"%x","instance_id":"%x","device_id":"%x","mr_system":"%x","mr_aggregated":"%x","os_image_hash":"%x","key_provider_info":"%x","init_script_hashes":null}`,
		[]byte(i.AppID), []byte(i.ComposeHash), []byte(i.InstanceID), []byte(i.DeviceID), []byte(i.MRSystem), []byte(i.MRAggregated), []byte(i.OSImageHash), []byte(i.KeyProviderInfo))
	if diff := cmp.Diff([]string{want}, h.got); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	for _, status := range []int{http.StatusCreated, http.StatusNoContent, http.StatusTemporaryRedirect} {
		h.set(status)
		if a := register(t, at, cert, body(key)); a.status != http.StatusOK {
			t.Errorf("with %d: %d %s", status, a.status, a.body)
		}
	}
	stranger := attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	h.set(http.StatusInternalServerError) // it is broken: nothing is known
	w.unchanged(t, func() answer { return register(t, at, stranger, body(newKey())) }, http.StatusServiceUnavailable, "App authorization failed: ")
	w.unchanged(t, func() answer { return register(t, at, cert, body(key)) }, http.StatusServiceUnavailable, "500")
	if len(refused) > 0 {
		t.Errorf("a broken webhook ended %v", refused)
	}
	h.set(http.StatusForbidden)
	w.unchanged(t, func() answer { return register(t, at, stranger, body(newKey())) }, http.StatusBadRequest, "App authorization failed: ")
	w.unchanged(t, func() answer { return register(t, at, cert, body(key)) }, http.StatusBadRequest, "denied: 403 Forbidden")
	if diff := cmp.Diff([]told{{idOf(t, td).ID, "not_authorized"}}, refused); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
	server.Close()
	w.unchanged(t, func() answer { return register(t, at, cert, body(key)) }, http.StatusServiceUnavailable, "App authorization failed: ")
}

// clock is a time that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestRegistrationsAreLimited(t *testing.T) {
	w := newWorld(t)
	td, key, other := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey(), w.boot(t, simtdx.VM{AppCompose: "{}"})
	cert, otherCert, otherKey := attested(t, td), attested(t, other), newKey()
	t.Run("instance", func(t *testing.T) {
		c := newClock()
		at := w.serve(t, func(s *enroll.Config) { s.PerInstance, s.Now = enroll.Rate{Interval: time.Minute, Burst: 2}, c.Now })
		for range 2 {
			if a := register(t, at, cert, body(key)); a.status != http.StatusOK {
				t.Fatal(a.body)
			}
		}
		w.unchanged(t, func() answer { return register(t, at, cert, body(key)) }, http.StatusTooManyRequests, "too many registrations: more registrations of one instance than one every 1m0s")
		if a := register(t, at, otherCert, body(otherKey)); a.status != http.StatusOK {
			t.Errorf("another instance: %s", a.body)
		}
		c.add(time.Minute)
		w.unchanged(t, func() answer { return register(t, at, cert, body(key)) }, http.StatusOK, "client_ip")
		w.unchanged(t, func() answer { return register(t, at, cert, body(key)) }, http.StatusTooManyRequests, "try again later")
	})
	t.Run("source", func(t *testing.T) {
		c := newClock()
		at := w.serve(t, func(s *enroll.Config) { s.PerSource, s.Now = enroll.Rate{Interval: time.Second, Burst: 1}, c.Now })
		w.unchanged(t, func() answer { return register(t, at, cert, body(key)) }, http.StatusOK, "client_ip")
		w.unchanged(t, func() answer { return register(t, at, otherCert, body(otherKey)) }, http.StatusTooManyRequests, "more registrations of one source")
		w.unchanged(t, func() answer { return register(t, at, tls.Certificate{}, "") }, http.StatusTooManyRequests, "more registrations of one source")
		c.add(time.Second)
		w.unchanged(t, func() answer { return register(t, at, otherCert, body(otherKey)) }, http.StatusOK, "client_ip")
	})
}

// TestALimiterForgetsNobodyWhoStillHasToWait fills one up.
func TestALimiterForgetsNobodyWhoStillHasToWait(t *testing.T) {
	c := newClock()
	take := enroll.NewLimiter(enroll.Rate{Interval: time.Second, Burst: 1}, c.Now)
	first := netip.MustParsePrefix("10.0.0.1/32")
	for n := range enroll.MaxLimited {
		if err := take(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 32)); err != nil {
			t.Fatal(n, err)
		}
	}
	if take(first) == nil || take(netip.MustParsePrefix("11.0.0.1/32")) == nil {
		t.Error("a full limiter took one more")
	}
	c.add(time.Second)
	if err := errors.Join(take(first), take(netip.MustParsePrefix("11.0.0.1/32"))); err != nil {
		t.Error(err)
	}
}

// TestWhatWasVerifiedIsNotVerifiedAgainForAWhile counts what a refresh costs, and holds when it costs all of it.
func TestWhatWasVerifiedIsNotVerifiedAgainForAWhile(t *testing.T) {
	w := newWorld(t)
	c := newClock()
	var asked atomic.Int64
	var revoked atomic.Bool
	good, bad := w.vendor.Getter(), w.vendor.Faulty(simtdx.Faults{RevokedMachine: w.host})
	getter := ratls.GetterFunc(func(ctx context.Context, url string) (http.Header, []byte, error) {
		asked.Add(1)
		if revoked.Load() {
			return bad.Get(ctx, url)
		}
		return good.Get(ctx, url)
	})
	verifier := must(ratls.NewVerifier(ratls.VerifierConfig{Root: w.vendor.Root(), Getter: getter}))(t)
	at := w.serve(t, func(s *enroll.Config) { s.Now, s.Verifier = c.Now, verifier })
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	cert := attested(t, td)
	if a := register(t, at, cert, body(key)); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	before := asked.Load()
	for range 3 {
		w.unchanged(t, func() answer { return register(t, at, cert, body(key)) }, http.StatusOK, "client_ip")
	}
	if now := asked.Load(); now != before {
		t.Errorf("three refreshes asked for collateral %d times", now-before)
	}
	revoked.Store(true)
	w.unchanged(t, func() answer { return register(t, at, cert, body(newKey())) }, http.StatusBadRequest, "invalid quote: pck-revocation") // a new key is no refresh
	w.unchanged(t, func() answer { return register(t, at, cert, body(key)) }, http.StatusOK, "client_ip")
	c.add(enroll.VerdictLife + time.Second)
	w.unchanged(t, func() answer { return register(t, at, cert, body(key)) }, http.StatusBadRequest, "invalid quote: pck-revocation")
}

// TestTheIdentityIsCounted reads the series.
func TestTheIdentityIsCounted(t *testing.T) {
	w := newWorld(t)
	metrics := prometheus.NewRegistry()
	at := w.serve(t, func(c *enroll.Config) { c.Metrics = metrics })
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	for range 2 {
		register(t, at, attested(t, td), body(key))
	}
	other := w.boot(t, simtdx.VM{AppCompose: "{}"})
	register(t, at, w.kms.guest(t, fromKMS(t, other)), body(newKey()))
	register(t, at, tls.Certificate{}, "")
	const want = `
# HELP dstack_gateway_registration_refusals_total Registrations that were refused or could not be done, by reason.
# TYPE dstack_gateway_registration_refusals_total counter
dstack_gateway_registration_refusals_total{reason="no_identity"} 1
# HELP dstack_gateway_registrations_total Registrations by the proof that the identity rests on, and whether they changed anything.
# TYPE dstack_gateway_registrations_total counter
dstack_gateway_registrations_total{identity="kms-app-info",result="changed"} 1
dstack_gateway_registrations_total{identity="ratls-v0",result="changed"} 1
dstack_gateway_registrations_total{identity="ratls-v0",result="unchanged"} 1
`
	if err := testutil.GatherAndCompare(metrics, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
