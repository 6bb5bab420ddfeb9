package attest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dstack.host/gateway/attest"
	"dstack.host/gateway/certs"
	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

const (
	base = "dstack.host"
	own  = "gateway." + base
)

// platform counts quotes, and with a gate holds each until it is let through.
type platform struct {
	*simtdx.TD
	quotes atomic.Int64
	began  chan struct{} // told of each quote that begins, when not nil
	gate   chan struct{}
}

func (p *platform) Quote(ctx context.Context, data ratls.ReportData) ([]byte, error) {
	p.quotes.Add(1)
	if p.gate != nil {
		p.began <- struct{}{}
		<-p.gate
	}
	return p.TD.Quote(ctx, data)
}

// served are certificates that a test changes.
type served struct {
	mu      sync.Mutex
	keys    []certs.Key
	changed chan struct{}
}

func newServed(t testing.TB) *served {
	return &served{keys: []certs.Key{newKey(t)}, changed: make(chan struct{})}
}

func newKey(t testing.TB) certs.Key {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return certs.Key{SPKI: spki, NotAfter: time.Now().Add(time.Hour), Use: "current"}
}

func (s *served) Keys() []certs.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys
}
func (s *served) CAA() []certs.CAA { return nil }
func (s *served) Account() string  { return "" }
func (s *served) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// renew replaces the key.
func (s *served) renew(t testing.TB) {
	key := newKey(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = []certs.Key{key}
	close(s.changed)
	s.changed = make(chan struct{})
}

// nobody is a registry without instances.
type nobody struct{ snapshot *registry.Snapshot }

func (n nobody) Snapshot() *registry.Snapshot { return n.snapshot }
func (n nobody) Changed() <-chan struct{}     { return nil }

// scene is an attester of a gateway without apps.
type scene struct {
	attester *attest.Attester
	platform *platform
	certs    *served
	root     *x509.Certificate
}

func newScene(t testing.TB, latency time.Duration, edit func(*attest.Config, *platform)) *scene {
	t.Helper()
	authority, err := simtdx.New(simtdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	machine, err := authority.Machine(simtdx.MachineOptions{})
	if err != nil {
		t.Fatal(err)
	}
	td, err := machine.Boot(simtdx.VM{AppCompose: "{}", QuoteLatency: latency})
	if err != nil {
		t.Fatal(err)
	}
	getter := ratls.NewCache(ratls.CacheConfig{Getter: authority.Getter(), Hosts: append(ratls.IntelHosts(), simtdx.Host)})
	verifier, err := ratls.NewVerifier(ratls.VerifierConfig{Root: authority.Root(), Getter: getter})
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{platform: &platform{TD: td}, certs: newServed(t), root: authority.Root()}
	c := attest.Config{
		Bases: []string{base}, Node: "test", Validity: time.Minute, NonceInterval: time.Second, NonceBurst: 1000,
		Platform: s.platform, Verifier: verifier, Root: authority.Root(), Certs: s.certs, Registry: nobody{registry.NewSnapshot(1, nil, nil)},
		Dial: func(context.Context, *registry.Instance, uint16) (net.Conn, error) { return nil, net.ErrClosed },
	}
	if edit != nil {
		edit(&c, s.platform)
	}
	if s.attester, err = attest.New(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.attester.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// get asks for a path on the gateway's own name. The answer to an error is that of the proxy.
func (s *scene) get(path string, header ...string) *httptest.ResponseRecorder {
	return s.ask(http.MethodGet, path, header...)
}

// from asks as one of many clients, for a path of a host.
func (s *scene) from(client netip.Prefix, host, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "https://"+host+path, nil)
	r.RemoteAddr = netip.AddrPortFrom(client.Addr(), 1000).String()
	return s.serve(r)
}

func (s *scene) ask(method, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "https://"+own+path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return s.serve(r)
}

func (s *scene) serve(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	proxy.Failing("test", "simulated-tdx", discard, s.attester.Serve).ServeHTTP(w, r)
	return w
}

// verified holds a document to the chain, for the challenge that was sent.
func (s *scene) verified(t testing.TB, document []byte, nonce []byte) {
	t.Helper()
	chain := ratls.Chain{Roots: []ratls.VerifierConfig{{Root: s.root}}}
	report := chain.Verify(context.Background(), document, ratls.Subject{Host: own, SPKI: s.certs.Keys()[0].SPKI, Nonce: nonce})
	if failed, ok := report.Failure(); ok {
		t.Errorf("%s: %s", failed.Name, failed.Detail)
	}
}

// reason is the reason of problem details.
func reason(w *httptest.ResponseRecorder) string {
	var p struct{ Reason string }
	_ = json.Unmarshal(w.Body.Bytes(), &p)
	return p.Reason
}

func wellKnown(query string) string {
	return strings.TrimSuffix(proxy.AttestationPath+"?"+query, "?")
}
