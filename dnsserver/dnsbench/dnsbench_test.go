//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"dstack.host/dnsserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testApps = 50

// testServer is our server with a small zone.
func testServer(t *testing.T) netip.AddrPort {
	t.Helper()
	s, err := dnsserver.New(dnsserver.Config{Listen: []string{"127.0.0.1:0"}, MaxConnsPerClient: 100})
	if err != nil {
		t.Fatal(err)
	}
	zone, err := dnsserver.NewZone(zoneConfig(testApps))
	if err != nil {
		t.Fatal(err)
	}
	s.SetZones(zone)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s.Addrs()[0]
}

// The loads ask what they say they ask.
func TestLoads(t *testing.T) {
	server := testServer(t)
	const moment = 30 * time.Millisecond
	tcp := func(server netip.AddrPort, next source, d time.Duration) (tally, error) {
		return loadTCP(server, next, 3, d)
	}
	for _, row := range []struct {
		name     string
		load     func(netip.AddrPort, source, time.Duration) (tally, error)
		source   source
		rcode    int
		answered bool
	}{
		{"hits", load, hits(testApps, false), dns.RcodeSuccess, true},
		{"misses", load, misses(testApps), dns.RcodeNameError, false},
		{"strangers", load, strangers(true), dns.RcodeNameError, false},
		{"hits over TCP", tcp, hits(testApps, false), dns.RcodeSuccess, true},
	} {
		got, err := row.load(server, row.source, moment)
		if err != nil || got.answers == 0 || got.rcodes[row.rcode] != got.answers || (got.records > 0) != row.answered {
			t.Errorf("%s: %+v, %v", row.name, got, err)
		}
	}
	latencies, err := probe(server, hits(testApps, false), strangers(false), 1000, moment)
	if err != nil || len(latencies) == 0 || latencies[0] <= 0 || latencies[len(latencies)-1] < latencies[0] {
		t.Errorf("%d latencies, %v", len(latencies), err)
	}
}

func TestStrangersDoNotRepeat(t *testing.T) {
	next, seen := strangers(false), map[string]bool{}
	for range 10_000 {
		seen[string(next())] = true
	}
	if len(seen) < 9_999 {
		t.Errorf("%d of 10000 differ", len(seen))
	}
}

// The others' zone file has what our server answers, and nothing else.
func TestZoneFile(t *testing.T) {
	zone, err := dnsserver.NewZone(zoneConfig(testApps))
	if err != nil {
		t.Fatal(err)
	}
	zones, types := dnsserver.NewZones(zone), map[string]int{}
	parser := dns.NewZoneParser(strings.NewReader(zoneFile(zones, testApps)), "", "")
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		types[dns.TypeToString[rr.Header().Rrtype]]++
		found := false
		for _, ours := range zones.Answer(new(dns.Msg).SetQuestion(rr.Header().Name, rr.Header().Rrtype), dnsserver.TCP, dns.MaxMsgSize).Answer {
			found = found || ours.String() == rr.String()
		}
		if !found {
			t.Errorf("not ours: %s", rr)
		}
	}
	if err := parser.Err(); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"SOA": 1, "NS": 2, "CAA": 2, "A": testApps + 4, "AAAA": testApps + 4, "HTTPS": testApps + 2, "TXT": testApps + 1}
	if diff := cmp.Diff(want, types); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A ratio is the way round in which more is better for us.
func TestRows(t *testing.T) {
	us, them := &series{values: []float64{3, 1, 2}, discarded: 1}, &series{values: []float64{4, 4, 5}, discarded: 2}
	rows := []row{compare("hit", "knot", cpuPerQuery, us, them, 1.2), compare("hit", "knot", rate, us, them, 0), compare("hit", "", rate, us, nil, 0)}
	text, err := json.Marshal(rows)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"case":"hit","peer":"knot","metric":"cpu_us","ours":2,"theirs":4,"ratio":2,"rounds":3,"discarded":3},` +
		`{"case":"hit","peer":"knot","metric":"qps","ours":2,"theirs":4,"ratio":0.5,"rounds":3,"discarded":3},` +
		`{"case":"hit","metric":"qps","ours":2,"rounds":3,"discarded":1}]`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	var table bytes.Buffer
	writeTable(&table, rows)
	if !strings.Contains(table.String(), "1.2 reached") {
		t.Errorf("no verdict in\n%s", table.String())
	}
}

// The meter sees work of this process, and does not take it for others'.
func TestMeter(t *testing.T) {
	self, err := cpuOf(1 << 30)
	if err == nil {
		t.Errorf("a process that is not there used %v", self)
	}
	m, err := startMeter(os.Getpid())
	if err != nil {
		t.Skip(err) // a kernel without schedstat
	}
	sum := 0
	for i := range 50_000_000 {
		sum += i
	}
	used, err := m.stop(0)
	if err != nil || used.server <= 0 || sum == 0 {
		t.Errorf("%+v, %v", used, err)
	}
}
