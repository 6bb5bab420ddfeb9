package enroll_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/registry"
	"dstack.host/gateway/store"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long anything may take before a test gives up.
const patience = 30 * time.Second

// world is a gateway's registration with everything around it: a registry on an etcd of its own, a vendor of TDX hosts,
// and a KMS.
type world struct {
	vendor   *simtdx.Authority
	host     *simtdx.Machine
	kms      *kms
	store    *store.Store
	registry *registry.Registry
	config   enroll.Config  // of its servers
	at       netip.AddrPort // of the first one
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{kms: newKMS(t)}
	w.vendor = must(simtdx.New(simtdx.Options{}))(t)
	w.host = must(w.vendor.Machine(simtdx.MachineOptions{Name: "host"}))(t)
	w.store = must(store.Open(t.Context(), store.Config{DataDir: t.TempDir(), Key: store.Key{1}, ClusterID: "test"}))(t)
	t.Cleanup(func() {
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
	})
	w.registry = w.newRegistry(t, must(tunnel.NewPool(netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("10.77.0.1/32")))(t))
	certificate := w.gatewayCertificate(t)
	w.config = enroll.Config{
		Listen: netip.MustParseAddrPort("127.0.0.1:0"), Certificate: &certificate, KMSRoot: w.kms.root.Leaf, Verifier: w.verifier(t, w.vendor.Getter()),
		Register: w.registry.Register, Current: func(id registry.InstanceID) *registry.Instance { return w.registry.Snapshot().Instance(id) },
		Servers: []enroll.TunnelServer{{Key: gatewayKey, Address: netip.MustParsePrefix("10.77.0.1/24"), Endpoint: "203.0.113.5:51820"}},
		Agent:   enroll.AgentInfo{ExternalPort: 443, InternalPort: 8090, Domain: "apps.example.com", AppAddressNSPrefix: "_dstack-app-address"},
		Version: "v1.2.3 (test)",
	}
	w.at = w.serve(t)
	return w
}

var gatewayKey = tunnel.NewPrivateKey().PublicKey()

// newRegistry runs a registry on the world's store until the test ends.
func (w *world) newRegistry(t testing.TB, pool registry.Pool) *registry.Registry {
	t.Helper()
	r := must(registry.New(registry.Config{Store: w.store, Pool: pool}))(t)
	run(t, r.Run)
	return r
}

// gatewayCertificate is what the KMS gives a gateway that runs in a TD: with a quote, and a name to check.
func (w *world) gatewayCertificate(t testing.TB) tls.Certificate {
	t.Helper()
	td := w.boot(t, simtdx.VM{AppCompose: `{"name":"gateway"}`})
	info := must(td.Info())(t)
	return must(ratls.NewCertificate(t.Context(), td, ratls.CertOptions{
		Names: []string{"127.0.0.1"}, AppID: info.AppID, AppUsage: "app:custom", Parent: w.kms.appCA(t, info.AppID),
	}))(t)
}

func (w *world) verifier(t testing.TB, getter ratls.Getter) *ratls.Verifier {
	t.Helper()
	cache := ratls.NewCache(ratls.CacheConfig{Getter: getter, Hosts: append(ratls.IntelHosts(), simtdx.Host)})
	return must(ratls.NewVerifier(ratls.VerifierConfig{Root: w.vendor.Root(), Getter: cache}))(t)
}

// serve runs a server of the world's configuration, with a change, until the test ends.
func (w *world) serve(t testing.TB, change ...func(*enroll.Config)) netip.AddrPort {
	t.Helper()
	c := w.config
	for _, f := range change {
		f(&c)
	}
	s := must(enroll.New(c))(t)
	run(t, s.Run)
	return s.Addr()
}

func (w *world) boot(t testing.TB, vm simtdx.VM) *simtdx.TD {
	t.Helper()
	return must(w.host.Boot(vm))(t)
}

// run runs a task until the test ends, and waits for it.
func run(t testing.TB, task func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- task(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// must ends the test if making a value failed.
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// state is everything that a registration could change: what is stored, and what the registry shows.
type state struct {
	Stored    map[string]string // by path
	Revision  int64             // of etcd: any write moves it
	Instances map[string]string // by id
}

func (w *world) state(t testing.TB) state {
	t.Helper()
	entries, revision, err := w.store.List(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	s := state{Stored: map[string]string{}, Revision: revision, Instances: map[string]string{}}
	for _, e := range entries {
		s.Stored[e.Path] = fmt.Sprintf("revision %d: %s", e.Revision, e.Value)
	}
	for inst := range w.registry.Snapshot().Instances() {
		s.Instances[inst.ID.String()] = string(must(json.Marshal(inst))(t))
	}
	return s
}

// unchanged does something that must not register, nor lose, anything. Every hostile row goes through here.
func (w *world) unchanged(t testing.TB, do func() answer, status int, text string) {
	t.Helper()
	before := w.state(t)
	a := do()
	if a.status != status || !strings.Contains(a.reason(t), text) {
		t.Errorf("answer %d %s\nwant %d, and in it %q", a.status, a.body, status, text)
	}
	if diff := cmp.Diff(before, w.state(t)); diff != "" {
		t.Errorf("something changed (-before +after):\n%s", diff)
	}
}

// session is one TLS connection to a registration server.
type session struct {
	conn *tls.Conn
	in   *bufio.Reader
}

// dial connects with a certificate; the zero one is none.
func dial(t testing.TB, at netip.AddrPort, certificate tls.Certificate, change ...func(*tls.Config)) *session {
	t.Helper()
	c := &tls.Config{InsecureSkipVerify: true} // who the server is, is the agent's test
	if certificate.Certificate != nil {
		c.Certificates = []tls.Certificate{certificate}
	}
	for _, f := range change {
		f(c)
	}
	conn := must(tls.Dial("tcp", at.String(), c))(t)
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &session{conn, bufio.NewReader(conn)}
}

// challenge is what evidence for this session has to answer.
func (s *session) challenge(t testing.TB) string {
	t.Helper()
	state := s.conn.ConnectionState()
	return hex.EncodeToString(must(state.ExportKeyingMaterial(agent.ExporterLabel, nil, agent.ExporterSize))(t))
}

// answer is a response, read whole.
type answer struct {
	status int
	header http.Header
	body   string
}

// reason is the text of an error, which has to be in prpc's form.
func (a answer) reason(t testing.TB) string {
	t.Helper()
	if a.status == http.StatusOK {
		return a.body
	}
	var e map[string]string
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || len(e) != 1 {
		t.Errorf("error body %q: %v", a.body, err)
	}
	return e["error"]
}

// send writes one request and reads its answer. A server may answer, and hang up, before it has read everything.
func (s *session) send(t testing.TB, method, path, header, body string) answer {
	t.Helper()
	if header == "" {
		header = fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	_, written := fmt.Fprintf(s.conn, "%s %s HTTP/1.1\r\nHost: gateway\r\n%s\r\n%s", method, path, header, body)
	res, err := http.ReadResponse(s.in, &http.Request{Method: method})
	if err != nil {
		t.Fatal(errors.Join(err, written))
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(text)}
}

// register sends a body the way dstack's guests do.
func (s *session) register(t testing.TB, body string) answer {
	t.Helper()
	return s.send(t, "POST", "/prpc/RegisterCvm?json", "", body)
}

// register is one registration on a connection of its own.
func register(t testing.TB, at netip.AddrPort, certificate tls.Certificate, body string) answer {
	t.Helper()
	s := dial(t, at, certificate)
	defer s.conn.Close()
	return s.register(t, body)
}

// body is a request of a guest that reports an open port policy.
func body(key tunnel.PublicKey) string {
	return fmt.Sprintf(`{"client_public_key":"%s","port_policy":{"ports":[],"restrict_mode":false}}`, key)
}

// withEvidence is a request with evidence.
func withEvidence(key tunnel.PublicKey, evidence string) string {
	return fmt.Sprintf(`{"client_public_key":"%s","port_policy":{"ports":[],"restrict_mode":false},"evidence":%s}`, key, evidence)
}

func newKey() tunnel.PublicKey { return tunnel.NewPrivateKey().PublicKey() }
