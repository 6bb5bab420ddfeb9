package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
)

const base = "dstack.example"

// Ids that are told apart at a glance: "aa…" are apps, "11…" instances.
func appID(b byte) (id registry.AppID)           { fill(id[:], b); return }
func instanceID(b byte) (id registry.InstanceID) { fill(id[:], b); return }

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}

// ca signs the certificates of all tests.
var ca = sync.OnceValue(func() (c struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}) {
	c.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, _ := x509.CreateCertificate(rand.Reader, tmpl, tmpl, c.key.Public(), c.key)
	c.cert, _ = x509.ParseCertificate(der)
	return c
})

func certificate(t testing.TB, names ...string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca().cert, key.Public(), ca().key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca().cert)
	return pool
}

// harness is a running proxy with what surrounds it.
type harness struct {
	addr     string
	snapshot atomic.Pointer[registry.Snapshot]
	down     sync.Map // registry.InstanceID → any: the tunnel is down
	dial     atomic.Pointer[dialer]
	stop     func()
	done     chan error
}

type dialer = func(context.Context, *registry.Instance, uint16) (net.Conn, error)

// run starts a proxy whose instances are reached at 127.0.0.1 on the very port that a name asks for.
func run(t testing.TB, change func(*proxy.Config), instances ...registry.Instance) *harness {
	t.Helper()
	b := &harness{done: make(chan error, 1)}
	b.register(instances...)
	b.dialWith(func(ctx context.Context, _ *registry.Instance, port uint16) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", loopback(int(port)))
	})
	cert := certificate(t, base, "*."+base)
	cfg := proxy.Config{
		Listen: "127.0.0.1:0", Bases: []string{base},
		Certificate: certificateOf(cert),
		Registry:    b.snapshot.Load,
		Dial: func(ctx context.Context, i *registry.Instance, port uint16) (net.Conn, error) {
			return (*b.dial.Load())(ctx, i, port)
		},
		TunnelUp: func(i *registry.Instance) bool { _, down := b.down.Load(i.ID); return !down },
		Own: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Own", r.URL.Path)
			io.WriteString(w, "own "+r.Host)
		}),
		Node: "node-1", TEE: "simulated-tdx", DrainTimeout: 2 * time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	p, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.addr = p.Addr().String()
	go func() { b.done <- p.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-b.done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run does not return")
		}
	})
	t.Cleanup(b.stop)
	return b
}

func certificateOf(cert *tls.Certificate) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }
}

func noDial(context.Context, *registry.Instance, uint16) (net.Conn, error) {
	return nil, errors.New("no")
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func (b *harness) register(instances ...registry.Instance) {
	b.snapshot.Store(registry.NewSnapshot(1, instances, nil))
}

func (b *harness) dialWith(d dialer) { b.dial.Store(&d) }

// instance is an instance of an app that opens every port.
func instance(app, id byte) registry.Instance {
	i := registry.Instance{ID: instanceID(id), App: appID(app), Addr: netip.AddrFrom4([4]byte{10, 0, 0, id}), Ports: &registry.PortPolicy{}}
	fill(i.Compose[:], app)
	fill(i.Key[:], id)
	return i
}

// host is the name of a port of an app, with suffixes.
func host(id interface{ String() string }, port int, suffix string) string {
	return id.String() + "-" + strconv.Itoa(port) + suffix + "." + base
}

// client speaks one HTTP version and nothing else, to the proxy whatever the URL says.
func (b *harness) client(t testing.TB, http2 bool) *http.Client {
	var protocols http.Protocols
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	tr := &http.Transport{
		Protocols: &protocols, TLSClientConfig: &tls.Config{RootCAs: roots()}, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", b.addr)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{
		Transport: tr, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// tls opens a TLS connection with a server name.
func (b *harness) tls(t testing.TB, name string, protocols ...string) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", b.addr, &tls.Config{RootCAs: roots(), ServerName: name, NextProtos: protocols})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { c.Close() })
	return c
}

// app starts an HTTP/1.1 app on loopback and returns its port.
func app(t testing.TB, h http.HandlerFunc) int {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return portOf(t, s.Listener.Addr())
}

func portOf(t testing.TB, a net.Addr) int {
	t.Helper()
	_, port, err := net.SplitHostPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// protocols runs a test over both HTTP versions.
func protocols(t *testing.T, f func(t *testing.T, http2 bool)) {
	for _, http2 := range []bool{false, true} {
		name := "HTTP/1.1"
		if http2 {
			name = "HTTP/2"
		}
		t.Run(strings.ReplaceAll(name, "/", " "), func(t *testing.T) { f(t, http2) })
	}
}

func body(t testing.TB, r *http.Response) string {
	t.Helper()
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
