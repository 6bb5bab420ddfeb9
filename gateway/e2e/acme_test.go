package e2e

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dstack.host/dnsserver"
	"dstack.host/gateway"
	"dstack.host/gateway/certs/pebbletest"
	"dstack.host/gateway/config"
)

// freePort is a port that was free for UDP and TCP a moment ago.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 20 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		_ = tcp.Close()
		if err == nil {
			_ = udp.Close()
			return uint16(tcp.Addr().(*net.TCPAddr).Port)
		}
	}
	t.Fatal("no port is free for both UDP and TCP")
	return 0
}

// TestTheWildcardComesFromAnACMEServerThatAsksOurDNS runs a whole gateway against Pebble: account, orders, dns-01 answers
// from the gateway's own DNS server, and the CAA records that pin the account.
func TestTheWildcardComesFromAnACMEServerThatAsksOurDNS(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction(pebbletest.LeakedGoroutine)) })
	const base = "dstack.example.com"
	loopback := netip.MustParseAddr("127.0.0.1")
	dns := netip.AddrPortFrom(loopback, freePort(t))
	pebble, err := pebbletest.New(pebbletest.Config{DNS: dns})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pebble.Close)
	roots := filepath.Join(t.TempDir(), "pebble.pem")
	if err := os.WriteFile(roots, pebble.RootsPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.BaseDomains, c.Node, c.DataDir = []string{base}, "test", t.TempDir()
	c.Attestation.Kind = "simulated-tdx"
	c.Proxy.Listen, c.Enroll.Listen, c.Tunnel.Listen = netip.AddrPortFrom(loopback, 0), netip.AddrPortFrom(loopback, 0), netip.AddrPortFrom(loopback, 0)
	c.DNS.Listen, c.DNS.Addresses = []netip.AddrPort{dns}, []netip.Addr{loopback}
	c.DNS.QueryLog = filepath.Join(c.DataDir, "queries.json")
	c.DNS.ListenTLS = []netip.AddrPort{netip.AddrPortFrom(loopback, 0)}
	c.Metrics.Listen = []netip.AddrPort{netip.AddrPortFrom(loopback, 0)}
	c.Tunnel.Device = "netstack"
	c.Certs.Directory, c.Certs.CAFile, c.Certs.Email, c.Certs.CAAIdentity = pebble.Directory(), roots, "operator@example.com", pebbletest.CAAIdentity
	g, err := gateway.New(t.Context(), c, gateway.Parts{Logger: logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the gateway ended with %v", err)
		}
	}()
	select {
	case <-g.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatalf("the gateway ended with %v", err)
	case <-time.After(90 * time.Second):
		t.Fatal("no certificate after 90 s")
	}
	issuedBelowPebble(t, g, base, pebble)
	pinned(t, dns.String(), base)
	privateDNS(t, g, base, pebble.IssuerRoots())
	exposed(t, g.MetricsAddrs()[0].String(), "dstack_gateway_dns_", "go_goroutines", "process_open_fds")
	logged(t, c.DNS.QueryLog, `"transport":"doh"`, `"name":"gateway.`+base+`."`)
	answer, err := dnsserver.Query(t.Context(), dns.String(), "_acme-challenge."+base, "TXT")
	if err != nil || len(answer.Answers) > 0 {
		t.Errorf("challenges are left: %v %v", answer.Answers, err)
	}
}

// issuedBelowPebble connects to an app's name and to the base.
func issuedBelowPebble(t *testing.T, g *gateway.Gateway, base string, pebble *pebbletest.Pebble) {
	t.Helper()
	for _, name := range []string{base, nobody + "." + base, "gateway." + base} {
		conn, err := tls.Dial("tcp", g.HTTPSAddr().String(), &tls.Config{ServerName: name, RootCAs: pebble.IssuerRoots()})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if leaf := conn.ConnectionState().PeerCertificates[0]; !slices.Contains([]string{base, "*." + base}, leaf.DNSNames[0]) {
			t.Errorf("%s is served with a certificate for %v", name, leaf.DNSNames)
		}
		_ = conn.Close()
	}
}

// pinned asks for the CAA records (RFC 8657).
func pinned(t *testing.T, server, base string) {
	t.Helper()
	answer, err := dnsserver.Query(t.Context(), server, base, "CAA")
	if err != nil || len(answer.Answers) != 2 {
		t.Fatalf("CAA %v (%v), want issue and issuewild", answer.Answers, err)
	}
	for _, record := range answer.Answers {
		for _, want := range []string{pebbletest.CAAIdentity, "validationmethods=dns-01", "accounturi=https://"} {
			if !strings.Contains(record, want) {
				t.Errorf("CAA %s lacks %s", record, want)
			}
		}
	}
}

// exposed reads the series and looks for some.
func exposed(t *testing.T, addr string, names ...string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%d %v", response.StatusCode, err)
	}
	for _, name := range names {
		if !strings.Contains(string(text), "\n"+name) {
			t.Errorf("no series begins with %s:\n%.3000s", name, text)
		}
	}
}
