package dnsserver_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// need returns where a program is; without it the test is skipped.
func need(t *testing.T, program string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/", "/usr/bin/"} {
		if path, err := exec.LookPath(dir + program); err == nil {
			return path
		}
	}
	t.Skipf("%s is not installed", program)
	return ""
}

// runTool runs a program to its end and returns what it printed.
func runTool(t *testing.T, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// startSigned serves a signed zone and returns its description and where. The
// signatures are of now, for others judge them.
func startSigned(t *testing.T, p dnsserver.Policy, d dnsserver.Denial) (dnsserver.ZoneConfig, netip.AddrPort) {
	t.Helper()
	c := signedConfig(t, p, d, 200)
	now := time.Now()
	keys, err := dnsserver.Keys(nil).Advance(now, p, dnsserver.Parent{})
	if err != nil {
		t.Fatal(err)
	}
	c.Signing.Keys, c.Signing.At = keys, now
	s, err := dnsserver.New(dnsserver.Config{Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	s.SetZones(newZone(t, c))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, s.Addrs()[0]
}

var everyKind = []struct {
	name   string
	policy dnsserver.Policy
	denial dnsserver.Denial
}{
	{"CSK, P-256, block", dnsserver.Policy{}, dnsserver.DenialBlock},
	{"KSK and ZSK, Ed25519, block", dnsserver.Policy{Split: true, Algorithm: dnsserver.Ed25519}, dnsserver.DenialBlock},
	{"KSK and ZSK, P-256, compact", dnsserver.Policy{Split: true}, dnsserver.DenialCompact},
}

func TestDigAndKdigOverUDPAndTCP(t *testing.T) {
	c, addr := startSigned(t, dnsserver.Policy{}, dnsserver.DenialBlock)
	for _, program := range []string{"dig", "kdig"} {
		t.Run(program, func(t *testing.T) {
			program := need(t, program)
			for _, transport := range []string{"+notcp", "+tcp"} {
				for _, row := range []struct {
					query []string
					want  []string
				}{
					{[]string{appID + ".dstack.host", "A"}, []string{"NOERROR", "qr aa", "192.0.2.1", "RRSIG"}},
					{[]string{"_443._tcp." + appID + ".dstack.host", "TLSA"}, []string{"NOERROR", "3 1 1 BB"}},
					{[]string{appID + ".dstack.host", "HTTPS"}, []string{"NOERROR", "h3,h2,http/1.1"}},
					{[]string{"nobody.dstack.host", "A"}, []string{"NXDOMAIN", "NSEC", "SOA"}},
					{[]string{"dstack.host", "DNSKEY"}, []string{"NOERROR", "257 3 13"}},
					{[]string{"dstack.host", "CDS"}, []string{"NOERROR", "CDS"}},
				} {
					args := append([]string{"@127.0.0.1", "-p", fmt.Sprint(addr.Port()), "+dnssec", "+norec", transport}, row.query...)
					out := runTool(t, program, args...)
					for _, want := range row.want {
						if !strings.Contains(strings.ToUpper(out), strings.ToUpper(want)) {
							t.Errorf("%s %v: no %q in\n%s", program, args, want, out)
						}
					}
				}
			}
		})
	}
	_ = c
}

// names that a validator is asked for, and how they end.
type judged struct {
	name  string
	qtype string
	rcode int
	data  bool
}

func judgedNames(c dnsserver.ZoneConfig, denial dnsserver.Denial) []judged {
	absent := dns.RcodeNameError
	if denial == dnsserver.DenialCompact {
		absent = dns.RcodeSuccess
	}
	rows := []judged{
		{"dstack.host", "SOA", 0, true}, {"dstack.host", "NS", 0, true}, {"dstack.host", "A", 0, true}, {"dstack.host", "CAA", 0, true}, {"dstack.host", "DNSKEY", 0, true},
		{"gateway.dstack.host", "HTTPS", 0, true}, {appID + ".dstack.host", "A", 0, true}, {"0x" + strings.ToUpper(appID) + "-8080g.dstack.host", "AAAA", 0, true},
		{"_443._tcp." + appID + ".dstack.host", "TLSA", 0, true}, {"_dstack." + appID + ".dstack.host", "TXT", 0, true}, {"www.dstack.host", "A", 0, true},
		{appID + ".dstack.host", "MX", 0, false}, {appID + "s.dstack.host", "HTTPS", 0, false}, {"_tcp." + appID + ".dstack.host", "A", 0, false},
		{"down.dstack.host", "A", 0, false}, {"_validation-persist.dstack.host", "TXT", 0, false}, {"dstack.host", "MX", 0, true}, {"dstack.host", "AFSDB", 0, false},
		{"_acme-challenge.dstack.host", "TXT", 0, true}, {"_acme-challenge.dstack.host", "CAA", 0, false},
		{"nobody.dstack.host", "A", absent, false}, {"x." + appID + ".dstack.host", "A", absent, false}, {"a.b.c." + otherID + "-1.dstack.host", "TXT", absent, false},
		{"_443._tcp." + appID + "s.dstack.host", "TLSA", absent, false}, {"x.gateway.dstack.host", "A", absent, false}, {"gate.dstack.host", "A", absent, false},
		{"lost.dstack.host", "A", absent, true}, {appID + "-65536.dstack.host", "A", absent, false}, {appID + "-.dstack.host", "A", absent, false},
		{"zzzz.dstack.host", "A", absent, false}, {"0.dstack.host", "A", absent, false}, {"_.dstack.host", "A", absent, false},
		{"0c.dstack.host", "A", absent, false}, {"0d.dstack.host", "A", absent, false}, {"x.0.dstack.host", "A", absent, false}, {"0x.dstack.host", "A", absent, false},
	}
	if denial == dnsserver.DenialBlock { // validators take no NSEC at a wildcard for a proof that it is not there
		rows = append(rows, judged{"*.dstack.host", "A", absent, false})
	}
	r := rand.New(rand.NewPCG(9, 9))
	for range 60 {
		var id [20]byte
		for i := range id {
			id[i] = byte(r.Uint32())
		}
		name := hex.EncodeToString(id[:])
		if r.IntN(2) == 0 { // much in common with a host
			hosts := slices.Collect(c.Labels.All())
			host := hosts[r.IntN(len(hosts))]
			cut := r.IntN(len(host))
			name = host[:cut] + "z" + name[:min(20, 40-cut)]
		}
		rows = append(rows, judged{name + ".dstack.host", "A", absent, false})
	}
	return rows
}

// delv validates with our DS as the trust anchor.
func TestDelvValidates(t *testing.T) {
	delv := need(t, "delv")
	for _, kind := range everyKind {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			c, addr := startSigned(t, kind.policy, kind.denial)
			anchors := filepath.Join(t.TempDir(), "anchors")
			ds := strings.Fields(c.Signing.Keys.DS("dstack.host", c.Signing.At)[0])
			text := fmt.Sprintf("trust-anchors { dstack.host. static-ds %s %s %s %q; };\n", ds[4], ds[5], ds[6], ds[7])
			if err := os.WriteFile(anchors, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, row := range judgedNames(c, kind.denial)[:50] {
				out := runTool(t, delv, "@127.0.0.1", "-p", fmt.Sprint(addr.Port()), "-a", anchors, "+root=dstack.host", "+multiline", row.name, row.qtype)
				if !strings.Contains(out, "fully validated") || strings.Contains(out, "unsigned") {
					t.Errorf("%s %s:\n%s", row.name, row.qtype, out)
				}
			}
		})
	}
}

// Unbound validates with our DS as the trust anchor, with everything on that
// makes a resolver strict: 0x20, strict minimisation, aggressive use of NSEC.
func TestUnboundValidates(t *testing.T) {
	unbound := need(t, "unbound")
	for _, kind := range everyKind {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			c, addr := startSigned(t, kind.policy, kind.denial)
			resolver := startUnbound(t, unbound, c.Signing.Keys.DS("dstack.host", c.Signing.At)[0], addr)
			for _, row := range judgedNames(c, kind.denial) {
				query := new(dns.Msg).SetQuestion(row.name+".", dns.StringToType[row.qtype])
				query.SetEdns0(1232, true)
				m, err := dns.Exchange(query, resolver)
				if err != nil {
					t.Fatalf("%s: %v", row.name, err)
				}
				if m.Rcode != row.rcode || !m.AuthenticatedData || (len(m.Answer) > 0) != row.data {
					t.Errorf("%s %s: want %s, validated, data %v\n%v", row.name, row.qtype, dns.RcodeToString[row.rcode], row.data, m)
				}
			}
		})
	}
}

// startUnbound runs a resolver that knows one zone.
func startUnbound(t *testing.T, unbound, anchor string, addr netip.AddrPort) string {
	t.Helper()
	port := freePort(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "unbound.conf")
	text := fmt.Sprintf(`server:
  directory: %q
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  verbosity: 1
  val-log-level: 2
  interface: 127.0.0.1@%d
  do-ip6: no
  do-not-query-localhost: no
  module-config: "validator iterator"
  trust-anchor: %q
  qname-minimisation: yes
  qname-minimisation-strict: yes
  use-caps-for-id: yes
  aggressive-nsec: yes
  harden-algo-downgrade: yes
  harden-below-nxdomain: yes
  harden-referral-path: no
stub-zone:
  name: "dstack.host"
  stub-addr: 127.0.0.1@%d
remote-control:
  control-enable: no
`, dir, port, strings.Join(strings.Fields(anchor), " "), addr.Port())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	resolver := fmt.Sprintf("127.0.0.1:%d", port)
	background(t, func() bool {
		m, err := dns.Exchange(new(dns.Msg).SetQuestion("dstack.host.", dns.TypeSOA), resolver)
		return err == nil && m.Rcode == dns.RcodeSuccess
	}, unbound, "-d", "-p", "-c", file)
	return resolver
}

// freePort returns a port of 127.0.0.1 that was free for UDP and TCP a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	for range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		u, err := net.ListenPacket("udp", l.Addr().String())
		l.Close()
		if err == nil {
			u.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// background runs a program until the test ends, and returns when it is ready.
func background(t *testing.T, ready func() bool, program string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-ended
		if t.Failed() {
			t.Logf("%s:\n%s", program, out.String())
		}
	})
	deadline := time.Now().Add(20 * time.Second)
	for !ready() {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v\n%s", program, err, out.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready", program)
		}
	}
}
