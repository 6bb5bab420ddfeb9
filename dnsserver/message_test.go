package dnsserver_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// Parts of packets, as text with every octet as is.
const (
	header   = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" // RD, one question
	headerAR = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01" // and one additional
	zoneName = "\x06dstack\x04host\x00"
	typeA    = "\x00\x01\x00\x01"
	question = "\x07gateway" + zoneName + typeA
	opt      = "\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"
)

// option makes an OPT record with raw option data.
func option(data string) string {
	return opt[:9] + string(binary.BigEndian.AppendUint16(nil, uint16(len(data)))) + data
}

func TestRespondToHostilePackets(t *testing.T) {
	zs := newZones(t)
	with := func(s string, off int, octets string) string { return s[:off] + octets + s[off+len(octets):] }
	long := strings.Repeat("\x3f"+strings.Repeat("a", 63), 3)

	for _, row := range []struct {
		name   string
		packet string
		want   string // "": no answer; else rcode, questions, OPT or not
	}{
		{"good", header + question, "NOERROR 1 plain"},
		{"good with EDNS", headerAR + question + opt, "NOERROR 1 EDNS"},
		{"nothing", "", ""},
		{"one octet", "\x00", ""},
		{"eleven octets", header[:11], ""},
		{"a response", with(header+question, 2, "\x81"), ""},
		{"a response to nothing", "\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00", ""},
		{"header only, count 0", with(header, 4, "\x00\x00"), "FORMERR 0 plain"},
		{"header only, count 1", header, "FORMERR 0 plain"},
		{"count 2, one question", with(header+question, 4, "\x00\x02"), "FORMERR 0 plain"},
		{"count 2, two questions", with(header, 4, "\x00\x02") + question + question, "FORMERR 0 plain"},
		{"count 65535", with(header+question, 4, "\xff\xff"), "FORMERR 0 plain"},
		{"name without end", header + "\x07gateway", "FORMERR 0 plain"},
		{"label beyond the end", header + "\x3fabc", "FORMERR 0 plain"},
		{"no type", header + zoneName, "FORMERR 0 plain"},
		{"half a class", header + zoneName + typeA[:3], "FORMERR 0 plain"},
		{"pointer to itself", header + "\xc0\x0c" + typeA, "FORMERR 0 plain"},
		{"pointer into the header", header + "\x01a\xc0\x04" + typeA, "FORMERR 0 plain"},
		{"pointer forward", header + "\xc0\x12" + typeA + zoneName, "FORMERR 0 plain"},
		{"half a pointer", header + "\xc0", "FORMERR 0 plain"},
		{"extended label 01", header + "\x41" + strings.Repeat("a", 65) + zoneName + typeA, "FORMERR 0 plain"},
		{"extended label 10", header + "\x80a" + zoneName + typeA, "FORMERR 0 plain"},
		{"255 octets", header + long + "\x31" + strings.Repeat("b", 49) + zoneName + typeA, "NXDOMAIN 1 plain"},
		{"256 octets", header + long + "\x32" + strings.Repeat("b", 50) + zoneName + typeA, "FORMERR 0 plain"},
		{"127 labels", header + strings.Repeat("\x01a", 121) + zoneName + typeA, "NXDOMAIN 1 plain"},
		{"binary label", header + "\x04\x00.\\\xff" + zoneName + typeA, "NXDOMAIN 1 plain"},
		{"dot in a label before the zone", header + "\x0bevil.dstack\x04host\x00" + typeA, "REFUSED 1 plain"},
		{"root", header + "\x00" + typeA, "REFUSED 1 plain"},
		{"trailing octet", header + question + "\x00", "FORMERR 1 plain"},
		{"additional counted, missing", headerAR + question, "FORMERR 1 plain"},
		{"additional there, not counted", header + question + opt, "FORMERR 1 plain"},
		{"65535 additional records", with(headerAR, 10, "\xff\xff") + question + opt, "FORMERR 1 plain"},
		{"an answer", with(header, 6, "\x00\x01") + question + "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00", "FORMERR 1 plain"},
		{"an authority", with(header, 8, "\x00\x01") + question + "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00", "FORMERR 1 plain"},
		{"IXFR with its SOA", with(header, 8, "\x00\x01") + zoneName + "\x00\xfb\x00\x01" + "\xc0\x0c\x00\x06\x00\x01\x00\x00\x00\x00\x00\x00", "REFUSED 1 plain"},
		{"IXFR with an OPT as authority", with(header, 8, "\x00\x01") + zoneName + "\x00\xfb\x00\x01" + opt, "FORMERR 1 plain"},
		{"unknown additional record", headerAR + question + "\xc0\x0c\xff\x00\x00\x01\x00\x00\x00\x00\x00\x01x", "NOERROR 1 plain"},
		{"TSIG of a stranger", headerAR + question + "\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x02xx", "NOERROR 1 plain"},
		{"two OPT", with(headerAR, 10, "\x00\x02") + question + opt + opt, "FORMERR 1 plain"},
		{"OPT with a name", headerAR + question + "\x01a" + opt, "FORMERR 1 plain"},
		{"OPT by pointer", headerAR + question + "\xc0\x0c" + opt[1:], "FORMERR 1 plain"},
		{"OPT cut", headerAR + question + opt[:8], "FORMERR 1 plain"},
		{"OPT data beyond the end", headerAR + question + with(opt, 9, "\xff\xff"), "FORMERR 1 plain"},
		{"EDNS version 1", headerAR + question + with(opt, 6, "\x01"), "BADVERS 1 EDNS"},
		{"EDNS payload 0", headerAR + question + with(opt, 3, "\x00\x00"), "NOERROR 1 EDNS"},
		{"EDNS payload 65535", headerAR + question + with(opt, 3, "\xff\xff"), "NOERROR 1 EDNS"},
		{"all EDNS flags", headerAR + question + with(opt, 7, "\xff\xff"), "NOERROR 1 EDNS"},
		{"unknown option", headerAR + question + option("\xfd\xe8\x00\x03abc"), "NOERROR 1 EDNS"},
		{"malformed client subnet is not ours", headerAR + question + option("\x00\x08\x00\x01x"), "NOERROR 1 EDNS"},
		{"huge EDNS", headerAR + question + option("\xfd\xe8\xea\x60"+strings.Repeat("x", 60000)), "NOERROR 1 EDNS"},
		{"10,000 empty options", headerAR + question + option(strings.Repeat("\xfd\xe8\x00\x00", 10000)), "NOERROR 1 EDNS"},
		{"option beyond the data", headerAR + question + option("\xfd\xe8\x00\x04abc"), "FORMERR 1 plain"},
		{"half an option", headerAR + question + option("\xfd\xe8\x00"), "FORMERR 1 plain"},
		{"UPDATE", with(header, 2, "\x28") + question, "NOTIMP 0 plain"},
		{"NOTIFY", with(header, 2, "\x24") + question, "NOTIMP 0 plain"},
		{"opcode 15, header only", with(header, 2, "\x78"), "NOTIMP 0 plain"},
		{"opcode 6, no counts", "\x00\x00\x30\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01", "NOTIMP 0 plain"},
		{"HTTP", "GET / HTTP/1.1\r\nHost: dstack.host\r\n\r\n", "NOTIMP 0 plain"},
		{"ones", strings.Repeat("\x7f", 512), "NOTIMP 0 plain"},
		{"zeroes", strings.Repeat("\x00", 512), "FORMERR 0 plain"},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, transport := range []dnsserver.Transport{dnsserver.UDP, dnsserver.TCP} {
				answer := zs.Respond(make([]byte, 16), []byte(row.packet), transport)
				if got := summary(t, row.packet, answer); got != row.want {
					t.Errorf("%s: got %q, want %q", transport, got, row.want)
				}
			}
		})
	}
}

// summary checks what every answer keeps to, and tells the rest.
func summary(t *testing.T, packet string, answer []byte) string {
	t.Helper()
	if answer == nil {
		return ""
	}
	m := new(dns.Msg)
	if err := m.Unpack(answer); err != nil {
		t.Fatalf("answer does not unpack: %v\n%x", err, answer)
	}
	if answer[0] != packet[0] || answer[1] != packet[1] || !m.Response || m.Opcode != int(packet[2]>>3&0xf) {
		t.Errorf("header of another: %v", m.MsgHdr)
	}
	if m.AuthenticatedData || m.CheckingDisabled || m.RecursionAvailable || m.Zero {
		t.Errorf("flags: %v", m.MsgHdr)
	}
	rcode, edns := dns.RcodeToString[m.Rcode], "plain"
	if m.IsEdns0() != nil {
		edns = "EDNS"
	}
	if m.Rcode == dns.RcodeBadVers {
		rcode = "BADVERS"
	}
	return fmt.Sprintf("%s %d %s", rcode, len(m.Question), edns)
}

// A resolver that randomises case compares the question octet by octet, and the
// owner is a pointer to it (draft-vixie-dnsext-dns0x20).
func TestRespondKeepsTheCaseOfTheQuestion(t *testing.T) {
	zs := newZones(t)
	for _, name := range []string{"\x07GaTeWaY\x06DsTaCk\x04HoSt\x00", "\x06DSTACK\x04host\x00", "\x03NO1\x06dstAck\x04host\x00"} {
		packet := header + name + typeA
		answer := zs.Respond(nil, []byte(packet), dnsserver.UDP)
		if !bytes.HasPrefix(answer[headerOctets:], []byte(name+typeA)) {
			t.Errorf("question changed: %q", answer)
		}
		answered := binary.BigEndian.Uint16(answer[6:]) > 0
		if rest := answer[len(packet):]; answered && !bytes.HasPrefix(rest, []byte("\xc0\x0c")) {
			t.Errorf("owner not compressed to the question: %q", rest)
		}
	}
}

// Every query that the cache can't answer takes this way, so what it costs the garbage collector is pinned.
func TestRespondAllocations(t *testing.T) {
	zs := newZones(t)
	packet, buf := []byte(headerAR+question+opt), make([]byte, 2*dnsserver.MaxUDPPayload)
	responder := dnsserver.NewResponder(zs, dnsserver.UDP, dnsserver.Config{}, false)
	if got := testing.AllocsPerRun(100, func() { responder.Respond(buf, packet) }); got > 12 {
		t.Errorf("%v allocations, at most 12 so far", got)
	}
}

const headerOctets = 12

func FuzzRespond(f *testing.F) {
	for _, seed := range []string{
		header + question, headerAR + question + opt, headerAR + "\x06dstack\x04host\x00\x00\x02\x00\x01" + opt,
		header + "\x03www" + zoneName + typeA, header + "\x0f_acme-challenge" + zoneName + "\x00\x10\x00\x01",
		headerAR + "\x28" + appID + zoneName + "\x00\xff\x00\x01" + opt,
		headerAR + "\x03big" + zoneName + "\x00\x10\x00\x01" + opt, header + "\x03big" + zoneName + "\x00\x10\x00\x01",
		header + zoneName + "\x00\xfc\x00\x01", header + "\x0bevil.dstack\x04host\x00" + typeA,
		headerAR + question + option("\xfd\xe8\x00\x03abc"), "", header[:11],
	} {
		f.Add([]byte(seed))
	}
	c := testZone()
	for i := range 40 {
		c.TXT["big"] = append(c.TXT["big"], strings.Repeat("x", i*3))
	}
	zs := dnsserver.NewZones(newZone(f, c))
	f.Add([]byte(headerAR + question + option("\x00\x0a\x00\x08cookie88\x00\x03\x00\x00\x00\x0b\x00\x00\x00\x0c\x00\x01x")))
	f.Add([]byte("\x12\x34\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + option("\x00\x0a\x00\x10cookie88cookie88")))
	config, now := dnsserver.Config{NSID: strings.Repeat("n", 100), IdleTimeout: time.Second}, time.Now()
	var plain, cached []*dnsserver.Responder
	for _, transport := range []dnsserver.Transport{dnsserver.UDP, dnsserver.TCP, dnsserver.TLS, dnsserver.HTTPS} {
		plain = append(plain, dnsserver.NewResponder(zs, transport, config, false))
		cached = append(cached, dnsserver.NewResponder(zs, transport, config, true))
	}
	for _, r := range append(plain, cached...) {
		r.Now = now // cookies tell the time
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		sent := bytes.Clone(packet)
		silent := len(packet) < headerOctets || packet[2]&0x80 != 0
		for i := range plain {
			answer := plain[i].Respond(nil, packet)
			for range 2 {
				if again := cached[i].Respond(nil, packet); !bytes.Equal(answer, again) {
					t.Fatalf("the cache changes\n%x to\n%x", answer, again)
				}
			}
			if !bytes.Equal(sent, packet) {
				t.Fatal("query was written to")
			}
			if (answer == nil) != silent {
				t.Fatalf("answered: %v, must: %v", answer != nil, !silent)
			}
			if silent {
				continue
			}
			edns := strings.HasSuffix(summary(t, string(packet), answer), "EDNS")
			if udp := i == 0; udp && !edns && len(answer) > 512 || udp && len(answer) > dnsserver.MaxUDPPayload || len(answer) > 65535 {
				t.Fatalf("%d octets", len(answer))
			}
		}
		// The same through a message that another reader made of the packet.
		query := new(dns.Msg)
		if query.Unpack(packet) != nil {
			return
		}
		m := zs.Answer(query, dnsserver.UDP, dnsserver.MaxUDPPayload)
		if m == nil {
			return
		}
		out, err := m.Pack()
		if err != nil || len(out) > dnsserver.MaxUDPPayload {
			t.Fatalf("%d octets, %v", len(out), err)
		}
	})
}

// Workers answer from the same zones at once: nothing of them is written to,
// which the race detector sees.
func TestRespondersShareZones(t *testing.T) {
	t.Parallel()
	zones := richZones(t)
	var answering sync.WaitGroup
	for range 3 {
		answering.Go(func() {
			responder := dnsserver.NewResponder(zones, dnsserver.TCP, dnsserver.Config{}, false)
			for _, name := range kinds {
				for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeNS, dns.TypeSOA, dns.TypeTXT, dns.TypeCAA, dns.TypeMX, dns.TypeHTTPS, dns.TypeANY} {
					packed, err := ask(name, qtype).Pack()
					if err != nil {
						t.Error(err)
					}
					responder.Respond(nil, packed)
				}
			}
		})
	}
	answering.Wait()
}
