package dnsserver_test

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// benchZones has n apps.
func benchZones(b *testing.B, n int) (*dnsserver.Zones, string) {
	b.Helper()
	set := make(map[string]struct{}, n)
	id := ""
	for i := range n {
		sum := sha256.Sum256([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
		id = hex.EncodeToString(sum[:20])
		set[id] = struct{}{}
	}
	c := testZone()
	c.Hosts = func(label string) bool { _, ok := set[label]; return ok }
	return dnsserver.NewZones(newZone(b, c)), id
}

var benchQueries = []struct {
	name  string
	label func(id string) string
	qtype uint16
}{
	{"hit", func(id string) string { return id }, dns.TypeA},
	{"hit-port", func(id string) string { return "0x" + id + "-8080s" }, dns.TypeA},
	{"nxdomain", func(id string) string { return "ffff" + id[4:] }, dns.TypeA},
	{"nodata", func(id string) string { return id }, dns.TypeHTTPS},
	{"txt", func(string) string { return "_acme-challenge" }, dns.TypeTXT},
}

// BenchmarkAnswer is the decision alone.
func BenchmarkAnswer(b *testing.B) {
	zs, id := benchZones(b, 10_000)
	for _, q := range benchQueries {
		b.Run(q.name, func(b *testing.B) {
			query := askEDNS(q.label(id)+".dstack.host.", q.qtype, 1232)
			b.ReportAllocs()
			for b.Loop() {
				zs.Answer(query, dnsserver.UDP, dnsserver.MaxUDPPayload)
			}
		})
	}
}

// BenchmarkRespond is parse, answer and pack.
func BenchmarkRespond(b *testing.B) { benchmarkRespond(b, false) }

// BenchmarkRespondCached is the same with the cache, which has all but the
// names that do not exist.
func BenchmarkRespondCached(b *testing.B) { benchmarkRespond(b, true) }

func benchmarkRespond(b *testing.B, cached bool) {
	zs, id := benchZones(b, 10_000)
	for _, q := range benchQueries {
		b.Run(q.name, func(b *testing.B) {
			packet, err := askEDNS(q.label(id)+".dstack.host.", q.qtype, 1232).Pack()
			if err != nil {
				b.Fatal(err)
			}
			buf, responder := make([]byte, 2*dnsserver.MaxUDPPayload), dnsserver.NewResponder(zs, dnsserver.UDP, dnsserver.Config{}, cached)
			b.ReportAllocs()
			for b.Loop() {
				if responder.Respond(buf, packet) == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}

// BenchmarkChange is what one registration costs the DNS: a new zone in place
// of the old one. It does not grow with the number of apps.
func BenchmarkChange(b *testing.B) {
	c := testZone()
	b.ReportAllocs()
	for b.Loop() {
		dnsserver.NewZones(newZone(b, c))
	}
}
