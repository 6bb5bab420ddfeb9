package dnsserver_test

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// packDO makes a query for signed answers.
func packDO(t testing.TB, name string, qtype, size uint16) []byte {
	t.Helper()
	query := ask(name, qtype)
	query.SetEdns0(size, true)
	packet, err := query.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return packet
}

// randomNames are n packed queries for names as long as hosts'.
func randomNames(t testing.TB, n int, do bool) (packets [][]byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(5, 6))
	for range n {
		var b [20]byte
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		packet := packDO(t, hex.EncodeToString(b[:])+".dstack.host.", dns.TypeA, 1232)
		if !do {
			packet[len(packet)-4] = 0 // the flags of the OPT
		}
		packets = append(packets, packet)
	}
	return packets
}

// That denials are kept ready never changes what is answered: the same octets
// come whether a name's block was denied before, and for which name, or not.
func TestReadyDenialsAreInvisible(t *testing.T) {
	t.Parallel()
	for _, denial := range []dnsserver.Denial{dnsserver.DenialBlock, dnsserver.DenialCompact} {
		c := signedConfig(t, dnsserver.Policy{}, denial, 300)
		c.SOA.Primary, c.SOA.Contact = "primary.missing.dstack.host.", "hostmaster@mail.dstack.host"
		zones := dnsserver.NewZones(newZone(t, c))
		names := append(strangers(c), "missing.dstack.host.", "mail.dstack.host.", "x.mail.dstack.host.", "hostmaster.mail.dstack.host.",
			"primary.missing.dstack.host.", "mai.dstack.host.", `x\.mail.dstack.host.`, `a\064b.dstack.host.`, "x.nobody.dstack.host.",
			"_acme-challenge.mail.dstack.host.", "_acme-challenge.mai.dstack.host.", appID+".dstack.host.", "www.dstack.host.", "lost.dstack.host.")
		for _, transport := range []dnsserver.Transport{dnsserver.UDP, dnsserver.TCP} {
			plain, ready := dnsserver.NewResponder(zones, transport, dnsserver.Config{}, false), dnsserver.NewResponder(zones, transport, dnsserver.Config{}, true)
			ready.Now = plain.Now
			hits := 0
			for range 3 {
				rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
				for _, name := range names {
					for _, size := range []uint16{512, 1232} {
						for _, qtype := range []uint16{dns.TypeA, dns.TypeNSEC, dns.TypeANY, dns.TypeAXFR} {
							packet := packDO(t, name, qtype, size)
							if ready.Ready(packet) {
								hits++
							}
							want, got := plain.Respond(nil, packet), ready.Respond(nil, packet)
							if !bytes.Equal(want, got) {
								t.Fatalf("%s %s %d\n without %x\n with    %x", transport, name, qtype, want, got)
							}
						}
					}
				}
			}
			if want := 1000; denial == dnsserver.DenialBlock && hits < want || denial == dnsserver.DenialCompact && hits > 0 {
				t.Errorf("%s, %s: %d denials were ready", denial, transport, hits)
			}
		}
	}
}

// A denial says what all its block's names have in common, so it proves the
// absence of each of them, and its signatures verify.
func TestReadyDenialsProveWhatTheySay(t *testing.T) {
	t.Parallel()
	c := signedConfig(t, dnsserver.Policy{}, dnsserver.DenialBlock, 300)
	zones := dnsserver.NewZones(newZone(t, c))
	v := newVerifier(t, zones, "dstack.host.")
	ready := dnsserver.NewResponder(zones, dnsserver.UDP, dnsserver.Config{}, true)
	hits := 0
	for _, packet := range randomNames(t, 4000, true) {
		if ready.Ready(packet) {
			hits++
		}
		m := new(dns.Msg)
		if err := m.Unpack(ready.Respond(nil, packet)); err != nil {
			t.Fatal(err)
		}
		if m.Rcode != dns.RcodeNameError || hits%10 > 0 {
			continue
		}
		var proofs []*dns.NSEC
		for _, rr := range m.Ns {
			if n, ok := rr.(*dns.NSEC); ok {
				proofs = append(proofs, n)
			}
		}
		if err := v.message(m); err != nil || !denied(proofs, m.Question[0].Name) {
			t.Fatalf("%v\n%v", err, m)
		}
	}
	if hits < 2000 {
		t.Errorf("only %d denials of random names were ready", hits)
	}
}

// What was ready is of its zone: a host that is new is not denied.
func TestReadyDenialsGoWithTheirZone(t *testing.T) {
	t.Parallel()
	c := signedConfig(t, dnsserver.Policy{}, dnsserver.DenialBlock, 0)
	ready := dnsserver.NewResponder(dnsserver.NewZones(newZone(t, c)), dnsserver.UDP, dnsserver.Config{}, true)
	host := strings.Repeat("7", 40)
	packet := packDO(t, host+".dstack.host.", dns.TypeA, 1232)
	if ready.Respond(nil, packet); !ready.Ready(packet) {
		t.Fatal("not ready")
	}
	c.Labels = c.Labels.With([]string{host}, nil)
	c.Hosts = c.Labels.Contains
	ready.SetZones(dnsserver.NewZones(newZone(t, c)))
	if answer := ready.Respond(nil, packet); ready.Ready(packet) || answer[3]&0xf != dns.RcodeSuccess || answer[7] != 2 {
		t.Errorf("answered from a zone that is gone: %x", answer)
	}
}

// Signed answers that are kept cost the garbage collector nothing, and denials
// little, whatever the names.
func TestSignedAllocations(t *testing.T) {
	zones := dnsserver.NewZones(newZone(t, signedConfig(t, dnsserver.Policy{}, dnsserver.DenialBlock, 1000)))
	cached := dnsserver.NewResponder(zones, dnsserver.UDP, dnsserver.Config{}, true)
	buf := make([]byte, dnsserver.MaxUDPPayload)
	for _, row := range []struct {
		name  string
		qtype uint16
		most  float64
	}{
		{appID, dns.TypeA, 0},
		{appID + "-8080s", dns.TypeA, 0},
		{appID, dns.TypeMX, 0}, // NODATA
		{strings.Repeat("7", 40), dns.TypeA, 12},
	} {
		packet := packDO(t, row.name+".dstack.host.", row.qtype, 1232)
		if got := testing.AllocsPerRun(100, func() { cached.Respond(buf, packet) }); got > row.most {
			t.Errorf("%s %s: %v allocations, want at most %v", row.name, dns.Type(row.qtype), got, row.most)
		}
	}
}

// BenchmarkSignedRespond is the whole way of signed and unsigned answers with
// everything kept that is: a host, and names that are each another.
func BenchmarkSignedRespond(b *testing.B) {
	zones := dnsserver.NewZones(newZone(b, signedConfig(b, dnsserver.Policy{}, dnsserver.DenialBlock, 10_000)))
	for _, row := range []struct {
		name    string
		packets [][]byte
	}{
		{"hit", [][]byte{packDO(b, appID+".dstack.host.", dns.TypeA, 1232)}},
		{"nxdomain", randomNames(b, 1<<17, true)},
		{"nxdomain-unsigned", randomNames(b, 1<<17, false)},
	} {
		b.Run(row.name, func(b *testing.B) {
			responder, buf := dnsserver.NewResponder(zones, dnsserver.UDP, dnsserver.Config{}, true), make([]byte, dnsserver.MaxUDPPayload)
			for _, packet := range row.packets {
				responder.Respond(buf, packet)
			}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				responder.Respond(buf, row.packets[i%len(row.packets)])
				i++
			}
		})
	}
}
