package dnsserver_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// limited asks n times and counts what came back.
func limited(r *dnsserver.Responder, packet string, n int) (full, truncated, dropped int) {
	for range n {
		switch answer := r.Respond(nil, []byte(packet)); {
		case answer == nil:
			dropped++
		case answer[2]&0x02 != 0:
			truncated++
		default:
			full++
		}
	}
	return full, truncated, dropped
}

func TestRateLimit(t *testing.T) {
	zones := richZones(t)
	good, missing := header+question, header+"\x06nobody"+zoneName+typeA
	foreign := header + "\x07example\x03org\x00" + typeA
	start := func(slip int) *dnsserver.Responder {
		return dnsserver.NewResponder(zones, dnsserver.UDP, dnsserver.Config{RateLimit: dnsserver.RateLimit{PerSecond: 100, Slip: slip}}, true)
	}
	check := func(name string, r *dnsserver.Responder, packet string, n int, want string) {
		t.Helper()
		full, truncated, dropped := limited(r, packet, n)
		if got := fmt.Sprintf("%d full, %d truncated, %d dropped", full, truncated, dropped); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	r := start(0)
	check("a second's worth at once", r, good, 150, "100 full, 50 truncated, 0 dropped")
	check("denials count apart", r, missing, 150, "100 full, 50 truncated, 0 dropped")
	check("refusals count apart", r, foreign, 150, "100 full, 50 truncated, 0 dropped")
	check("what is no query counts as refusal", r, header, 10, "0 full, 10 truncated, 0 dropped")
	r.Client = netip.MustParseAddr("192.0.2.200")
	check("the neighbour is of the same network", r, good, 10, "0 full, 10 truncated, 0 dropped")
	r.Client = netip.MustParseAddr("192.0.3.77")
	check("another network", r, good, 100, "100 full, 0 truncated, 0 dropped")
	r.Client = netip.MustParseAddr("2001:db8:0:ff00::1")
	check("IPv6", r, good, 150, "100 full, 50 truncated, 0 dropped")
	r.Client = netip.MustParseAddr("2001:db8:0:ffff::2")
	check("the same /56", r, good, 10, "0 full, 10 truncated, 0 dropped")
	r.Now = r.Now.Add(100 * time.Millisecond)
	check("100 ms later", r, good, 50, "10 full, 40 truncated, 0 dropped")
	r.Now = r.Now.Add(time.Hour)
	check("long after", r, good, 101, "100 full, 1 truncated, 0 dropped")

	check("every second", start(2), good, 120, "100 full, 10 truncated, 10 dropped")
	check("every third", start(3), good, 109, "100 full, 3 truncated, 6 dropped")

	stream := dnsserver.NewResponder(zones, dnsserver.TCP, dnsserver.Config{RateLimit: dnsserver.RateLimit{PerSecond: 1}}, true)
	check("a stream", stream, good, 200, "200 full, 0 truncated, 0 dropped")
	unlimited := dnsserver.NewResponder(zones, dnsserver.UDP, dnsserver.Config{}, true)
	check("no limit", unlimited, good, 1000, "1000 full, 0 truncated, 0 dropped")
}

// What is sent beyond the limit is never more than what was received, and says
// what the full answer says of itself.
func TestRateLimitSendsNoMoreThanItGot(t *testing.T) {
	r := dnsserver.NewResponder(richZones(t), dnsserver.UDP, dnsserver.Config{RateLimit: dnsserver.RateLimit{PerSecond: 1}}, true)
	packet := []byte(headerAR + "\x03big" + zoneName + "\x00\x10\x00\x01" + opt)
	r.Respond(nil, packet)
	answer := r.Respond(nil, packet)
	m := new(dns.Msg)
	if err := m.Unpack(answer); err != nil {
		t.Fatal(err)
	}
	if len(answer) > len(packet) || !m.Truncated || !m.Authoritative || m.IsEdns0() == nil || len(m.Answer)+len(m.Ns) > 0 {
		t.Errorf("%d octets for %d: %v", len(answer), len(packet), m)
	}
	packet = []byte(header)
	r.Respond(nil, packet)
	if answer = r.Respond(nil, packet); len(answer) > len(packet) {
		t.Errorf("%d octets for %d", len(answer), len(packet))
	}
}

// Counting costs a compare-and-swap, also when the limit is reached.
func TestRateLimitAllocatesNothing(t *testing.T) {
	r := dnsserver.NewResponder(richZones(t), dnsserver.UDP, dnsserver.Config{RateLimit: dnsserver.RateLimit{PerSecond: 10}}, true)
	buf, packet := make([]byte, 1500), []byte(headerAR+question+opt)
	if got := testing.AllocsPerRun(100, func() { r.Respond(buf, packet) }); got > 0 {
		t.Errorf("%v allocations", got)
	}
}
