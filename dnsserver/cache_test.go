package dnsserver_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// kinds are names of every kind that there is.
var kinds = []string{
	"dstack.host.", "ns1.dstack.host.", "gateway.dstack.host.", "four.dstack.host.", "deep.down.dstack.host.", "down.dstack.host.",
	"alone.dstack.host.", "_acme-challenge.dstack.host.", "_acme-challenge." + appID + ".dstack.host.", "_acme-challenge.nobody.dstack.host.",
	appID + ".dstack.host.", "0x" + otherID + "-8080s.dstack.host.", compose + "-443g.dstack.host.", "x." + appID + ".dstack.host.",
	"nobody.dstack.host.", "www.dstack.host.", "lost.dstack.host.", "away.dstack.host.", "old.dstack.host.", "big.dstack.host.", "medium.dstack.host.",
	"below.dstack.host.", "nobody.below.dstack.host.", "host.", "example.org.", ".", `evil\.dstack.host.`, `a\000b\200.dstack.host.`,
}

// variants makes a question into packets that differ in everything but the question.
func variants(t testing.TB, name string, qtype uint16) (packets [][]byte) {
	t.Helper()
	for i, edns := range []string{"", opt, opt[:3] + "\x02\x00" + opt[5:], opt[:3] + "\x10\x00" + opt[5:], opt[:7] + "\x80" + opt[8:], opt[:7] + "\x40" + opt[8:],
		opt[:7] + "\xff\xff" + opt[9:], opt[:6] + "\x01" + opt[7:], option("\xfd\xe8\x00\x03abc"), opt + "x",
		option("\x00\x0a\x00\x08cookie88"), option("\x00\x0a\x00\x07cookie7"), option("\x00\x03\x00\x00\x00\x0b\x00\x00\x00\x0c\x00\x01x")} {
		for j, flags := range []uint16{0, 0x0100, 0x0130, 0x0640, 0x00ff} {
			for k, spell := range []func(string) string{strings.ToLower, strings.ToUpper, mixCase} {
				packed, err := ask(spell(name), qtype).Pack()
				if err != nil {
					t.Fatal(err)
				}
				binary.BigEndian.PutUint16(packed, uint16(i<<8|j<<4|k))
				binary.BigEndian.PutUint16(packed[2:], flags)
				if edns != "" {
					packed[11] = 1
				}
				packets = append(packets, append(packed, edns...))
			}
		}
	}
	return packets
}

func mixCase(s string) string {
	out := []byte(strings.ToLower(s))
	for i, c := range out {
		if 'a' <= c && c <= 'z' && (i/2+i)%3 == 0 {
			out[i] = c - 'a' + 'A'
		}
	}
	return string(out)
}

// richZones are zones with names of all kinds, and sets that need TCP or EDNS.
func richZones(t testing.TB) *dnsserver.Zones {
	c := testZone()
	for i := range 30 {
		c.TXT["big"] = append(c.TXT["big"], fmt.Sprintf("%0100d", i))
	}
	c.TXT["medium"] = c.TXT["big"][:5]
	below := dnsserver.ZoneConfig{
		Origin: "below.dstack.host",
		NS:     []dnsserver.NameServer{{Name: "ns1.dstack.host"}},
		Addrs:  addrs("198.51.100.1"),
	}
	return dnsserver.NewZones(newZone(t, c), newZone(t, below))
}

// The cache never changes what is answered: the same octets come with it, when
// it is empty, filled by any variant of the question, or of other zones, and without.
func TestCacheIsInvisible(t *testing.T) {
	t.Parallel()
	zones, config := richZones(t), dnsserver.Config{NSID: "ns-one", IdleTimeout: time.Second}
	for _, transport := range []dnsserver.Transport{dnsserver.UDP, dnsserver.TCP, dnsserver.TLS} {
		plain, cached := dnsserver.NewResponder(zones, transport, config, false), dnsserver.NewResponder(zones, transport, config, true)
		cached.Now = plain.Now // cookies tell the time
		hits := 0
		for _, name := range kinds {
			for _, qtype := range []uint16{dns.TypeA, dns.TypeNS, dns.TypeSOA, dns.TypeTXT, dns.TypeCAA, dns.TypeHTTPS, dns.TypeCNAME, dns.TypeANY, dns.TypeAXFR, 65280} {
				packets := variants(t, name, qtype)
				rand.Shuffle(len(packets), func(i, j int) { packets[i], packets[j] = packets[j], packets[i] })
				for _, packet := range packets {
					if cached.Cached(packet) {
						hits++
					}
					want, got := plain.Respond(nil, packet), cached.Respond(nil, packet)
					if !bytes.Equal(want, got) {
						t.Fatalf("%s %s %d\nquery %x\n without %x\n with    %x", transport, name, qtype, packet, want, got)
					}
				}
			}
		}
		if hits < 10_000 {
			t.Errorf("%s: only %d answers came from the cache", transport, hits)
		}
	}
}

// What is sent is what Zones.Answer decides.
func TestRespondSendsWhatAnswerDecides(t *testing.T) {
	t.Parallel()
	zones := richZones(t)
	cached := dnsserver.NewResponder(zones, dnsserver.UDP, dnsserver.Config{}, true)
	for _, name := range kinds {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeNS, dns.TypeTXT, dns.TypeANY, dns.TypeAXFR} {
			for _, size := range []uint16{0, 512, 1232} {
				query := ask(name, qtype)
				if size > 0 {
					query = askEDNS(name, qtype, size)
				}
				packet, err := query.Pack()
				if err != nil {
					t.Fatal(err)
				}
				for range 2 {
					got := new(dns.Msg)
					if err := got.Unpack(cached.Respond(nil, packet)); err != nil {
						t.Fatal(err)
					}
					want := zones.Answer(query, dnsserver.UDP, dnsserver.MaxUDPPayload)
					if diff := cmp.Diff(shortenMsg(want), shortenMsg(got)); diff != "" || flags(want) != flags(got) {
						t.Errorf("%s %d, payload %d: flags %s, want %s (-want +got)\n%s", name, qtype, size, flags(got), flags(want), diff)
					}
				}
			}
		}
	}
}

func TestCacheForgets(t *testing.T) {
	packet := []byte(headerAR + question + opt)
	cached := dnsserver.NewResponder(newZones(t), dnsserver.UDP, dnsserver.Config{}, true)
	cached.Respond(nil, packet)
	if !cached.Cached(packet) {
		t.Error("not kept")
	}
	cached.Now = cached.Now.Add(dnsserver.CacheLife + 1)
	if cached.Cached(packet) {
		t.Error("kept beyond its time")
	}
	cached.SetZones(dnsserver.NewZones())
	if answer := cached.Respond(nil, packet); answer[3]&0xf != dns.RcodeRefused {
		t.Errorf("answered from zones that are gone: %x", answer)
	}
}

// Names that a stranger makes up do not push out those that exist.
func TestCacheKeepsOutWhatDoesNotExist(t *testing.T) {
	cached := dnsserver.NewResponder(newZones(t), dnsserver.UDP, dnsserver.Config{}, true)
	for _, name := range []string{"nobody.dstack.host.", "example.org."} {
		packet, err := ask(name, dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		cached.Respond(nil, packet)
		if cached.Cached(packet) {
			t.Errorf("%s is kept", name)
		}
	}
}

// A positive answer from the cache costs the garbage collector nothing.
func TestCachedAnswerAllocatesNothing(t *testing.T) {
	cached := dnsserver.NewResponder(newZones(t), dnsserver.UDP, dnsserver.Config{}, true)
	buf := make([]byte, dnsserver.MaxUDPPayload)
	for _, packet := range []string{header + question, headerAR + question + opt, headerAR + question + option("\x00\x0a\x00\x08cookie88")} {
		packet := []byte(packet)
		if got := testing.AllocsPerRun(100, func() { cached.Respond(buf, packet) }); got > 0 {
			t.Errorf("%v allocations", got)
		}
	}
}
