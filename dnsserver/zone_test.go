package dnsserver_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

func TestNewZoneReportsFaults(t *testing.T) {
	type config = dnsserver.ZoneConfig
	for _, row := range []struct {
		name string
		edit func(*config)
		want string // part of the error; "" for none
	}{
		{"nothing wrong", func(*config) {}, ""},
		{"origin empty", func(c *config) { c.Origin = "" }, `zone "": Origin: not a domain`},
		{"origin root", func(c *config) { c.Origin = "." }, "not a domain"},
		{"origin address", func(c *config) { c.Origin = "192.0.2.1" }, "like an IP address"},
		{"origin IPv6", func(c *config) { c.Origin = "2001:db8::1" }, "not a domain"},
		{"origin URL", func(c *config) { c.Origin = "https://dstack.host" }, "not a domain"},
		{"origin wildcard", func(c *config) { c.Origin = "*.dstack.host" }, "not a domain"},
		{"origin space", func(c *config) { c.Origin = "dstack host" }, "not a domain"},
		{"origin escape", func(c *config) { c.Origin = `a\.dstack.host` }, "not a domain"},
		{"origin two dots", func(c *config) { c.Origin = "dstack..host" }, "empty label"},
		{"origin leading dot", func(c *config) { c.Origin = ".dstack.host" }, "empty label"},
		{"origin underscore", func(c *config) { c.Origin = "_x.dstack.host" }, "'_' is not possible"},
		{"origin not ASCII", func(c *config) { c.Origin = "dstäck.host" }, "not a domain"},
		{"origin label of 64", func(c *config) { c.Origin = strings.Repeat("a", 64) + ".host" }, "longer than 63"},
		{"origin leaves no room", func(c *config) { c.Origin = strings.Repeat("abcdefg.", 24) + "host" }, "must fit before it"},
		{"origin huge", func(c *config) { c.Origin = strings.Repeat("a.", 1<<20) + "host" }, "longer than 255"},
		{"no name server", func(c *config) { c.NS = nil }, "NS: at least one"},
		{"name server without glue", func(c *config) { c.NS[0].Addrs = nil }, `NS[0] "ns1.dstack.host": glue missing`},
		{"glue outside the zone", func(c *config) { c.NS[1].Addrs = addrs("192.0.2.1") }, `NS[1] "ns2.example.net.": addresses given, but the name is outside`},
		{"name server not in full", func(c *config) { c.NS[0].Name = "ns1" }, `NS[0] "ns1": not a full domain name`},
		{"name server empty", func(c *config) { c.NS[0].Name = "" }, "not a full domain name"},
		{"name server with a space", func(c *config) { c.NS[0].Name = "ns 1.dstack.host" }, `has ' '`},
		{"name server alias", func(c *config) {
			c.NS = append(c.NS, dnsserver.NameServer{Name: "www.dstack.host", Addrs: addrs("192.0.2.8")})
		}, "can't be a CNAME"},
		{"no addresses", func(c *config) { c.Addrs = nil }, "Addrs: at least one"},
		{"invalid address", func(c *config) { c.Addrs = append(c.Addrs, netip.Addr{}) }, "not the address of a host"},
		{"unspecified address", func(c *config) { c.Addrs = addrs("::") }, ":: is not the address of a host"},
		{"multicast glue", func(c *config) { c.NS[0].Addrs = addrs("224.0.0.1") }, "224.0.0.1 is not the address"},
		{"scoped address", func(c *config) { c.Addrs = addrs("fe80::1%eth0") }, "not the address"},
		{"name outside", func(c *config) { c.Names = []string{"gateway.example.org."} }, `Names[0] "gateway.example.org.": outside the zone`},
		{"wildcard name", func(c *config) { c.Names = []string{"*"} }, `has '*'`},
		{"TXT outside", func(c *config) { c.TXT["x.example.org."] = []string{"v"} }, `TXT "x.example.org.": outside the zone`},
		{"TXT text suffix", func(c *config) { c.TXT[`evil\.dstack.host.`] = []string{"v"} }, `has '\\'`},
		{"TXT 255", func(c *config) { c.TXT["x"] = []string{strings.Repeat(`\`, 255)} }, ""},
		{"TXT 256", func(c *config) { c.TXT["x"] = []string{strings.Repeat("v", 256)} }, "value of 256 octets is too long"},
		{"TXT too many", func(c *config) {
			for i := range 1000 {
				c.TXT["x"] = append(c.TXT["x"], fmt.Sprintf("%0100d", i))
			}
		}, "are too many"},
		{"CAA tag", func(c *config) { c.CAA[0].Tag = "is sue" }, "CAA[0]: tag"},
		{"CAA no tag", func(c *config) { c.CAA[0].Tag = "" }, "CAA[0]: tag"},
		{"CAA issuer", func(c *config) { c.CAA[0].Value = "https://letsencrypt.org" }, "is not a domain"},
		{"CAA parameter", func(c *config) { c.CAA[0].Value = "letsencrypt.org; dns-01" }, "not key=value"},
		{"CAA parameters by comma", func(c *config) { c.CAA[0].Value = "letsencrypt.org; a=b c=d" }, "not key=value"},
		{"CAA control characters", func(c *config) { c.CAA[0] = dnsserver.CAA{Tag: "iodef", Value: "a\nb"} }, "printable"},
		{"CAA too long", func(c *config) { c.CAA[0].Value = strings.Repeat("a", 256) }, "too long"},
		{"CAA of Let's Encrypt as dstack writes it", func(c *config) {
			c.CAA[0].Value = "letsencrypt.org;validationmethods=dns-01;accounturi=https://acme-v02.api.letsencrypt.org/acme/acct/1"
		}, ""},
		{"CNAME with data", func(c *config) { c.Names = append(c.Names, "www") }, "CNAME www.dstack.host.: a CNAME with other data"},
		{"two CNAMEs", func(c *config) {
			c.Records = append(c.Records, dnsserver.Record{Name: "www", Type: "CNAME", Data: "example.org."})
		}, "a CNAME with other data"},
		{"CNAME at the origin", func(c *config) {
			c.Records = append(c.Records, dnsserver.Record{Name: "", Type: "CNAME", Data: "example.org."})
		}, "CNAME dstack.host.: a CNAME with other data"},
		{"CNAME at a host", func(c *config) {
			c.Records = append(c.Records, dnsserver.Record{Name: strings.Repeat("ee", 20), Type: "CNAME", Data: "example.org."})
		}, "a name that a host can have"},
		{"CNAME to itself", func(c *config) {
			c.Records = append(c.Records, dnsserver.Record{Name: "self", Type: "CNAME", Data: "SELF.dstack.host."})
		}, "CNAME self.dstack.host.: a loop"},
		{"record outside", func(c *config) { c.Records[0].Name = "example.org." }, `Records[0] "example.org." MX: outside the zone`},
		{"record type NS", func(c *config) { c.Records[0] = dnsserver.Record{Name: "sub", Type: "NS", Data: "ns.example.org."} }, "type is not one of"},
		{"record type unknown", func(c *config) { c.Records[0].Type = "NOPE" }, "type is not one of"},
		{"record data", func(c *config) { c.Records[0].Data = "nonsense" }, `data "nonsense"`},
		{"record data missing", func(c *config) { c.Records[0].Data = "" }, "Records[0]"},
		{"record data commented out", func(c *config) { c.Records[0].Data = ";" }, "Records[0]"},
		{"record data relative", func(c *config) { c.Records[1].Data = "gateway" }, "Records[1]"},
		{"record includes a file", func(c *config) { c.Records[0].Data = "0 .\n$INCLUDE /etc/passwd" }, "control character"},
		{"record generates", func(c *config) { c.Records[0].Data = "0 .\n$GENERATE 1-65535 a A 192.0.2.1" }, "control character"},
		{"record TTL", func(c *config) { c.Records[0].TTL = time.Minute + 1 }, "must be whole seconds"},
		{"record with a source", func(c *config) { c.Records[0].Data, c.Records[0].Source = "x", "static.zone:7" }, "static.zone:7: zone dstack.host: Records[0]"},
		{"CNAME with data and a source", func(c *config) {
			c.Records[1].Source, c.Names = "static.zone:9", append(c.Names, "www")
		}, "static.zone:9: zone dstack.host: CNAME www.dstack.host.: a CNAME with other data"},
		{"empty ALPN", func(c *config) { c.Service = &dnsserver.Service{ALPN: []string{""}} }, "Service: ALPN"},
		{"ECH too long", func(c *config) { c.Service = &dnsserver.Service{ECH: make([]byte, 513)} }, "Service: ECH"},
		{"record unclosed", func(c *config) { c.Records[0].Data = "0 (" }, "Records[0]"},
		{"TTL below a second", func(c *config) { c.TTL = time.Millisecond }, "TTL: 1ms: must be whole seconds"},
		{"TTL negative", func(c *config) { c.TTL = -time.Second }, "TTL: -1s"},
		{"TTL fraction", func(c *config) { c.NSTTL = 1500 * time.Millisecond }, "NSTTL: 1.5s"},
		{"TTL of years", func(c *config) { c.TTL = 1 << 62 }, "TTL:"},
		{"SOA refresh", func(c *config) { c.SOA.Refresh = 1 << 62 }, "SOA.Refresh:"},
		{"SOA contact", func(c *config) { c.SOA.Contact = "nobody" }, "SOA.Contact"},
		{"SOA contact injection", func(c *config) { c.SOA.Contact = `a b@example.org` }, "SOA.Contact"},
		{"SOA contact escape", func(c *config) { c.SOA.Contact = `a@b\.dstack.host` }, "SOA.Contact"},
		{"SOA primary", func(c *config) { c.SOA.Primary = "ns1" }, `SOA.Primary "ns1": not a full domain name`},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := testZone()
			row.edit(&c)
			z, err := dnsserver.NewZone(c)
			switch {
			case row.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
				t.Errorf("error %q, want one with %q", err, row.want)
			case (z == nil) != (err != nil):
				t.Errorf("zone %v with error %v", z, err)
			}
		})
	}
}

func TestNewZoneReportsAllFaultsAtOnce(t *testing.T) {
	c := testZone()
	c.NS[0].Addrs = nil
	c.Addrs = nil
	c.TXT["x"] = []string{strings.Repeat("v", 300)}
	c.CAA[0].Tag = "-"
	c.Records[0].Name = "example.org."
	c.TTL = -1
	_, err := dnsserver.NewZone(c)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"glue missing", "Addrs: at least one", "too long", "CAA[0]", "outside the zone", "TTL: -1ns"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q not among\n%v", want, err)
		}
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		if !strings.HasPrefix(line, "zone dstack.host: ") {
			t.Errorf("line without its zone: %s", line)
		}
	}
}

func TestNewZoneDoesNotKeepItsConfiguration(t *testing.T) {
	c := testZone()
	zs := dnsserver.NewZones(newZone(t, c))
	c.Addrs[0] = netip.MustParseAddr("203.0.113.66")
	c.NS[0].Name = "changed.example.org"
	c.TXT["_acme-challenge"][0] = "changed"
	clear(c.TXT)
	m := zs.Answer(ask("_acme-challenge.dstack.host.", dns.TypeTXT), dnsserver.UDP, 512)
	if len(m.Answer) != 2 || m.Answer[0].(*dns.TXT).Txt[0] != "first" {
		t.Errorf("changed from outside: %v", m)
	}
	m = zs.Answer(ask("dstack.host.", dns.TypeA), dnsserver.UDP, 512)
	if got := m.Answer[0].(*dns.A).A.String(); got != "192.0.2.1" {
		t.Errorf("changed from outside: %v", got)
	}
}

func TestZoneWithoutHosts(t *testing.T) {
	for _, c := range []struct {
		name      string
		hosts     func(string) bool
		canonical func(string) (string, bool)
		want      int
	}{
		{"none", nil, nil, dns.RcodeNameError},
		{"none, but a grammar", nil, canonical, dns.RcodeNameError},
		{"labels as they are", func(s string) bool { return s == "app" }, nil, dns.RcodeSuccess},
	} {
		zone := testZone()
		zone.Hosts, zone.Canonical = c.hosts, c.canonical
		m := dnsserver.NewZones(newZone(t, zone)).Answer(ask("APP.dstack.host.", dns.TypeA), dnsserver.UDP, 512)
		if m.Rcode != c.want {
			t.Errorf("%s: %v", c.name, m)
		}
	}
}

// What strangers ask reaches the host functions only as a label of letters,
// digits and hyphens in lower case.
func TestHostFunctionsSeeOnlyLabels(t *testing.T) {
	c := testZone()
	var seen []string
	c.Canonical = func(label string) (string, bool) {
		seen = append(seen, label)
		return label, true
	}
	c.Records = nil
	zs := dnsserver.NewZones(newZone(t, c))
	for _, name := range []string{"AbC-1.", `a\.b.`, `a\000b.`, "a_b.", "a.b.", "*.", `\229.`, "", "gateway."} {
		zs.Answer(ask(name+"dstack.host.", dns.TypeA), dnsserver.UDP, 512)
	}
	if got := strings.Join(seen, " "); got != "abc-1 b gateway" {
		t.Errorf("saw %q", got)
	}
}

func TestNegativeTTLIsTheLeastOfSOATTLAndMinimum(t *testing.T) {
	for _, row := range []struct {
		ttl, minimum time.Duration
		want, acme   uint32
	}{
		{time.Minute, 10 * time.Second, 10, 5},
		{10 * time.Second, time.Minute, 10, 5},
		{2 * time.Second, time.Minute, 2, 2},
		{time.Minute, 3 * time.Second, 3, 3},
	} {
		c := testZone()
		c.TTL, c.SOA.NegativeTTL = row.ttl, row.minimum
		zs := dnsserver.NewZones(newZone(t, c))
		for name, want := range map[string]uint32{"nobody": row.want, "gateway": row.want, "_acme-challenge": row.acme} {
			m := zs.Answer(ask(name+".dstack.host.", dns.TypeSRV), dnsserver.UDP, 512)
			if got := m.Ns[0].Header().Ttl; got != want || m.Ns[0].(*dns.SOA).Minttl != uint32(row.minimum/time.Second) {
				t.Errorf("%v/%v at %s: TTL %d, want %d", row.ttl, row.minimum, name, got, want)
			}
		}
	}
}

func FuzzNewZone(f *testing.F) {
	f.Add("dstack.host", "ns1.dstack.host", "_acme-challenge", "value", "MX", "0 .", "a@b.c")
	f.Add("dstack.host", "ns.example.org.", "@", `\`, "CNAME", "www.dstack.host.", "")
	f.Add("a.b", "ns.a.b", "x.a.b.", strings.Repeat(`\000`, 70), "HTTPS", `1 . alpn="h2,h3" port=8443`, "x")
	f.Add("a.b", "ns.a.b", "w", "", "SVCB", `0 a.b.`, "")
	f.Add("a.b", "ns.a.b", "w", "", "TXT", `"a" "b" \"`, "")
	f.Fuzz(func(t *testing.T, origin, ns, name, value, rrtype, data, contact string) {
		z, err := dnsserver.NewZone(dnsserver.ZoneConfig{
			Origin:  origin,
			NS:      []dnsserver.NameServer{{Name: ns}, {Name: "ns9." + origin, Addrs: addrs("192.0.2.1")}},
			SOA:     dnsserver.SOA{Contact: contact},
			Addrs:   addrs("192.0.2.1"),
			Names:   []string{name + "-a"},
			TXT:     map[string][]string{name: {value}},
			CAA:     []dnsserver.CAA{{Tag: "issue", Value: value}},
			Records: []dnsserver.Record{{Name: "r." + name, Type: rrtype, Data: data}, {Name: "r", Type: rrtype, Data: data}},
		})
		if err != nil {
			return
		}
		// A zone that is accepted answers, and every answer packs.
		zs := dnsserver.NewZones(z)
		for _, owner := range []string{"", "r.", name + ".", "r." + name + "."} {
			for _, qtype := range []uint16{dns.TypeSOA, dns.TypeNS, dns.TypeTXT, dns.TypeCAA, dns.TypeANY, dns.StringToType[strings.ToUpper(rrtype)]} {
				m := zs.Answer(askEDNS(owner+z.Origin(), qtype, 1232), dnsserver.UDP, dnsserver.MaxUDPPayload)
				out, err := m.Pack()
				if err != nil || len(out) > dnsserver.MaxUDPPayload {
					t.Fatalf("%d octets, %v: %v", len(out), err, m)
				}
				if err := new(dns.Msg).Unpack(out); err != nil {
					t.Fatalf("%v: %v", err, m)
				}
			}
		}
	})
}
