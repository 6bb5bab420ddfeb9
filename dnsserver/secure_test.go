package dnsserver_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// certificate makes a self-signed one for ns1.dstack.host, its pool and its PEM.
func certificate(t testing.TB) (tls.Certificate, *x509.CertPool, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ns1"}, DNSNames: []string{"ns1.dstack.host"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// serveTLS runs a server with DNS over TLS, and returns the address of that and the roots to trust.
func serveTLS(t testing.TB, c dnsserver.Config) (*dnsserver.Server, string, *x509.CertPool) {
	t.Helper()
	cert, pool, _ := certificate(t)
	c.ListenTLS, c.TLS = []string{"127.0.0.1:0"}, &tls.Config{Certificates: []tls.Certificate{cert}}
	s, _ := serve(t, c)
	s.SetZones(bigZone(t))
	return s, s.AddrsTLS()[0].String(), pool
}

func TestDNSOverTLS(t *testing.T) {
	t.Parallel()
	_, server, pool := serveTLS(t, dnsserver.Config{})
	client := &dns.Client{Net: "tcp-tls", Timeout: patience, TLSConfig: &tls.Config{RootCAs: pool, ServerName: "ns1.dstack.host", NextProtos: []string{"dot"}}}
	conn, err := client.Dial(server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 3 { // one connection, many queries
		query := askEDNS("big.dstack.host.", dns.TypeTXT, 1232)
		query.Id = uint16(i)
		query.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{}}
		if err := conn.WriteMsg(query); err != nil {
			t.Fatal(err)
		}
		packed, err := conn.ReadMsgHeader(nil)
		if err != nil || len(packed)%468 != 0 {
			t.Fatalf("not padded: %d octets, %v", len(packed), err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(packed); err != nil {
			t.Fatal(err)
		}
		if m.Id != uint16(i) || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 30 || m.Truncated {
			t.Errorf("%v", m)
		}
	}
	if state := conn.Conn.(*tls.Conn).ConnectionState(); state.NegotiatedProtocol != "dot" || state.Version != tls.VersionTLS13 {
		t.Errorf("protocol %q, version %x", state.NegotiatedProtocol, state.Version)
	}
}

// Who is silent, or talks something else, is let go as on TCP.
func TestDNSOverTLSLetsStrangersGo(t *testing.T) {
	t.Parallel()
	s, server, _ := serveTLS(t, dnsserver.Config{IdleTimeout: 100 * time.Millisecond, MaxConnsPerClient: 2})
	for name, octets := range map[string]string{
		"silent": "", "plain DNS": "\x00\x1d" + header + question, "half a hello": "\x16\x03\x01\x02\x00\x01", "HTTP": "GET / HTTP/1.1\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, server)
			send(t, conn, []byte(octets))
			_, _ = io.Copy(io.Discard, conn) // an alert at most
			if _, err := conn.Write(make([]byte, 1)); err == nil {
				closed(t, conn)
			}
		})
	}
	// The limits are those of TCP, together: the third connection of a client is closed.
	first, second := dial(t, server), dial(t, s.Addrs()[0].String())
	send(t, second, framed(t, "big.dstack.host.", 1, 1))
	receive(t, second, 1, 1)
	closed(t, dial(t, server))
	_ = first
}

func TestServerTLSFaults(t *testing.T) {
	for name, c := range map[string]dnsserver.Config{
		"TLS is needed":           {Listen: []string{"127.0.0.1:0"}, ListenTLS: []string{"127.0.0.1:0"}},
		`ListenTLS "x:1"`:         {Listen: []string{"127.0.0.1:0"}, ListenTLS: []string{"x:1"}, TLS: &tls.Config{}},
		"CookieKey at least 16":   {Listen: []string{"127.0.0.1:0"}, CookieKey: make([]byte, 15)},
		"NSID has at most 128":    {Listen: []string{"127.0.0.1:0"}, NSID: strings.Repeat("x", 129)},
		"a limit is negative":     {Listen: []string{"127.0.0.1:0"}, RateLimit: dnsserver.RateLimit{PerSecond: -1}},
		"address already in use":  {Listen: []string{"127.0.0.1:0"}, ListenTLS: []string{occupied(t)}, TLS: &tls.Config{}},
		"at least one address is": {ListenTLS: []string{"127.0.0.1:0"}, TLS: &tls.Config{}},
	} {
		s, err := dnsserver.New(c)
		if err == nil {
			t.Errorf("%s: accepted: %v", name, s.Close())
		} else if !strings.Contains(err.Error(), name) {
			t.Errorf("%q not in %v", name, err)
		}
	}
}

// occupied returns an address that somebody listens at.
func occupied(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

func TestDNSOverHTTPS(t *testing.T) {
	s, _ := serve(t, dnsserver.Config{})
	s.SetZones(bigZone(t))
	get := func(query string) *http.Request {
		return httptest.NewRequest(http.MethodGet, dnsserver.DoHPath+"?"+query, nil)
	}
	post := func(body, kind string) *http.Request {
		r := httptest.NewRequest(http.MethodPost, dnsserver.DoHPath, strings.NewReader(body))
		r.Header.Set("Content-Type", kind)
		return r
	}
	encode := func(packet string) string { return "dns=" + base64.RawURLEncoding.EncodeToString([]byte(packet)) }
	const message = "application/dns-message"
	room := 65535 - len(headerAR+question+opt) - 4
	largest := headerAR + question + option("\xfd\xe8"+string(binary.BigEndian.AppendUint16(nil, uint16(room)))+strings.Repeat("x", room))
	big := header + "\x03big" + zoneName + "\x00\x10\x00\x01"
	for _, row := range []struct {
		name    string
		request *http.Request
		status  int
		cache   string
		answers int
	}{
		{"GET", get(encode(header + question)), 200, "max-age=60", 1},
		{"POST", post(header+question, message), 200, "max-age=60", 1},
		{"no size limit", post(big, message), 200, "max-age=60", 30},
		{"NXDOMAIN lasts as its SOA says", get(encode(header + "\x06nobody" + zoneName + typeA)), 200, "max-age=20", 0},
		{"a refusal is not kept", get(encode(header + "\x07example\x03org\x00" + typeA)), 200, "max-age=0", 0},
		{"malformed is answered", post(header, message), 200, "max-age=0", 0},
		{"no parameter", get(""), 400, "", 0},
		{"two parameters", get(encode(header+question) + "&dns=AAAA"), 400, "", 0},
		{"padded base64", get("dns=AAA="), 400, "", 0},
		{"no base64", get("dns=%21"), 400, "", 0},
		{"no DNS", get("dns=AAAA"), 400, "", 0},
		{"a response", post("\x12\x34\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00"+question, message), 400, "", 0},
		{"nothing", post("", message), 400, "", 0},
		{"another type", post(header+question, "text/plain"), 415, "", 0},
		{"65535 octets", post(largest, message), 200, "max-age=60", 1},
		{"65536 octets", post(strings.Repeat("x", 65536), message), 413, "", 0},
		{"PUT", httptest.NewRequest(http.MethodPut, dnsserver.DoHPath, nil), 405, "", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, row.request)
			if w.Code != row.status || w.Header().Get("Cache-Control") != row.cache {
				t.Fatalf("status %d, cache %q: %q", w.Code, w.Header().Get("Cache-Control"), w.Body)
			}
			if row.status != 200 {
				return
			}
			m := new(dns.Msg)
			if err := m.Unpack(w.Body.Bytes()); err != nil || w.Header().Get("Content-Type") != message || len(m.Answer) != row.answers {
				t.Errorf("%v, type %q, %v", err, w.Header().Get("Content-Type"), m)
			}
		})
	}
}

// kdig asks over every transport, with cookies and NSID.
func TestKdig(t *testing.T) {
	t.Parallel()
	kdig, err := exec.LookPath("kdig")
	if err != nil {
		t.Skip("kdig (Debian: knot-dnsutils) is not installed")
	}
	cert, _, root := certificate(t)
	roots := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(roots, root, 0o600); err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	s, server := serve(t, dnsserver.Config{ListenTLS: []string{"127.0.0.1:0"}, TLS: config, NSID: "node-one"})
	s.SetZones(bigZone(t))
	web := httptest.NewUnstartedServer(s)
	web.EnableHTTP2, web.TLS = true, config
	web.StartTLS()
	defer web.Close()

	tlsPort, webPort := s.AddrsTLS()[0].Port(), netip.MustParseAddrPort(web.Listener.Addr().String()).Port()
	trust := "+tls-ca=" + roots + " +tls-hostname=ns1.dstack.host"
	for _, row := range []struct {
		name, args string
		port       uint16
		want       []string
	}{
		{"UDP", "gateway.dstack.host A +cookie +nsid", 0, []string{"192.0.2.1", "node-one", "COOKIE", "(UDP)"}},
		{"truncated, then TCP", "big.dstack.host TXT", 0, []string{"ANSWER: 30", "(TCP)"}},
		{"TCP", "gateway.dstack.host A +tcp +keepopen +nsid", 0, []string{"192.0.2.1", "node-one", "(TCP)"}},
		{"DoT", "big.dstack.host TXT +tls " + trust + " +padding +cookie +nsid", tlsPort, []string{"ANSWER: 30", "node-one", "PADDING", "TLS1.3"}},
		{"DoH, POST", "big.dstack.host TXT +https " + trust, webPort, []string{"ANSWER: 30", "HTTP/2-POST"}},
		{"DoH, GET", "nobody.dstack.host A +https +https-get " + trust, webPort, []string{"NXDOMAIN", "HTTP/2-GET"}},
		{"BADVERS", "dstack.host SOA +edns=1", 0, []string{"BADVERS"}},
		{"extended error", "example.org A +edns", 0, []string{"REFUSED", "EDE: 20"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			port := row.port
			if port == 0 {
				port = netip.MustParseAddrPort(server).Port()
			}
			args := append([]string{"@127.0.0.1", "-p", fmt.Sprint(port), "+time=5", "+retry=0"}, strings.Fields(row.args)...)
			out, err := exec.CommandContext(timeout(t), kdig, args...).CombinedOutput()
			for _, want := range row.want {
				if err != nil || !bytes.Contains(out, []byte(want)) {
					t.Errorf("kdig %s: %v, no %q in\n%s", row.args, err, want, out)
				}
			}
		})
	}
}

// The server's end does not wait for clients of DNS over TLS.
func TestDNSOverTLSEnds(t *testing.T) {
	cert, pool, _ := certificate(t)
	s, err := dnsserver.New(dnsserver.Config{Listen: []string{"127.0.0.1:0"}, ListenTLS: []string{"127.0.0.1:0"}, TLS: &tls.Config{Certificates: []tls.Certificate{cert}}, IdleTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, s)
	dial(t, s.AddrsTLS()[0].String()) // without a handshake
	dialer := &tls.Dialer{Config: &tls.Config{RootCAs: pool, ServerName: "ns1.dstack.host"}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", s.AddrsTLS()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stop()
}
