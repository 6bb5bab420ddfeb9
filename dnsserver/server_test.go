package dnsserver_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// patience bounds everything that is waited for.
const patience = 10 * time.Second

// serve runs a server until the test ends and returns it with its address.
func serve(t testing.TB, c dnsserver.Config) (*dnsserver.Server, string) {
	t.Helper()
	if c.Listen == nil {
		c.Listen = []string{"127.0.0.1:0"}
	}
	s, err := dnsserver.New(c)
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	return s, s.Addrs()[0].String()
}

// run runs a server; stop, or the test's end, stops it and checks the result.
func run(t testing.TB, s *dnsserver.Server) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run did not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// query asks and fails the test if there is no response.
func query(t testing.TB, server, name, qtype string) dnsserver.Response {
	t.Helper()
	r, err := dnsserver.Query(timeout(t), server, name, qtype)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// bigZone has a name, "big", whose texts need TCP.
func bigZone(t testing.TB) *dnsserver.Zone {
	c := testZone()
	for i := range 30 {
		c.TXT["big"] = append(c.TXT["big"], fmt.Sprintf("%0100d", i))
	}
	return newZone(t, c)
}

func TestServerAnswersOverUDPAndTCP(t *testing.T) {
	s, server := serve(t, dnsserver.Config{})
	if r := query(t, server, "gateway.dstack.host", "A"); r.Rcode != "SERVFAIL" || r.Error != "Not Ready: zones are not loaded yet" {
		t.Errorf("before the zones: %+v", r)
	}
	s.SetZones(bigZone(t))
	want := dnsserver.Response{
		Rcode: "NOERROR", Authoritative: true, TTL: time.Minute,
		Answers: []string{"192.0.2.1"}, Records: []string{"gateway.dstack.host.\t60\tIN\tA\t192.0.2.1"},
	}
	if diff := cmp.Diff(want, query(t, server, "gateway.dstack.host", "A")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if r := query(t, server, "big.dstack.host", "TXT"); len(r.Answers) != 30 {
		t.Errorf("over TCP: %+v", r)
	}
	if r := query(t, server, "nobody.dstack.host", "A"); r.Rcode != "NXDOMAIN" || r.TTL != 20*time.Second {
		t.Errorf("nobody: %+v", r)
	}
	s.SetZones()
	if r := query(t, server, "gateway.dstack.host", "A"); r.Rcode != "REFUSED" {
		t.Errorf("after the zones went: %+v", r)
	}
}

// A query sees one set of zones or the other, whole.
func TestSetZonesIsAtomic(t *testing.T) {
	s, server := serve(t, dnsserver.Config{Workers: 3})
	zones := make([]*dnsserver.Zone, 2)
	for i := range zones {
		c := testZone()
		c.Serial = uint32(i)
		c.Addrs = addrs(fmt.Sprintf("192.0.2.%d", 10+i), fmt.Sprintf("192.0.2.%d", 20+i))
		zones[i] = newZone(t, c)
	}
	s.SetZones(zones[0])
	ctx, cancel := context.WithCancel(t.Context())
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			s.SetZones(zones[i%2])
			runtime.Gosched()
		}
	})
	defer swapping.Wait()
	defer cancel()
	for range 200 {
		r := query(t, server, appID+".dstack.host", "A")
		if len(r.Answers) != 2 || r.Answers[0][len(r.Answers[0])-1] != r.Answers[1][len(r.Answers[1])-1] {
			t.Fatalf("half a change: %+v", r)
		}
	}
}

// A client ignores an answer that comes from another address than it asked.
func TestWildcardAnswersFromTheAskedAddress(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only on Linux all of 127.0.0.0/8 is there without configuration")
	}
	for _, listen := range []string{"0.0.0.0:0", ":0"} {
		s, _ := serve(t, dnsserver.Config{Listen: []string{listen}})
		s.SetZones(newZone(t, testZone()))
		for _, host := range []string{"127.0.0.1", "127.0.0.77", "::1"} {
			if host == "::1" && !s.Addrs()[0].Addr().Is6() {
				continue
			}
			server := netip.AddrPortFrom(netip.MustParseAddr(host), s.Addrs()[0].Port()).String()
			if r := query(t, server, "gateway.dstack.host", "A"); r.Rcode != "NOERROR" {
				t.Errorf("%s at %s: %+v", listen, host, r)
			}
		}
	}
}

// Packets that arrive together leave together: every client gets its own
// answers, whole, with its ids and in its spelling.
func TestBatchesKeepAnswersApart(t *testing.T) {
	const clients, rounds, burst = 3, 20, 70 // more than a batch; all together less than a socket buffers
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0"} {
		s, err := dnsserver.New(dnsserver.Config{Listen: []string{listen}, Workers: 3})
		if err != nil {
			t.Skip(err) // no IPv6 here
		}
		run(t, s)
		s.SetZones(newZone(t, testZone()))
		server := netip.MustParseAddrPort(strings.Replace(s.Addrs()[0].String(), "0.0.0.0", "127.0.0.1", 1))
		var asking sync.WaitGroup
		for client := range clients {
			asking.Go(func() { askBursts(t, server, client, rounds, burst) })
		}
		asking.Wait()
	}
}

func askBursts(t *testing.T, server netip.AddrPort, client, rounds, burst int) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Error(err)
	}
	labels, buf := []string{"gateway", "GATEWAY", appID, "nobody", "deep.down", "x"}, make([]byte, 1500)
	for range rounds {
		for i := range burst {
			m := ask(labels[(client+i)%len(labels)]+".dstack.host.", dns.TypeA)
			m.Id = uint16(i)
			packed, err := m.Pack()
			if err != nil {
				t.Error(err)
			}
			if _, err := conn.Write(packed); err != nil {
				t.Error(err)
			}
		}
		for seen := make(map[uint16]bool); len(seen) < burst; {
			n, err := conn.Read(buf)
			m := new(dns.Msg)
			if err = errors.Join(err, m.Unpack(buf[:n])); err != nil {
				t.Errorf("after %d answers: %v", len(seen), err)
				return
			}
			label := labels[(client+int(m.Id))%len(labels)]
			if seen[m.Id] || m.Question[0].Name != label+".dstack.host." || (m.Rcode == dns.RcodeSuccess) != (len(label) > 6) {
				t.Errorf("the answer of another: %v", m)
			}
			seen[m.Id] = true
		}
	}
}

func TestServerOutlivesHostilePackets(t *testing.T) {
	s, server := serve(t, dnsserver.Config{Workers: 1})
	s.SetZones(newZone(t, testZone()))
	conn, err := net.Dial("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, packet := range []string{"", "x", header[:11], header, strings.Repeat("\xff", 60000), strings.Repeat("\x00", 60000),
		"\x12\x34\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00" + question} {
		if _, err := conn.Write([]byte(packet)); err != nil {
			t.Fatal(err)
		}
	}
	if r := query(t, server, "gateway.dstack.host", "A"); r.Rcode != "NOERROR" {
		t.Errorf("%+v", r)
	}
}

func TestNewReportsFaults(t *testing.T) {
	for _, row := range []struct {
		name string
		c    dnsserver.Config
		want []string
	}{
		{"nothing to listen on", dnsserver.Config{}, []string{"at least one address"}},
		{"no port", dnsserver.Config{Listen: []string{"127.0.0.1"}}, []string{`Listen "127.0.0.1": not host:port`}},
		{"a name", dnsserver.Config{Listen: []string{"localhost:53"}}, []string{"host is not an IP address"}},
		{"port 65536", dnsserver.Config{Listen: []string{"127.0.0.1:65536"}}, []string{"port is not a number"}},
		{"port by name", dnsserver.Config{Listen: []string{"127.0.0.1:domain"}}, []string{"port is not a number"}},
		{"all together", dnsserver.Config{Listen: []string{"x:1", "127.0.0.1:-1"}, MaxConns: -1}, []string{`"x:1"`, `"127.0.0.1:-1"`, "negative"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, err := dnsserver.New(row.c)
			if err == nil {
				t.Fatal("accepted", s.Close())
			}
			for _, want := range row.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q not in %v", want, err)
				}
			}
		})
	}
}

func TestNewTellsThePortThatIsTaken(t *testing.T) {
	_, server := serve(t, dnsserver.Config{})
	_, err := dnsserver.New(dnsserver.Config{Listen: []string{"127.0.0.1:0", server}})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), server) {
		t.Errorf("error %v", err)
	}
	// The same where only TCP is taken; and nothing stays bound.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 {
		if _, err = dnsserver.New(dnsserver.Config{Listen: []string{l.Addr().String()}}); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "tcp") {
			t.Errorf("error %v", err)
		}
	}
}

func TestServerLife(t *testing.T) {
	s, err := dnsserver.New(dnsserver.Config{Listen: []string{"127.0.0.1:0", "127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Addrs()) != 2 || s.Addrs()[0] == s.Addrs()[1] {
		t.Errorf("addresses %v", s.Addrs())
	}
	stop := run(t, s)
	for _, addr := range s.Addrs() {
		query(t, addr.String(), "dstack.host", "SOA")
	}
	stop()
	if err := s.Run(t.Context()); err == nil {
		t.Error("ran twice")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	// The port is free again; a server that never ran is closed by Close.
	again, err := dnsserver.New(dnsserver.Config{Listen: []string{s.Addrs()[0].String()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if err := again.Run(t.Context()); err == nil {
		t.Error("ran after Close")
	}
}

func TestDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		t.Skip("dig (Debian: bind9-dnsutils) is not installed")
	}
	s, server := serve(t, dnsserver.Config{})
	s.SetZones(bigZone(t))
	addr := netip.MustParseAddrPort(server)
	for _, row := range []struct{ args, want string }{
		{"gateway.dstack.host A +short", "192.0.2.1\n"},
		{"gateway.dstack.host A +tcp +short", "192.0.2.1\n"},
		{"GaTeWaY.DsTaCk.HoSt A +noall +answer", "GaTeWaY.DsTaCk.HoSt."},
		{"gateway.dstack.host A +cookie", "(good)"},
		{"gateway.dstack.host A +cookie=0123", "FORMERR"},
		{"+header-only +cookie", "COOKIE"},
		{"0X" + strings.ToUpper(appID) + "-8080s.dstack.host AAAA +short", "2001:db8::1\n"},
		{"_acme-challenge." + appID + ".dstack.host TXT +short", "\"app\"\n"},
		{"nobody.dstack.host A", "status: NXDOMAIN"},
		{"example.org A", "status: REFUSED"},
		{"dstack.host A +edns=1 +noednsnegotiation", "status: BADVERS"},
		{"dstack.host SOA +opcode=15 +header-only", "status: NOTIMP"},
		{"dstack.host AXFR", "Transfer failed"},
		{"big.dstack.host TXT", "ANSWER: 30"},
		{"big.dstack.host TXT +ignore", "qr aa tc"},
		{"version.bind CH TXT", "status: REFUSED"},
		{"dstack.host ANY +notcp", "RFC8482"},
	} {
		args := append([]string{"@" + addr.Addr().String(), "-p", fmt.Sprint(addr.Port()), "+norecurse", "+time=5"}, strings.Fields(row.args)...)
		out, err := exec.CommandContext(timeout(t), dig, args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), row.want) {
			t.Errorf("dig %s: %v, no %q in\n%s", row.args, err, row.want, out)
		}
	}
}

func BenchmarkServerUDP(b *testing.B) {
	s, server := serve(b, dnsserver.Config{})
	s.SetZones(newZone(b, testZone()))
	conn, err := net.Dial("udp", server)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	packet, err := ask(appID+".dstack.host.", dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 1500)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(packet); err != nil {
			b.Fatal(err)
		}
		if _, err := conn.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
