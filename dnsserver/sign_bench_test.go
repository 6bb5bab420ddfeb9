package dnsserver_test

import (
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// Whatever is asked of a signed zone, the answer packs, fits, verifies, and
// denies nothing that exists.
func FuzzSignedAnswer(f *testing.F) {
	c := signedConfig(f, dnsserver.Policy{}, dnsserver.DenialBlock, 100)
	zs := dnsserver.NewZones(newZone(f, c))
	v := newVerifier(f, zs, "dstack.host.")
	names := existing(c)
	slices.SortFunc(names, compare)
	for _, label := range []string{"a", "\x00", "\xff\xff", "0x", appID, appID + "-1", "A.b", "gatewaz", "_acme-challenge", "0c\x00"} {
		f.Add([]byte(label), []byte("x"), uint16(1))
		f.Add([]byte(label), []byte{}, uint16(16))
	}
	f.Fuzz(func(t *testing.T, label, below []byte, qtype uint16) {
		if len(label) == 0 || len(label) > 63 || len(below) > 63 || qtype == dns.TypeAXFR || qtype == dns.TypeIXFR {
			return
		}
		wire := append([]byte{byte(len(label))}, label...)
		if len(below) > 0 {
			wire = slices.Concat([]byte{byte(len(below))}, below, wire)
		}
		name, _, err := dns.UnpackDomainName(append(wire, "\x06dstack\x04host\x00"...), 0)
		if err != nil {
			return
		}
		m := zs.Answer(askDO(name, qtype), dnsserver.UDP, dnsserver.MaxUDPPayload)
		packed, err := m.Pack()
		if err != nil || len(packed) > dnsserver.MaxUDPPayload {
			t.Fatalf("%d octets, %v\n%v", len(packed), err, m)
		}
		if err := v.message(m); err != nil {
			t.Fatalf("%v\n%v", err, m)
		}
		for _, rr := range m.Ns {
			if n, ok := rr.(*dns.NSEC); ok {
				checkHarmless(t, n, m, names)
			}
		}
	})
}

// BenchmarkSigned is the decision with signatures that are kept.
func BenchmarkSigned(b *testing.B) {
	c := signedConfig(b, dnsserver.Policy{}, dnsserver.DenialBlock, 10_000)
	zs := dnsserver.NewZones(newZone(b, c))
	for _, q := range []struct{ name, label string }{{"hit", appID}, {"nxdomain", "ffffffffff"}} {
		b.Run(q.name, func(b *testing.B) {
			query := askDO(q.label+".dstack.host.", dns.TypeA)
			b.ReportAllocs()
			for b.Loop() {
				zs.Answer(query, dnsserver.UDP, dnsserver.MaxUDPPayload)
			}
		})
	}
}

// BenchmarkLabels is a set of 100,000 hosts made anew, with what one takes, and
// one change of it with the signed zone that follows.
func BenchmarkLabels(b *testing.B) {
	const hosts = 100_000
	all := slices.Collect(manyHosts(hosts).All())
	b.Run("build", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			dnsserver.NewLabels(slices.Values(all))
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		kept := manyHosts(hosts)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(kept.Len()), "B/host")
		runtime.KeepAlive(kept)
	})
	b.Run("change", func(b *testing.B) {
		c := signedConfig(b, dnsserver.Policy{}, dnsserver.DenialBlock, 0)
		labels, n := manyHosts(hosts), 0
		b.ReportAllocs()
		for b.Loop() {
			n++
			c.Labels = labels.With([]string{fmt.Sprintf("%040x", n)}, nil)
			c.Hosts, c.Serial = c.Labels.Contains, uint32(n)
			dnsserver.NewZones(newZone(b, c))
		}
	})
}
