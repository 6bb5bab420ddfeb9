package dnsserver_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

const transferKey = "transfer.dstack.host."

var transferSecret = []byte("0123456789abcdef0123456789abcdef")

// startTransfers serves zones to those who have the key.
func startTransfers(t *testing.T, c dnsserver.TransferConfig, zones ...*dnsserver.Zone) *dnsserver.Server {
	t.Helper()
	c.Key = dnsserver.TransferKey{Name: transferKey, Secret: transferSecret}
	s, err := dnsserver.New(dnsserver.Config{Listen: []string{"127.0.0.1:0"}, IdleTimeout: time.Second, Transfer: c})
	if err != nil {
		t.Fatal(err)
	}
	s.SetZones(zones...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// signedNow is the signed test zone with signatures that others take.
func signedNow(t *testing.T, hosts int) dnsserver.ZoneConfig {
	t.Helper()
	c := signedConfig(t, dnsserver.Policy{}, dnsserver.DenialBlock, hosts)
	keys, err := dnsserver.Keys(nil).Advance(time.Now(), dnsserver.Policy{}, dnsserver.Parent{})
	if err != nil {
		t.Fatal(err)
	}
	c.Signing.Keys, c.Signing.At = keys, time.Now()
	return c
}

// transferRequest packs a request with TSIG.
func transferRequest(t testing.TB, name string, qtype uint16, key string, secret []byte, at time.Time) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, qtype)
	m.SetTsig(key, dns.HmacSHA256, 300, at.Unix())
	packed, _, err := dns.TsigGenerate(m, base64.StdEncoding.EncodeToString(secret), "", false)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// exchangeRaw sends a packet and returns the first answer.
func exchangeRaw(t *testing.T, network string, addr netip.AddrPort, packet []byte) *dns.Msg {
	t.Helper()
	conn, err := dns.DialTimeout(network, addr.String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(packet); err != nil {
		t.Fatal(err)
	}
	in := make([]byte, dns.MaxMsgSize)
	n, err := conn.Read(in)
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(in[:n]); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTransfersAreForThoseWithTheKey(t *testing.T) {
	s := startTransfers(t, dnsserver.TransferConfig{}, newZone(t, testZone()))
	addr, now := s.Addrs()[0], time.Now()
	unsigned, err := new(dns.Msg).SetAxfr("dstack.host.").Pack()
	if err != nil {
		t.Fatal(err)
	}
	good := transferRequest(t, "dstack.host.", dns.TypeAXFR, transferKey, transferSecret, now)
	for _, row := range []struct {
		name, network string
		packet        []byte
		rcode         int
		tsig          int // error of the answer's TSIG; -1: none
	}{
		{"no TSIG", "tcp", unsigned, dns.RcodeRefused, -1},
		{"another secret", "tcp", transferRequest(t, "dstack.host.", dns.TypeAXFR, transferKey, []byte("another secret!!"), now), dns.RcodeNotAuth, dns.RcodeBadSig},
		{"another key", "tcp", transferRequest(t, "dstack.host.", dns.TypeAXFR, "other.", transferSecret, now), dns.RcodeNotAuth, dns.RcodeBadKey},
		{"an hour ago", "tcp", transferRequest(t, "dstack.host.", dns.TypeAXFR, transferKey, transferSecret, now.Add(-time.Hour)), dns.RcodeNotAuth, dns.RcodeBadTime},
		{"over UDP", "udp", transferRequest(t, "dstack.host.", dns.TypeAXFR, transferKey, transferSecret, now), dns.RcodeRefused, 0},
		{"another zone", "tcp", transferRequest(t, "example.net.", dns.TypeAXFR, transferKey, transferSecret, now), dns.RcodeRefused, 0},
		{"a name in the zone", "tcp", transferRequest(t, "gateway.dstack.host.", dns.TypeAXFR, transferKey, transferSecret, now), dns.RcodeRefused, 0},
		{"good", "tcp", good, dns.RcodeSuccess, 0},
		{"the same again", "tcp", good, dns.RcodeRefused, 0},
	} {
		m := exchangeRaw(t, row.network, addr, row.packet)
		got := -1
		if tsig := m.IsTsig(); tsig != nil {
			got = int(tsig.Error)
		}
		if m.Rcode != row.rcode || got != row.tsig || m.Rcode != dns.RcodeSuccess && len(m.Answer) > 0 {
			t.Errorf("%s: %s, TSIG error %d, %d records; want %s, %d", row.name, dns.RcodeToString[m.Rcode], got, len(m.Answer), dns.RcodeToString[row.rcode], row.tsig)
		}
	}
}

func TestOneTransferTooManyIsRefused(t *testing.T) {
	c := testZone()
	c.Labels = manyHosts(100_000)
	c.Hosts = c.Labels.Contains
	s := startTransfers(t, dnsserver.TransferConfig{Max: 1}, newZone(t, c))
	addr := s.Addrs()[0]
	idle, err := net.Dial("tcp", addr.String()) // does not read
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if err := idle.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	if _, err := (&dns.Conn{Conn: idle}).Write(transferRequest(t, "dstack.host.", dns.TypeAXFR, transferKey, transferSecret, time.Now())); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Read(make([]byte, 1)); err != nil { // it has begun
		t.Fatal(err)
	}
	ask := func() int {
		return exchangeRaw(t, "tcp", addr, transferRequest(t, "dstack.host.", dns.TypeAXFR, transferKey, transferSecret, time.Now())).Rcode
	}
	if got := ask(); got != dns.RcodeRefused {
		t.Errorf("the second transfer: %s", dns.RcodeToString[got])
	}
	// The one that does not read is cut off, and makes room.
	waitFor(t, 20*time.Second, func() bool { return ask() == dns.RcodeSuccess })
}

// waitFor asks until it is so.
func waitFor(t *testing.T, limit time.Duration, so func() bool) {
	t.Helper()
	ticker, end := time.NewTicker(100*time.Millisecond), time.After(limit)
	defer ticker.Stop()
	for !so() {
		select {
		case <-ticker.C:
		case <-end:
			t.Fatal("it did not come to be")
		}
	}
}

func keyArg() string {
	return "hmac-sha256:" + transferKey + ":" + base64.StdEncoding.EncodeToString(transferSecret)
}

func TestTransfersOfUnsignedZones(t *testing.T) {
	c := testZone()
	c.Labels = dnsserver.NewLabels(func(yield func(string) bool) { yield(appID) })
	addr := startTransfers(t, dnsserver.TransferConfig{}, newZone(t, c)).Addrs()[0]
	for _, program := range []string{"dig", "kdig"} {
		t.Run(program, func(t *testing.T) {
			program := need(t, program)
			out := runTool(t, program, "@127.0.0.1", "-p", fmt.Sprint(addr.Port()), "-y", keyArg(), "dstack.host", "AXFR")
			for _, want := range []string{appID + ".dstack.host.", "gateway.dstack.host.", "MX", "CAA"} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			if strings.Contains(strings.ToLower(out), "tsig verif") || strings.Contains(out, "RRSIG") {
				t.Error(out)
			}
			out = runTool(t, program, "@127.0.0.1", "-p", fmt.Sprint(addr.Port()), "-y", keyArg(), "+noall", "+answer", "dstack.host", "IXFR=7")
			if got := strings.Count(out, "SOA"); got != 1 {
				t.Errorf("current secondary is sent\n%s", out)
			}
			out = runTool(t, program, "@127.0.0.1", "-p", fmt.Sprint(addr.Port()), "-y", keyArg(), "+noall", "+answer", "dstack.host", "IXFR=6")
			if got := strings.Count(out, "\tSOA\t"); got != 2 {
				t.Errorf("secondary that is behind is sent\n%s", out)
			}
		})
	}
}

func TestTransferredZonesVerify(t *testing.T) {
	c := signedNow(t, 1000)
	addr := startTransfers(t, dnsserver.TransferConfig{}, newZone(t, c)).Addrs()[0]
	dig := need(t, "dig")
	text := runTool(t, dig, "@127.0.0.1", "-p", fmt.Sprint(addr.Port()), "-y", keyArg(), "+noall", "+answer", "+onesoa", "dstack.host", "AXFR")
	file := filepath.Join(t.TempDir(), "dstack.host.zone")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range [][]string{
		{"ldns-verify-zone", file},
		{"kzonecheck", "-o", "dstack.host", "--dnssec", "on", file},
		{"dnssec-verify", "-z", "-o", "dstack.host", file},
	} {
		t.Run(row[0], func(t *testing.T) { runTool(t, need(t, row[0]), row[1:]...) })
	}
}

// knotConfig is of a secondary that knows the zone from transfers only.
const knotConfig = `
server:
    rundir: "%[1]s"
    listen: 127.0.0.1@%[2]d
    user: root:root
database:
    storage: "%[1]s"
key:
  - id: transfer.dstack.host
    algorithm: hmac-sha256
    secret: %[4]s
remote:
  - id: primary
    address: 127.0.0.1@%[3]d
    key: transfer.dstack.host
acl:
  - id: notify
    address: 127.0.0.1
    key: transfer.dstack.host
    action: notify
template:
  - id: default
    storage: "%[1]s"
zone:
  - domain: dstack.host
    master: primary
    acl: notify
    dnssec-validation: on
`

func TestKnotFollowsByNotify(t *testing.T) {
	knotd := need(t, "knotd")
	port := freePort(t)
	secondary := fmt.Sprintf("127.0.0.1:%d", port)
	c := signedNow(t, 300)
	s := startTransfers(t, dnsserver.TransferConfig{Secondaries: []string{secondary}}, newZone(t, c))
	dir := t.TempDir()
	file := filepath.Join(dir, "knot.conf")
	config := fmt.Sprintf(knotConfig, dir, port, s.Addrs()[0].Port(), base64.StdEncoding.EncodeToString(transferSecret))
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	says := func(name, qtype string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		r, err := dnsserver.Query(ctx, secondary, name, qtype)
		if err != nil {
			return err.Error()
		}
		return r.Rcode + " " + strings.Join(r.Answers, " ")
	}
	background(t, func() bool { return strings.HasPrefix(says("dstack.host", "SOA"), "NOERROR") }, knotd, "-c", file)
	if got := says("new.dstack.host", "A"); !strings.HasPrefix(got, "NXDOMAIN") {
		t.Fatal(got)
	}
	c.Serial++
	c.Records = append(c.Records, dnsserver.Record{Name: "new", Type: "A", Data: "192.0.2.9"})
	s.SetZones(newZone(t, c))
	// The SOA's refresh is an hour away: only the notice can bring it.
	waitFor(t, 20*time.Second, func() bool { return says("new.dstack.host", "A") == "NOERROR 192.0.2.9" })
	if diff := cmp.Diff("NOERROR 192.0.2.1", says(appID+".dstack.host", "A")); diff != "" {
		t.Errorf("host (-want +got):\n%s", diff)
	}
}
