package enroll_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/registry"
	"dstack.host/ratls/simtdx"
)

func TestNewTellsAllFaults(t *testing.T) {
	temp := newKMS(t).temp.Leaf
	_, err := enroll.New(enroll.Config{KMSRoot: temp, Servers: []enroll.TunnelServer{{}}})
	for _, want := range []string{"Listen", "Certificate", "Verifier", "Register", "Current", "server 0", "Dstack Client Temp CA"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
	end := leaf(t, nil, func([]byte) []pkix.Extension { return nil }).Leaf
	if _, err := enroll.New(enroll.Config{KMSRoot: end}); err == nil || !strings.Contains(err.Error(), "no certificate authority") {
		t.Errorf("KMS root that is no CA: %v", err)
	}
	if _, err := enroll.New(enroll.Config{}); err == nil || !strings.Contains(err.Error(), "Servers") {
		t.Errorf("empty configuration: %v", err)
	}
}

func TestNewNamesATakenAddress(t *testing.T) {
	w := newWorld(t)
	c := w.config
	c.Listen = w.at
	if _, err := enroll.New(c); err == nil || !strings.Contains(err.Error(), w.at.String()) {
		t.Errorf("error %v", err)
	}
}

// TestServersAreToldInTheOrderOfTheirKeys, for a guest compares its configuration octet by octet.
func TestServersAreToldInTheOrderOfTheirKeys(t *testing.T) {
	w := newWorld(t)
	var servers []enroll.TunnelServer
	for i := range 5 {
		servers = append(servers, enroll.TunnelServer{Key: newKey(), Address: netip.MustParsePrefix(fmt.Sprintf("10.77.0.%d/24", 200+i)), Endpoint: fmt.Sprintf("node%d.example.com:51820", i)})
	}
	at := w.serve(t, func(c *enroll.Config) { c.Servers = servers })
	a := register(t, at, attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"})), body(newKey()))
	var keys []string
	for _, part := range strings.Split(a.body, `"pk":"`)[1:] {
		keys = append(keys, part[:44])
	}
	if len(keys) != 5 {
		t.Fatal(a.body)
	}
	for i := 1; i < len(keys); i++ {
		if keys[i-1] >= keys[i] {
			t.Errorf("keys %q", keys)
		}
	}
}

func TestOnlyHTTP11AndNoResumption(t *testing.T) {
	w := newWorld(t)
	cache := tls.NewLRUClientSessionCache(1)
	for range 2 {
		s := dial(t, w.at, tls.Certificate{}, func(c *tls.Config) {
			c.NextProtos, c.ClientSessionCache, c.ServerName = []string{"h2", "http/1.1"}, cache, "gateway"
		})
		s.send(t, "GET", "/health", "", "") // reads what comes after the handshake
		if state := s.conn.ConnectionState(); state.NegotiatedProtocol != "http/1.1" || state.DidResume || state.Version != tls.VersionTLS13 {
			t.Errorf("protocol %q, resumed %t, TLS %x", state.NegotiatedProtocol, state.DidResume, state.Version)
		}
	}
}

// TestAClientHasToHaveTheKey shows the resident's certificate, with a quote that verifies, and signs with another key.
func TestAClientHasToHaveTheKey(t *testing.T) {
	w := newWorld(t)
	stolen := attested(t, w.resident(t))
	stolen.PrivateKey = newECKey(t)
	before := w.state(t)
	c := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{stolen}}
	conn, err := tls.Dial("tcp", w.at.String(), c)
	if err == nil { // in TLS 1.3 the server's word comes with the first read
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
	}
	if err == nil || !strings.Contains(err.Error(), "remote error: tls: error decrypting message") {
		t.Errorf("error %v, want the alert decrypt_error (RFC 8446 section 6.2)", err)
	}
	if w.state(t).Revision != before.Revision {
		t.Error("something was written")
	}
}

// narrow runs a server with one place for everything.
func (w *world) narrow(t *testing.T, body, work time.Duration) netip.AddrPort {
	t.Helper()
	s := must(enroll.NewNarrow(w.config, body, work))(t)
	run(t, s.Run)
	return s.Addr()
}

func TestABodyThatDoesNotComeIsGivenUp(t *testing.T) {
	w := newWorld(t)
	cert := attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	at := w.narrow(t, 100*time.Millisecond, patience)
	w.unchanged(t, func() answer {
		return dial(t, at, cert).send(t, "POST", "/prpc/RegisterCvm?json", "Content-Length: 100\r\n", "{")
	}, http.StatusBadRequest, "the body did not come within 100ms")
	if a := register(t, at, cert, body(newKey())); a.status != http.StatusOK { // its place is free
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestAFullServerSaysSo has the only place taken by a body that does not come. Strangers never get that far.
func TestAFullServerSaysSo(t *testing.T) {
	w := newWorld(t)
	cert := attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	at := w.narrow(t, patience, time.Second)
	for range 3 { // these never hold a place for a body
		stranger := dial(t, at, tls.Certificate{})
		if _, err := fmt.Fprint(stranger.conn, "POST /prpc/RegisterCvm?json HTTP/1.1\r\nHost: gateway\r\nContent-Length: 100\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
	}
	if a := register(t, at, cert, body(newKey())); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	slow := dial(t, at, cert)
	if _, err := fmt.Fprint(slow.conn, "POST /prpc/RegisterCvm?json HTTP/1.1\r\nHost: gateway\r\nContent-Length: 100\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; { // the slow one may come second for once
		if a := register(t, at, cert, body(newKey())); a.status == http.StatusServiceUnavailable {
			if !strings.Contains(a.reason(t), "too many registrations") {
				t.Error(a.body)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("never full")
		}
	}
}

// TestARegistrationUnderWayIsFinished ends the server in the middle of one, and sees Run wait for it.
func TestARegistrationUnderWayIsFinished(t *testing.T) {
	w := newWorld(t)
	cert := attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	entered, finish := make(chan struct{}), make(chan struct{})
	c := w.config
	c.Register = func(ctx context.Context, inst registry.Instance) (registry.Instance, bool, error) {
		close(entered)
		<-finish
		return w.registry.Register(ctx, inst)
	}
	s := must(enroll.New(c))(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	answered := make(chan answer, 1)
	conn := dial(t, s.Addr(), cert)
	go func() { answered <- conn.register(t, body(newKey())) }()
	<-entered
	cancel()
	for { // the listener closes first
		probe, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			break
		}
		probe.Close()
	}
	select {
	case err := <-ended:
		t.Fatalf("Run returned %v before the registration ended", err)
	default:
	}
	close(finish)
	if a := <-answered; a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestRunTellsThatItsListenerFailed(t *testing.T) {
	w := newWorld(t)
	s := must(enroll.New(w.config))(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("no error")
	}
}

// TestOneNetworkCannotHaveAllConnections counts on a listener of two places.
func TestOneNetworkCannotHaveAllConnections(t *testing.T) {
	inner := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	listener := enroll.NewPerSource(inner, 2)
	defer listener.Close()
	accepted := make(chan net.Conn, 8)
	go func() {
		defer close(accepted)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	connect := func() net.Conn {
		conn := must(net.Dial("tcp", inner.Addr().String()))(t)
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	connect()
	connect()
	first, second := <-accepted, <-accepted
	third := connect()
	if err := third.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := third.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("third connection: %v", err)
	}
	first.Close()
	first.Close() // counts once
	connect()
	fourth := <-accepted
	if _, err := connect().Read(make([]byte, 1)); err == nil {
		t.Error("a connection that was closed twice counted twice")
	}
	second.Close()
	fourth.Close()
}

func TestNetworksAreWhatOneHostHas(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7:1": "192.0.2.7/32", "[::ffff:192.0.2.7]:1": "192.0.2.7/32", "[2001:db8:1:2:3::4]:1": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64",
	} {
		if got := enroll.Network(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))); got != want {
			t.Errorf("%s is %s, want %s", addr, got, want)
		}
	}
}

// TestStrangersCannotFillTheLog has many refusals, of which a few are warnings.
func TestStrangersCannotFillTheLog(t *testing.T) {
	w := newWorld(t)
	var out lines
	at := w.serve(t, func(c *enroll.Config) {
		c.Logger = slog.New(slog.NewTextHandler(&out, nil))
		c.Now = func() time.Time { return time.Unix(1, 0) } // the KMS's certificates and quotes do not matter here
	})
	s := dial(t, at, tls.Certificate{})
	for range 100 {
		s.register(t, "")
	}
	text := out.String()
	if n := strings.Count(text, "level=WARN"); n != 20 || !strings.Contains(text, "status=400 reason=no_identity") {
		t.Errorf("%d warnings\n%s", n, text)
	}
}

// lines is a buffer that may be read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestAPanicIsAnError, because net/http would only mention it among the complaints about connections.
func TestAPanicIsAnError(t *testing.T) {
	w := newWorld(t)
	var out lines
	at := w.serve(t, func(c *enroll.Config) {
		c.Logger = slog.New(slog.NewTextHandler(&out, nil))
		c.Register = func(context.Context, registry.Instance) (registry.Instance, bool, error) { panic("boom") }
	})
	s := dial(t, at, attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"})))
	if _, err := fmt.Fprintf(s.conn, "POST /prpc/RegisterCvm?json HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n%s", len(body(newKey())), body(newKey())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.in.ReadByte(); err == nil {
		t.Error("an answer")
	}
	if text := out.String(); !strings.Contains(text, "level=ERROR") || !strings.Contains(text, "boom") {
		t.Errorf("log %q", text)
	}
}
