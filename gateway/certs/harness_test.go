package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dstack.host/dnsserver"
	"dstack.host/gateway/certs"
	"dstack.host/gateway/certs/pebbletest"
	"dstack.host/gateway/store"
)

// deadline is how long a test waits for what should take a moment.
const deadline = 30 * time.Second

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction(pebbletest.LeakedGoroutine))
}

// openStore opens a store with an embedded etcd below dir; it is closed with the test unless closed before.
func openStore(t testing.TB, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{DataDir: dir, Key: store.Key{1}, ClusterID: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// attestor has keys and accounts on record at once, and remembers them in the order of asking.
type attestor struct {
	mu     sync.Mutex
	refuse error // guarded by mu, as all that follows
	keys   []string
}

func (a *attestor) AttestKey(_ context.Context, spki []byte) error { return a.record(string(spki)) }

func (a *attestor) AttestAccount(_ context.Context, uri string) error { return a.record(uri) }

func (a *attestor) record(what string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refuse == nil {
		a.keys = append(a.keys, what)
	}
	return a.refuse
}

// fail has all that is asked refused from now on; nil ends that.
func (a *attestor) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = err
}

func (a *attestor) has(what string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Contains(a.keys, what)
}

// run runs c until the returned function is called, which waits for its end, or until the test ends.
func run(t testing.TB, c *certs.Certs) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// start makes a Certs and runs it.
func start(t testing.TB, cfg certs.Config) (c *certs.Certs, stop func()) {
	t.Helper()
	c, err := certs.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, run(t, c)
}

// await fails the test when done does not close in time.
func await(t testing.TB, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(deadline):
		t.Fatalf("%s: not within %s", what, deadline)
	}
}

// eventually waits until ok holds, looking again whenever c changes.
func eventually(t *testing.T, c *certs.Certs, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(deadline)
	for {
		changed := c.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%s: not within %s", what, deadline)
		}
	}
}

// handshake returns the chain that c serves for serverName, verified against roots as a client does it.
func handshake(t *testing.T, c *certs.Certs, serverName string, roots *x509.CertPool) []*x509.Certificate {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	go tls.Server(server, &tls.Config{GetCertificate: c.GetCertificate}).Handshake()
	conn := tls.Client(client, &tls.Config{ServerName: serverName, RootCAs: roots})
	if err := conn.Handshake(); err != nil {
		t.Fatalf("handshake with %s: %v", serverName, err)
	}
	return conn.ConnectionState().PeerCertificates
}

func pool(t *testing.T, pem []byte) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(pem) {
		t.Fatalf("no certificate in %q", pem)
	}
	return p
}

func leaf(t *testing.T, c *certs.Certs, serverName string) *x509.Certificate {
	t.Helper()
	cert, err := c.GetCertificate(&tls.ClientHelloInfo{ServerName: serverName})
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf
}

// authority is a DNS server of the zones of our base domains; it implements certs.Challenges by swapping zones.
type authority struct {
	server  *dnsserver.Server
	origins []string

	mu   sync.Mutex // guards what follows
	txt  map[string][]string
	most map[string]int // the largest number of values that were served at a name together
	swap uint32
}

// newAuthority serves the zones of origins on loopback until the test ends.
func newAuthority(t *testing.T, origins ...string) *authority {
	t.Helper()
	server, err := dnsserver.New(dnsserver.Config{Listen: []string{"127.0.0.1:0"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{server: server, origins: origins, txt: make(map[string][]string), most: make(map[string]int)}
	if err := a.publish(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("DNS server: %v", err)
		}
		server.Close()
	})
	return a
}

func (a *authority) addr() netip.AddrPort { return a.server.Addrs()[0] }

// publish swaps the zones; the caller holds mu, or is alone.
func (a *authority) publish() error {
	a.swap++
	var zones []*dnsserver.Zone
	for _, origin := range a.origins {
		loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		txt := make(map[string][]string)
		for name, values := range a.txt {
			if name == "_acme-challenge."+origin && len(values) > 0 {
				txt["_acme-challenge"] = slices.Clone(values)
			}
		}
		z, err := dnsserver.NewZone(dnsserver.ZoneConfig{
			Origin: origin, Serial: a.swap, Addrs: loopback, TXT: txt,
			NS: []dnsserver.NameServer{{Name: "ns." + origin, Addrs: loopback}},
		})
		if err != nil {
			return err
		}
		zones = append(zones, z)
	}
	a.server.SetZones(zones...)
	return nil
}

func (a *authority) SetTXT(_ context.Context, fqdn, value string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Contains(a.txt[fqdn], value) {
		a.txt[fqdn] = append(a.txt[fqdn], value)
	}
	a.most[fqdn] = max(a.most[fqdn], len(a.txt[fqdn]))
	return a.publish()
}

func (a *authority) DeleteTXT(_ context.Context, fqdn, value string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.txt[fqdn] = slices.DeleteFunc(a.txt[fqdn], func(v string) bool { return v == value })
	return a.publish()
}

// values returns how many challenge values are served now.
func (a *authority) values() (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, v := range a.txt {
		n += len(v)
	}
	return n
}
