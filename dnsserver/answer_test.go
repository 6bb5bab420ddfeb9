package dnsserver_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// ask makes a query as Answer gets it.
func ask(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg).SetQuestion(name, qtype)
	m.Id = 4711
	return m
}

func askEDNS(name string, qtype, size uint16) *dns.Msg {
	m := ask(name, qtype)
	m.SetEdns0(size, false)
	return m
}

// answered is what matters of an answer.
type answered struct {
	Rcode              string
	AA                 bool
	Answer, Ns, Extra_ []string
}

func shorten(rrs []dns.RR) (out []string) {
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	return out
}

func shortenMsg(m *dns.Msg) answered {
	return answered{dns.RcodeToString[m.Rcode], m.Authoritative, shorten(m.Answer), shorten(m.Ns), shorten(m.Extra)}
}

const (
	soa     = "dstack.host. 20 IN SOA ns1.dstack.host. dns\\.team.example.net. 7 3600 600 604800 20"
	soaACME = "dstack.host. 5 IN SOA ns1.dstack.host. dns\\.team.example.net. 7 3600 600 604800 20"
)

func TestAnswer(t *testing.T) {
	zs := newZones(t)
	positive := func(rrs ...string) answered { return answered{Rcode: "NOERROR", AA: true, Answer: rrs} }
	nodata := answered{Rcode: "NOERROR", AA: true, Ns: []string{soa}}
	nxdomain := answered{Rcode: "NXDOMAIN", AA: true, Ns: []string{soa}}
	refused := answered{Rcode: "REFUSED"}
	a := func(owner string) answered { return positive(owner + " 60 IN A 192.0.2.1") }
	at := func(label string) string { return label + ".dstack.host." }

	for _, row := range []struct {
		name  string
		owner string
		qtype uint16
		want  answered
	}{
		{"apex SOA has its own TTL", "dstack.host.", dns.TypeSOA, positive(strings.Replace(soa, " 20 ", " 60 ", 1))},
		{"apex NS with glue", "dstack.host.", dns.TypeNS, answered{
			Rcode: "NOERROR", AA: true,
			Answer: []string{"dstack.host. 3600 IN NS ns1.dstack.host.", "dstack.host. 3600 IN NS ns2.example.net."},
			Extra_: []string{"ns1.dstack.host. 3600 IN A 192.0.2.53", "ns1.dstack.host. 3600 IN AAAA 2001:db8::53"},
		}},
		{"apex A", "dstack.host.", dns.TypeA, a("dstack.host.")},
		{"apex AAAA", "dstack.host.", dns.TypeAAAA, positive("dstack.host. 60 IN AAAA 2001:db8::1")},
		{"apex CAA", "dstack.host.", dns.TypeCAA, positive(
			`dstack.host. 60 IN CAA 0 issue "letsencrypt.org; validationmethods=dns-01; accounturi=https://acme.example/acct/1"`,
			`dstack.host. 60 IN CAA 128 issuewild ";"`)},
		{"apex MX from a record", "dstack.host.", dns.TypeMX, positive("dstack.host. 60 IN MX 0 .")},
		{"apex DS is the parent's", "dstack.host.", dns.TypeDS, nodata},
		{"apex unknown type", "dstack.host.", 65280, nodata},
		{"name server", at("ns1"), dns.TypeA, positive("ns1.dstack.host. 3600 IN A 192.0.2.53")},
		{"gateway", at("gateway"), dns.TypeA, a(at("gateway"))},
		{"gateway NODATA", at("gateway"), dns.TypeTXT, nodata},
		{"static A only", at("four"), dns.TypeAAAA, nodata},
		{"empty non-terminal of a name", at("down"), dns.TypeA, nodata},
		{"empty non-terminal of a challenge", at("alone"), dns.TypeA, nodata},
		{"empty non-terminal ANY", at("alone"), dns.TypeANY, positive("alone.dstack.host. 20 IN HINFO \"RFC8482\" \"\"")},

		{"app", at(appID), dns.TypeA, a(at(appID))},
		{"app AAAA", at(appID), dns.TypeAAAA, positive(at(appID) + " 60 IN AAAA 2001:db8::1")},
		{"app NODATA", at(appID), dns.TypeMX, nodata},
		{"app HTTPS NODATA", at(otherID), dns.TypeHTTPS, nodata},
		{"app with a challenge below it is still a host", at(appID), dns.TypeA, a(at(appID))},
		{"app port", at(appID + "-8080"), dns.TypeA, a(at(appID + "-8080"))},
		{"app port passthrough", at(appID + "-8443s"), dns.TypeA, a(at(appID + "-8443s"))},
		{"app port HTTP/2", at(appID + "-50051g"), dns.TypeA, a(at(appID + "-50051g"))},
		{"app passthrough", at(appID + "s"), dns.TypeA, a(at(appID + "s"))},
		{"app 0x", at("0x" + appID), dns.TypeA, a(at("0x" + appID))},
		{"app upper case keeps its case", "0X" + strings.ToUpper(appID) + ".DStack.HOST.", dns.TypeA,
			a("0X" + strings.ToUpper(appID) + ".DStack.HOST.")},
		{"compose hash", at(compose + "-443s"), dns.TypeA, a(at(compose + "-443s"))},
		{"port 65536", at(appID + "-65536"), dns.TypeA, nxdomain},
		{"unknown app", at(strings.Repeat("ff", 20)), dns.TypeA, nxdomain},
		{"64 hex do not fit a label", at(strings.Repeat("a", 63)), dns.TypeA, nxdomain},
		{"below an app", at("x." + appID), dns.TypeA, nxdomain},
		{"wildcard is no name", at("*"), dns.TypeA, nxdomain},
		{"minimised underscore", at("_"), dns.TypeA, nxdomain},
		{"unknown ANY", at("nobody"), dns.TypeANY, nxdomain},
		{"app ANY", at(appID), dns.TypeANY, positive(at(appID) + " 20 IN HINFO \"RFC8482\" \"\"")},
		{"escaped octet in an app label", at(`\000` + appID[1:]), dns.TypeA, nxdomain},
		{"escaped letter is the letter", at(`\103ateway`), dns.TypeA, a(at(`\103ateway`))},

		{"challenge", at("_acme-challenge"), dns.TypeTXT, positive(
			`_acme-challenge.dstack.host. 5 IN TXT "first"`,
			`_acme-challenge.dstack.host. 5 IN TXT "back\\slash \"quoted\""`)},
		{"challenge NODATA", at("_acme-challenge"), dns.TypeCAA, answered{Rcode: "NOERROR", AA: true, Ns: []string{soaACME}}},
		{"challenge of an app", at("_Acme-Challenge." + appID), dns.TypeTXT, positive(
			"_Acme-Challenge." + at(appID) + ` 5 IN TXT "app"`)},
		{"challenge of nobody", at("_acme-challenge.nobody"), dns.TypeTXT, answered{Rcode: "NXDOMAIN", AA: true, Ns: []string{soaACME}}},
		{"below the challenge", at("x._acme-challenge"), dns.TypeTXT, nxdomain},
		{"challenge without a value exists", "_acme-challenge.below.dstack.host.", dns.TypeTXT, answered{Rcode: "NOERROR", AA: true,
			Ns: []string{"below.dstack.host. 5 IN SOA ns1.dstack.host. hostmaster.below.dstack.host. 0 3600 600 604800 10"}}},
		{"name given with its zone", at("_dstack-app-address"), dns.TypeTXT, positive(
			at("_dstack-app-address") + ` 60 IN TXT "` + otherID + `:443"`)},
		{"name given absolutely", at("_dstack-app-address.full"), dns.TypeTXT, positive(
			at("_dstack-app-address.full") + ` 60 IN TXT "x:1"`)},

		{"alias", at("www"), dns.TypeA, positive("www.dstack.host. 60 IN CNAME gateway.dstack.host.", "gateway.dstack.host. 60 IN A 192.0.2.1")},
		{"alias of an alias", at("old"), dns.TypeA, positive("old.dstack.host. 60 IN CNAME WWW.dstack.host.",
			"WWW.dstack.host. 60 IN CNAME gateway.dstack.host.", "gateway.dstack.host. 60 IN A 192.0.2.1")},
		{"alias itself", at("WWW"), dns.TypeCNAME, positive("WWW.dstack.host. 60 IN CNAME gateway.dstack.host.")},
		{"alias ANY", at("www"), dns.TypeANY, positive("www.dstack.host. 60 IN CNAME gateway.dstack.host.")},
		{"alias out of the zone", at("away"), dns.TypeA, positive("away.dstack.host. 60 IN CNAME example.org.")},
		{"alias NODATA", at("www"), dns.TypeMX, answered{Rcode: "NOERROR", AA: true,
			Answer: []string{"www.dstack.host. 60 IN CNAME gateway.dstack.host."}, Ns: []string{soa}}},
		{"alias to nothing", at("lost"), dns.TypeA, answered{Rcode: "NXDOMAIN", AA: true,
			Answer: []string{"lost.dstack.host. 60 IN CNAME missing.dstack.host."}, Ns: []string{soa}}},

		{"longest zone", "below.dstack.host.", dns.TypeA, positive("below.dstack.host. 60 IN A 198.51.100.1")},
		{"longest zone has no apps", appID + ".below.dstack.host.", dns.TypeA, answered{Rcode: "NXDOMAIN", AA: true,
			Ns: []string{"below.dstack.host. 10 IN SOA ns1.dstack.host. hostmaster.below.dstack.host. 0 3600 600 604800 10"}}},
		{"outside", "example.org.", dns.TypeA, refused},
		{"parent", "host.", dns.TypeA, refused},
		{"root", ".", dns.TypeNS, refused},
		{"suffix without a dot", "evildstack.host.", dns.TypeA, refused},
		{"escaped dot is no border", `evil\.dstack.host.`, dns.TypeA, refused},
		{"escaped dot by number", `evil\046dstack.host.`, dns.TypeA, refused},
		{"escaped dot in a label", at(`a\.b`), dns.TypeA, nxdomain},
		{"transfer", "dstack.host.", dns.TypeAXFR, refused},
		{"incremental transfer", "dstack.host.", dns.TypeIXFR, refused},
		{"transfer elsewhere", "example.org.", dns.TypeAXFR, refused},
		{"mail type", "dstack.host.", dns.TypeMAILB, answered{Rcode: "NOTIMP"}},
		{"NXNAME is no question", "dstack.host.", 128, answered{Rcode: "FORMERR"}},
		{"OPT is no question", "dstack.host.", dns.TypeOPT, answered{Rcode: "FORMERR"}},
		{"TSIG is no question", "dstack.host.", dns.TypeTSIG, answered{Rcode: "FORMERR"}},
		{"type 0", "dstack.host.", 0, answered{Rcode: "FORMERR"}},
		{"label too long", at(strings.Repeat("a", 64)), dns.TypeA, answered{Rcode: "FORMERR"}},
		{"empty label", "a..dstack.host.", dns.TypeA, answered{Rcode: "FORMERR"}},
		{"name too long", at(strings.Repeat("abcdefg.", 32) + "x"), dns.TypeA, answered{Rcode: "FORMERR"}},
		{"no name", "", dns.TypeA, answered{Rcode: "FORMERR"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			query := ask(row.owner, row.qtype)
			query.Question[0].Name = row.owner
			m := zs.Answer(query, dnsserver.UDP, dnsserver.MaxUDPPayload)
			if diff := cmp.Diff(row.want, shortenMsg(m)); diff != "" {
				t.Errorf("%s %s (-want +got)\n%s", row.owner, dns.Type(row.qtype), diff)
			}
			if diff := cmp.Diff(query.Question, m.Question); diff != "" {
				t.Errorf("question not preserved (-want +got)\n%s", diff)
			}
		})
	}
}

func TestAnswerSetsFlagsAndEDNSFromTheQuery(t *testing.T) {
	zs := newZones(t)
	type seen struct {
		Rcode, Flags, EDE string
		OPT               bool
		Questions         int
	}
	edit := func(f func(*dns.Msg)) *dns.Msg {
		m := askEDNS("gateway.dstack.host.", dns.TypeA, 4096)
		f(m)
		return m
	}
	for _, row := range []struct {
		name  string
		zones *dnsserver.Zones
		query *dns.Msg
		want  seen
	}{
		{"plain", zs, ask("gateway.dstack.host.", dns.TypeA), seen{"NOERROR", "qr aa rd", "", false, 1}},
		{"EDNS", zs, edit(func(*dns.Msg) {}), seen{"NOERROR", "qr aa rd", "", true, 1}},
		{"DO", zs, edit(func(m *dns.Msg) { m.IsEdns0().SetDo() }), seen{"NOERROR", "qr aa rd do", "", true, 1}},
		{"every flag", zs, edit(func(m *dns.Msg) {
			m.Authoritative, m.Truncated, m.RecursionAvailable, m.Zero = true, true, true, true
			m.AuthenticatedData, m.CheckingDisabled, m.RecursionDesired, m.Rcode = true, true, false, 3
		}), seen{"NOERROR", "qr aa", "", true, 1}},
		{"EDNS flags are cleared", zs, edit(func(m *dns.Msg) { m.IsEdns0().SetZ(0x3fff) }), seen{"NOERROR", "qr aa rd", "", true, 1}},
		{"unknown option", zs, edit(func(m *dns.Msg) {
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")}}
		}), seen{"NOERROR", "qr aa rd", "", true, 1}},
		{"EDNS version 1", zs, edit(func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }), seen{"BADSIG", "qr rd", "", true, 1}},
		{"EDNS version 1 before outside", zs, edit(func(m *dns.Msg) {
			m.Question[0].Name = "example.org."
			m.IsEdns0().SetVersion(255)
		}), seen{"BADSIG", "qr rd", "", true, 1}},
		{"refused with its flags cleared", zs, edit(func(m *dns.Msg) {
			m.Question[0].Name = "example.org."
			m.AuthenticatedData, m.CheckingDisabled, m.RecursionAvailable, m.Zero = true, true, true, true
		}), seen{"REFUSED", "qr rd", "20", true, 1}},
		{"refused without EDNS says no more", zs, ask("example.org.", dns.TypeA), seen{"REFUSED", "qr rd", "", false, 1}},
		{"class CH", zs, edit(func(m *dns.Msg) {
			m.Question[0] = dns.Question{Name: "version.bind.", Qtype: dns.TypeTXT, Qclass: dns.ClassCHAOS}
		}),
			seen{"REFUSED", "qr rd", "20", true, 1}},
		{"class CH inside", zs, edit(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), seen{"REFUSED", "qr rd", "20", true, 1}},
		{"class ANY", zs, edit(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), seen{"REFUSED", "qr rd", "20", true, 1}},
		{"transfer", zs, edit(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), seen{"REFUSED", "qr rd", "18", true, 1}},
		{"NXNAME", zs, edit(func(m *dns.Msg) { m.Question[0].Qtype = 128 }), seen{"FORMERR", "qr rd", "30", true, 1}},
		{"no question", zs, edit(func(m *dns.Msg) { m.Question = nil }), seen{"FORMERR", "qr rd", "0", true, 0}},
		{"two questions", zs, edit(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), seen{"FORMERR", "qr rd", "0", true, 0}},
		{"an answer in a query", zs, edit(func(m *dns.Msg) { m.Answer = []dns.RR{&dns.NULL{Hdr: dns.RR_Header{Name: "."}}} }),
			seen{"FORMERR", "qr rd", "0", true, 1}},
		{"UPDATE", zs, edit(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), seen{"NOTIMP", "qr", "21", true, 1}},
		{"NOTIFY", zs, edit(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), seen{"NOTIMP", "qr", "21", true, 1}},
		{"opcode 15", zs, edit(func(m *dns.Msg) { m.Opcode = 15 }), seen{"NOTIMP", "qr", "21", true, 1}},
		{"not loaded", nil, edit(func(*dns.Msg) {}), seen{"SERVFAIL", "qr rd", "14", true, 1}},
		{"not loaded, not even asked for us", nil, ask("example.org.", dns.TypeA), seen{"SERVFAIL", "qr rd", "", false, 1}},
		{"not loaded transfer", nil, ask("dstack.host.", dns.TypeAXFR), seen{"REFUSED", "qr rd", "", false, 1}},
		{"loaded with nothing", dnsserver.NewZones(), edit(func(*dns.Msg) {}), seen{"REFUSED", "qr rd", "20", true, 1}},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := row.zones.Answer(row.query, dnsserver.TCP, dns.MaxMsgSize)
			packed, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			m = new(dns.Msg)
			if err := m.Unpack(packed); err != nil {
				t.Fatal(err)
			}
			got := seen{Rcode: dns.RcodeToString[m.Rcode], Flags: flags(m), OPT: m.IsEdns0() != nil, Questions: len(m.Question)}
			if opt := m.IsEdns0(); opt != nil {
				got.EDE = ede(opt)
				if opt.UDPSize() != dnsserver.MaxUDPPayload || opt.Version() != 0 || opt.Z() != 0 {
					t.Errorf("OPT: %v", opt)
				}
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func flags(m *dns.Msg) string {
	head, _, _ := strings.Cut(m.MsgHdr.String()[strings.Index(m.MsgHdr.String(), "flags: ")+len("flags: "):], ";")
	if opt := m.IsEdns0(); opt != nil && opt.Do() {
		head += " do"
	}
	return head
}

func ede(opt *dns.OPT) string {
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok {
			return strings.Fields(e.String())[0]
		}
	}
	return ""
}

func TestAnswerNeverAnswersAResponse(t *testing.T) {
	query := ask("dstack.host.", dns.TypeSOA)
	query.Response = true
	for _, zs := range []*dnsserver.Zones{nil, newZones(t)} {
		if m := zs.Answer(query, dnsserver.UDP, 512); m != nil {
			t.Errorf("answered with %v", m)
		}
	}
}

func TestAnswerTruncatesByPayload(t *testing.T) {
	c := testZone()
	c.TXT["big"] = nil
	for i := range 30 {
		c.TXT["big"] = append(c.TXT["big"], strings.Repeat(string(rune('a'+i%26)), 50+i))
	}
	c.TXT["medium"] = c.TXT["big"][:11]
	for i := range 12 {
		c.NS = append(c.NS, dnsserver.NameServer{Name: "ns" + string(rune('a'+i)) + ".dstack.host", Addrs: addrs("192.0.2.9", "2001:db8::9")})
	}
	zs := dnsserver.NewZones(newZone(t, c))

	for _, row := range []struct {
		name      string
		owner     string
		qtype     uint16
		payload   uint16 // 0: no EDNS
		transport dnsserver.Transport
		truncated bool
		answers   int
		glue      bool
	}{
		{"small without EDNS", "gateway", dns.TypeA, 0, dnsserver.UDP, false, 1, false},
		{"medium without EDNS", "medium", dns.TypeTXT, 0, dnsserver.UDP, true, 0, false},
		{"medium with payload 512", "medium", dns.TypeTXT, 512, dnsserver.UDP, true, 0, false},
		{"payload 0 counts as 512", "gateway", dns.TypeA, 1, dnsserver.UDP, false, 1, false},
		{"medium with payload 1232", "medium", dns.TypeTXT, 1232, dnsserver.UDP, false, 11, false},
		{"big with payload 1232", "big", dns.TypeTXT, 1232, dnsserver.UDP, true, 0, false},
		{"payload above ours", "big", dns.TypeTXT, 65535, dnsserver.UDP, true, 0, false},
		{"stream", "big", dns.TypeTXT, 512, dnsserver.TCP, false, 30, false},
		{"stream without EDNS", "big", dns.TypeTXT, 0, dnsserver.TCP, false, 30, false},
		{"glue is left out", "@", dns.TypeNS, 512, dnsserver.UDP, false, 14, false},
		{"glue fits", "@", dns.TypeNS, 1232, dnsserver.UDP, false, 14, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			owner := strings.TrimPrefix(row.owner+".dstack.host.", "@.")
			query := ask(owner, row.qtype)
			if row.payload > 0 {
				query = askEDNS(owner, row.qtype, row.payload)
			}
			limit, size := dnsserver.MaxUDPPayload, 65535
			if row.transport == dnsserver.UDP {
				size = min(limit, max(512, int(row.payload)))
			} else {
				limit = 65535
			}
			m := zs.Answer(query, row.transport, limit)
			packed, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if len(packed) > size {
				t.Errorf("%d octets, allowed %d", len(packed), size)
			}
			if m.Truncated != row.truncated || len(m.Answer) != row.answers || (len(shorten(m.Extra)) > 0) != row.glue {
				t.Errorf("TC=%v, %d answers, glue %v\n%v", m.Truncated, len(m.Answer), shorten(m.Extra), m)
			}
			if (m.IsEdns0() != nil) != (row.payload > 0) {
				t.Error("OPT not in kind")
			}
		})
	}
}
