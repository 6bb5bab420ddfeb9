package dnsserver_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// TestRFC8906 asks what RFC 8906 section 8 asks of a server, and more of the
// kind, over UDP and TCP: nothing is met with silence.
func TestRFC8906(t *testing.T) {
	t.Parallel()
	s, server := serve(t, dnsserver.Config{NSID: "one"})
	s.SetZones(bigZone(t))
	soa := func(change func(*dns.Msg)) *dns.Msg {
		m := ask("dstack.host.", dns.TypeSOA)
		m.RecursionDesired = false
		if change != nil {
			change(m)
		}
		return m
	}
	edns := func(change func(*dns.OPT)) *dns.Msg {
		return soa(func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			if change != nil {
				change(m.IsEdns0())
			}
		})
	}
	unknown := &dns.EDNS0_LOCAL{Code: 100}
	for _, row := range []struct {
		section, name string
		query         *dns.Msg
		want          string // rcode, flags, records, then the OPT
	}{
		{"8.1.1", "SOA", soa(nil), "NOERROR qr aa 1"},
		{"8.1.2", "unknown type", soa(func(m *dns.Msg) { m.Question[0].Qtype = 1000 }), "NOERROR qr aa 0"},
		{"8.1.3.1", "CD", soa(func(m *dns.Msg) { m.CheckingDisabled = true }), "NOERROR qr aa 1"},
		{"8.1.3.2", "AD", soa(func(m *dns.Msg) { m.AuthenticatedData = true }), "NOERROR qr aa 1"},
		{"8.1.3.3", "Z", soa(func(m *dns.Msg) { m.Zero = true }), "NOERROR qr aa 1"},
		{"8.1.3.4", "RD", soa(func(m *dns.Msg) { m.RecursionDesired = true }), "NOERROR qr aa rd 1"},
		{"8.1.4", "unknown opcode", &dns.Msg{MsgHdr: dns.MsgHdr{Id: 1, Opcode: 15}}, "NOTIMP qr 0"},
		{"8.1.4", "IQUERY", &dns.Msg{MsgHdr: dns.MsgHdr{Id: 1, Opcode: dns.OpcodeIQuery}}, "NOTIMP qr 0"},
		{"8.2.1", "EDNS", edns(nil), "NOERROR qr aa 1 version 0"},
		{"8.2.2", "EDNS version 1", edns(func(o *dns.OPT) { o.SetVersion(1) }), "BADVERS qr 0 version 0"},
		{"8.2.3", "unknown option", edns(func(o *dns.OPT) { o.Option = append(o.Option, unknown) }), "NOERROR qr aa 1 version 0"},
		{"8.2.4", "unknown flags", edns(func(o *dns.OPT) { o.SetZ(0x3fff) }), "NOERROR qr aa 1 version 0"},
		{"8.2.5", "version 1, unknown flags", edns(func(o *dns.OPT) { o.SetVersion(1); o.SetZ(0x40) }), "BADVERS qr 0 version 0"},
		{"8.2.6", "version 1, unknown option", edns(func(o *dns.OPT) { o.SetVersion(1); o.Option = append(o.Option, unknown) }), "BADVERS qr 0 version 0"},
		{"8.2.7", "truncated", soa(func(m *dns.Msg) {
			m.Question[0].Name, m.Question[0].Qtype = "big.dstack.host.", dns.TypeTXT
			m.SetEdns0(512, true)
		}), "NOERROR qr aa tc 0 version 0 do"},
		{"8.2.8", "DO", edns(func(o *dns.OPT) { o.SetDo() }), "NOERROR qr aa 1 version 0 do"},
		{"8.2.9", "version 1, DO", edns(func(o *dns.OPT) { o.SetVersion(1); o.SetDo() }), "BADVERS qr 0 version 0 do"},
		{"8.2.10", "defined options", edns(func(o *dns.OPT) {
			o.Option = []dns.EDNS0{
				&dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"},
				&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: addrs("192.0.2.0")[0].AsSlice()},
				&dns.EDNS0_EXPIRE{Code: dns.EDNS0EXPIRE, Empty: true},
			}
		}), "NOERROR qr aa 1 version 0 COOKIE NSID"},
		{"", "class CH", soa(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), "REFUSED qr 0"},
		{"", "class ANY", soa(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), "REFUSED qr 0"},
		{"", "class 0", soa(func(m *dns.Msg) { m.Question[0].Qclass = 0 }), "REFUSED qr 0"},
		{"", "another zone", soa(func(m *dns.Msg) { m.Question[0].Name = "example.org." }), "REFUSED qr 0"},
		{"", "type OPT", soa(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeOPT }), "FORMERR qr 0"},
		{"", "type 0", soa(func(m *dns.Msg) { m.Question[0].Qtype = 0 }), "FORMERR qr 0"},
		{"", "MAILB", soa(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMAILB }), "NOTIMP qr 0"},
		{"", "two questions", soa(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), "FORMERR qr 0"},
		{"", "no question", soa(func(m *dns.Msg) { m.Question = nil }), "FORMERR qr 0"},
	} {
		t.Run(strings.TrimSpace(row.section+" "+row.name), func(t *testing.T) {
			for _, network := range []string{"udp", "tcp"} {
				client := &dns.Client{Net: network, Timeout: patience, UDPSize: 4096}
				m, _, err := client.Exchange(row.query, server)
				if err != nil {
					t.Fatalf("%s: %v", network, err)
				}
				want := row.want
				if network == "tcp" && strings.Contains(want, " tc 0") {
					want = strings.Replace(want, " tc 0", " 30", 1)
				}
				if got := catalogued(m); got != want {
					t.Errorf("%s: got %q, want %q\n%v", network, got, want, m)
				}
			}
		})
	}
}

// catalogued tells of an answer what RFC 8906 looks at.
func catalogued(m *dns.Msg) string {
	rcode := dns.RcodeToString[m.Rcode]
	if m.Rcode == dns.RcodeBadVers {
		rcode = "BADVERS"
	}
	head, _, _ := strings.Cut(m.MsgHdr.String()[strings.Index(m.MsgHdr.String(), "flags: ")+len("flags: "):], ";")
	out := fmt.Sprintf("%s %s %d", rcode, head, len(m.Answer))
	opt := m.IsEdns0()
	if opt == nil {
		return out
	}
	out += fmt.Sprintf(" version %d", opt.Version())
	if opt.Do() {
		out += " do"
	}
	if opt.Z() != 0 {
		out += " z"
	}
	names := map[uint16]string{dns.EDNS0NSID: "NSID", dns.EDNS0COOKIE: "COOKIE"}
	for _, o := range opt.Option {
		if name, ok := names[o.Option()]; ok {
			out += " " + name
		} else if !slices.Contains([]uint16{dns.EDNS0EDE}, o.Option()) {
			out += fmt.Sprintf(" option %d", o.Option())
		}
	}
	return out
}
