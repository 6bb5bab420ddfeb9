package join_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dstack.host/gateway"
	"dstack.host/gateway/config"
	"dstack.host/gateway/join"
	"dstack.host/gateway/verify"
	"dstack.host/ratls"
	"dstack.host/ratls/guestagent/guestagenttest"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
)

const base = "dstack.localhost" // which resolves to loopback

// world is a whole gateway on loopback, and the vendor of its own and of the CVMs' machines.
type world struct {
	*gateway.Gateway
	vendor *simtdx.Authority
	dir    string
}

// start runs a gateway until the test ends.
func start(t *testing.T, change func(*config.Config)) *world {
	t.Helper()
	dir, loopback := t.TempDir(), netip.MustParseAddr("127.0.0.1")
	vendor, err := gateway.Authority(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.BaseDomains, c.Node, c.DataDir = []string{base}, "test", dir
	c.Attestation.Kind, c.Certs.Issuer = "simulated-tdx", "internal"
	c.Attestation.NonceInterval, c.Attestation.NonceBurst = time.Second, 100
	c.Proxy.Listen, c.Proxy.DrainTimeout = netip.AddrPortFrom(loopback, 0), time.Second
	c.Enroll.Listen, c.Enroll.Names = netip.AddrPortFrom(loopback, 0), []string{"127.0.0.1"}
	c.DNS.Listen, c.DNS.Addresses = []netip.AddrPort{netip.AddrPortFrom(loopback, 0)}, []netip.Addr{loopback}
	c.Tunnel.Device, c.Tunnel.Listen, c.Tunnel.HandshakeInterval = "netstack", netip.AddrPortFrom(loopback, 0), 100*time.Millisecond
	if change != nil {
		change(&c)
	}
	trust, err := gateway.Simulated(vendor, gateway.Policy(c))
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(t.Context(), c, gateway.Parts{Trust: &trust})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-g.Ready():
	case <-time.After(patience):
		t.Fatal("the gateway does not get ready")
	}
	return &world{Gateway: g, vendor: vendor, dir: dir}
}

// url is where the gateway takes registrations.
func (w *world) url() string { return "https://" + w.EnrollAddr().String() }

// authorityFile holds the vendor.
func (w *world) authorityFile() string { return filepath.Join(w.dir, "simulated-tdx.pem") }

// app is the id of the gateway.
func (w *world) app(t *testing.T) ratls.Hex {
	t.Helper()
	trust, err := gateway.Simulated(w.vendor, ratls.Policy{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := trust.Platform.(*simtdx.TD).Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.AppID
}

func (w *world) cas(t *testing.T) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(w.CertificateRootFile())
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatal("no root", err)
	}
	return pool
}

// get fetches what the gateway serves at a URL of an app, once the gateway knows that the tunnel is up.
func (w *world) get(t *testing.T, url string) (int, string) {
	t.Helper()
	for end := time.Now().Add(patience); !w.up(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the gateway has no handshake")
		}
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.cas(t)}, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, w.HTTPSAddr().String())
		},
	}
	answer, err := (&http.Client{Transport: transport, Timeout: patience}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

// up reports whether the tunnels of all instances are.
func (w *world) up() bool {
	for inst := range w.Snapshot().Instances() {
		if !w.TunnelUp(inst.ID) {
			return false
		}
	}
	return true
}

// web is a real web app of this host.
func web(t *testing.T, text string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s for %s", text, r.Host)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// manager is a service manager that a join tells.
type manager struct {
	socket *net.UnixConn
	mu     sync.Mutex
	told   []string // guarded by mu: assignments
	done   chan struct{}
}

func newManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(socketDir(t), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	m := &manager{socket: socket, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		text := make([]byte, 64<<10)
		for {
			n, err := socket.Read(text)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.told = append(m.told, strings.Split(string(text[:n]), "\n")...)
			m.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = socket.Close()
		<-m.done
	})
	return m
}

// until waits for an assignment and returns all until then, a line each.
func (m *manager) until(t *testing.T, assignment string) string {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		m.mu.Lock()
		told := slices.Clone(m.told)
		m.mu.Unlock()
		if slices.Contains(told, assignment) {
			return strings.Join(told, "\n")
		}
		if time.Now().After(end) {
			t.Fatalf("not told %q but %q", assignment, told)
		}
	}
}

// running is a join.
type running struct {
	cancel context.CancelFunc
	done   chan error
	joined chan join.Joined
}

// run starts a join, which ends with the test.
func run(t *testing.T, c join.Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{cancel: cancel, done: make(chan error, 1), joined: make(chan join.Joined, 8)}
	c.Joined = func(j join.Joined) { r.joined <- j }
	if c.Tunnel.Device == "" {
		c.Tunnel = tunnel.Config{Device: "netstack", Listen: netip.MustParseAddrPort("127.0.0.1:0")}
	}
	if c.Timing.Poll == 0 {
		c.Timing.Poll = 50 * time.Millisecond
	}
	go func() { r.done <- join.Run(ctx, c) }()
	t.Cleanup(func() { cancel(); _ = r.end(t) })
	return r
}

// in waits until the VM can be reached.
func (r *running) in(t *testing.T) join.Joined {
	t.Helper()
	select {
	case j := <-r.joined:
		return j
	case err := <-r.done:
		r.done <- err
		t.Fatalf("ended early: %v", err)
	case <-time.After(patience):
		t.Fatal("does not join")
	}
	panic("unreachable")
}

// end waits for the end and returns what it was.
func (r *running) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		r.done <- err
		return err
	case <-time.After(patience):
		t.Fatal("does not end")
	}
	panic("unreachable")
}

func TestAContainerOfADstackCVMJoinsByItsAgentsSocket(t *testing.T) {
	w := start(t, nil)
	td, info := boot(t, w.vendor, simtdx.VM{AppCompose: `{"name":"app","port_policy":{"restrict_mode":true,"ports":[{"port":80},{"port":8080}]}}`})
	agentOf := guestagenttest.Start(t, td, guestagenttest.NewKMS(t))
	m, socket := newManager(t), filepath.Join(socketDir(t), "s")
	var log syncBuffer
	r := run(t, join.Config{
		URLs: []string{"https://127.0.0.1:1", w.url()}, Source: join.Source{Agent: agentOf.Socket, Simulated: w.authorityFile()},
		Trust: join.Trust{Apps: []ratls.Hex{w.app(t)}}, Socket: socket,
		Ports:  join.Ports{Forwards: []join.Forward{{Port: 80, To: web(t, "first")}, {Port: 8080, To: web(t, "second")}}},
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	defer func() {
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	j := r.in(t)
	app := hex.EncodeToString(info.AppID)
	port := w.HTTPSAddr().Port()
	want := []string{fmt.Sprintf("https://%s.%s:%d/", app, base, port), fmt.Sprintf("https://%s-8080.%s:%d/", app, base, port)}
	if !slices.Equal(j.URLs, want) || j.AppID != app || !j.Simulated {
		t.Errorf("%+v, want %v", j, want)
	}
	for i, text := range []string{"first for " + app, "second for " + app} {
		if status, body := w.get(t, want[i]); status != http.StatusOK || !strings.HasPrefix(body, text) {
			t.Errorf("%s: %d %q, want %q", want[i], status, body, text)
		}
	}
	if h, err := join.AskHealth(t.Context(), socket); err != nil || !h.OK || h.Address != j.Address || len(h.Gateways) != 1 {
		t.Errorf("health %+v, %v", h, err)
	}
	fresh, err := verify.URL(t.Context(), want[0], verify.Options{
		CAs: w.cas(t), FreshApp: true, Chain: ratls.Chain{Roots: []ratls.VerifierConfig{{Root: w.vendor.Root()}}}, Resolvers: []string{w.DNSAddr().String()},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !fresh.OK() {
		var out bytes.Buffer
		_ = fresh.Print(&out)
		t.Error(out.String())
	}
	r.cancel()
	if err := r.end(t); err != nil {
		t.Error(err)
	}
	told := m.until(t, "STATUS=leaving")
	at := 0
	for _, line := range []string{"STATUS=registering with ", "STATUS=registered as ", "READY=1\n", "STOPPING=1\nSTATUS=leaving"} {
		if i := strings.Index(told, line); i < at {
			t.Errorf("%q is missing or too early in\n%s", line, told)
		} else {
			at = i
		}
	}
	if strings.Count(told, "READY=1") != 1 || !strings.Contains(told, "WATCHDOG=1") {
		t.Errorf("ready more than once, or never alive:\n%s", told)
	}
	if !strings.Contains(log.String(), "SIMULATED") {
		t.Errorf("nothing in the log says that it is simulated:\n%s", log.String())
	}
}

func TestAGuestAndAGatewayOfOneKMSTrustEachOther(t *testing.T) {
	kms, dir := guestagenttest.NewKMS(t), t.TempDir()
	w := start(t, func(c *config.Config) {
		vendor, err := gateway.Authority(c.DataDir)
		if err != nil {
			t.Fatal(err)
		}
		td, _ := boot(t, vendor, simtdx.VM{AppCompose: "a gateway of the KMS"})
		c.Enroll.CertFile, c.Enroll.KeyFile, c.Enroll.KMSRoot = writePair(t, dir, certified(t, kms, td, false), kms.Root())
	})
	td, info := boot(t, w.vendor, simtdx.VM{AppCompose: `{"name":"app"}`})
	_, gatewayInfo := boot(t, w.vendor, simtdx.VM{AppCompose: "a gateway of the KMS"})
	agentOf := guestagenttest.Start(t, td, kms)
	c := join.Config{
		URLs: []string{w.url()}, Source: join.Source{Agent: agentOf.Socket},
		Trust: join.Trust{KMS: true, Apps: []ratls.Hex{gatewayInfo.AppID}}, Ports: join.Ports{Forwards: []join.Forward{{Port: 80, To: web(t, "hello")}}},
	}
	j := run(t, c).in(t)
	if status, body := w.get(t, j.URLs[0]); status != http.StatusOK || !strings.HasPrefix(body, "hello for "+hex.EncodeToString(info.AppID)) {
		t.Errorf("%d %q", status, body)
	}

	// Another app of the same KMS is not the gateway, whatever name the KMS gave it.
	c.Trust.Apps = []ratls.Hex{info.AppID}
	c.Socket = filepath.Join(socketDir(t), "s")
	r := run(t, c)
	for h, end := (join.Health{}), time.Now().Add(patience); !strings.Contains(h.Reason, "not the expected"); h, _ = join.AskHealth(t.Context(), c.Socket) {
		if time.Now().After(end) {
			t.Fatalf("health %+v", h)
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.cancel()
	if err := r.end(t); err != nil {
		t.Error(err)
	}
}

func writePair(t *testing.T, dir string, c tls.Certificate, root *x509.Certificate) (certFile, keyFile, rootFile string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, der := range c.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	files := map[string][]byte{
		"cert.pem": chain, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"root.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "root.pem")
}

func TestARestartKeepsKeyAddressAndNames(t *testing.T) {
	w := start(t, nil)
	c := join.Config{
		URLs: []string{w.url()}, Source: join.Source{Simulated: w.authorityFile()}, Trust: join.Trust{Apps: []ratls.Hex{w.app(t)}},
		Ports: join.Ports{Forwards: []join.Forward{{Port: 80, To: web(t, "hello")}}}, State: filepath.Join(t.TempDir(), "state"),
	}
	first := run(t, c)
	before := first.in(t)
	first.cancel()
	if err := first.end(t); err != nil {
		t.Fatal(err)
	}
	after := run(t, c).in(t)
	if before.Address != after.Address || before.InstanceID != after.InstanceID || !slices.Equal(before.URLs, after.URLs) {
		t.Errorf("%+v became %+v", before, after)
	}
	if n := len(w.Peers()); n != 1 {
		t.Errorf("%d peers after a restart, want 1", n)
	}
	if status, body := w.get(t, after.URLs[0]); status != http.StatusOK || !strings.HasPrefix(body, "hello") {
		t.Errorf("%d %q", status, body)
	}
	// What is not open is not reached, by the policy that the simulated VM measured.
	if status, body := w.get(t, strings.Replace(after.URLs[0], after.AppID, after.AppID+"-22", 1)); status != http.StatusForbidden {
		t.Errorf("port 22: %d %q", status, body)
	}
}

func TestWhatCanNotGoOnEnds(t *testing.T) {
	w := start(t, nil)
	good := join.Config{
		URLs: []string{w.url()}, Source: join.Source{Simulated: w.authorityFile()}, Trust: join.Trust{Apps: []ratls.Hex{w.app(t)}},
		Ports: join.Ports{Forwards: []join.Forward{{Port: 80, To: "127.0.0.1:1"}}},
	}
	rubbish := filepath.Join(t.TempDir(), "rubbish")
	if err := os.WriteFile(rubbish, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	nameless, _ := boot(t, w.vendor, simtdx.VM{AppCompose: "{}", NoInstanceID: true})
	for name, row := range map[string]struct {
		change func(*join.Config)
		want   string
	}{
		"no URL":                  {func(c *join.Config) { c.URLs = nil }, "give its URL"},
		"a URL without TLS":       {func(c *join.Config) { c.URLs = []string{"http://127.0.0.1:8000"} }, "want https://"},
		"nobody trusted":          {func(c *join.Config) { c.Trust = join.Trust{} }, "no gateway is trusted"},
		"nothing reachable":       {func(c *join.Config) { c.Ports = join.Ports{} }, "nothing could be reached"},
		"no authority":            {func(c *join.Config) { c.Source.Simulated = rubbish + "x" }, "no such file"},
		"an authority of rubbish": {func(c *join.Config) { c.Source.Simulated = rubbish }, "rubbish: simulated TDX authority"},
		"no agent":                {func(c *join.Config) { c.Source = join.Source{Agent: rubbish} }, "guest agent: Info"},
		"no hardware":             {func(c *join.Config) { c.Source = join.Source{} }, "--simulated"},
		"an instance without id": {func(c *join.Config) {
			c.Source = join.Source{Agent: guestagenttest.Start(t, nameless, guestagenttest.NewKMS(t)).Socket}
		}, "no_instance_id"},
		"a KMS that is not there":   {func(c *join.Config) { c.Trust.KMS = true }, "--kms"},
		"state that is a file":      {func(c *join.Config) { c.State = rubbish }, "not a directory"},
		"a socket that is a file":   {func(c *join.Config) { c.Socket = rubbish }, "--socket"},
		"ports of the host, no TUN": {func(c *join.Config) { c.Ports = join.Ports{Open: []uint16{80}} }, "--to HOST:PORT"},
		"a policy of nonsense":      {func(c *join.Config) { c.Trust.Policy.AcceptedTCB = []string{"Fine"} }, "Fine"},
	} {
		if name == "no hardware" {
			if _, err := ratls.OpenTDX(ratls.TDXOptions{}); err == nil {
				continue // there is
			}
		}
		c := good
		row.change(&c)
		if err := run(t, c).end(t); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

func TestCertificatesAreRenewedInTime(t *testing.T) {
	td, _ := boot(t, authority(t), simtdx.VM{AppCompose: "app"})
	for name, row := range map[string]struct {
		left time.Duration
		want int // different ones of two
	}{
		"much of its life is left": {9 * 24 * time.Hour, 1},
		"little is left":           {time.Hour, 2},
		"it has ended":             {-time.Hour, 2},
	} {
		issue := func() tls.Certificate {
			c, err := ratls.NewCertificate(t.Context(), td, ratls.CertOptions{NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(row.left)})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		all, err := join.Certificates(t.Context(), issue, 2)
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Equal(all[0].Certificate[0], all[1].Certificate[0]); got != (row.want == 1) {
			t.Errorf("%s: the same certificate: %t", name, got)
		}
	}
}
