package dnsserver_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

const zoneFile = `; mail and a few names
$TTL 2h
@       MX  10 mail.example.net.
        TXT "v=spf1 -all" ; nothing is sent from here
docs  300 IN CNAME docs.example.net.
www     A   192.0.2.80
        AAAA 2001:db8::80
$ORIGIN lab.dstack.host.
big     TXT ( "one"   ; the first
              "two;" )
sip._tcp SRV 0 0 5060 www.dstack.host.
`

func TestZoneFile(t *testing.T) {
	got, err := dnsserver.ParseZoneFile("static.zone", []byte(zoneFile), "dstack.host")
	if err != nil {
		t.Fatal(err)
	}
	want := []dnsserver.Record{
		{Name: "dstack.host.", Type: "MX", Data: "10 mail.example.net.", TTL: 2 * time.Hour, Source: "static.zone:3"},
		{Name: "dstack.host.", Type: "TXT", Data: `"v=spf1 -all"`, TTL: 2 * time.Hour, Source: "static.zone:4"},
		{Name: "docs.dstack.host.", Type: "CNAME", Data: "docs.example.net.", TTL: 5 * time.Minute, Source: "static.zone:5"},
		{Name: "www.dstack.host.", Type: "A", Data: "192.0.2.80", TTL: 2 * time.Hour, Source: "static.zone:6"},
		{Name: "www.dstack.host.", Type: "AAAA", Data: "2001:db8::80", TTL: 2 * time.Hour, Source: "static.zone:7"},
		{Name: "big.lab.dstack.host.", Type: "TXT", Data: `"one" "two;"`, TTL: 2 * time.Hour, Source: "static.zone:9"},
		{Name: "sip._tcp.lab.dstack.host.", Type: "SRV", Data: "0 0 5060 www.dstack.host.", TTL: 2 * time.Hour, Source: "static.zone:11"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got)\n%s", diff)
	}
}

func TestZoneFileFaultsNameTheirLine(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"include", "\n$INCLUDE /etc/passwd\n", "f:2: zone dstack.host: zone file: directive $INCLUDE: only"},
		{"generate", "$GENERATE 1-65535 a$ A 192.0.2.1", "f:1: zone dstack.host: zone file: directive $GENERATE"},
		{"no owner", "  A 192.0.2.1", "f:1: zone dstack.host: zone file: the first record names no owner"},
		{"data", "a A 192.0.2.1\na A nonsense\n", "f:2: "},
		{"type", "a NOPE x", "f:1: "},
		{"class", "a CH TXT x", "only class IN"},
		{"unclosed parenthesis", "a A 192.0.2.1\nb TXT ( x\n", "f:2: zone dstack.host: zone file: a parenthesis or a quote that is not closed"},
		{"unopened parenthesis", "a TXT x )\n", "not opened"},
		{"unclosed quote", "a TXT \"x\nb A 192.0.2.1\n", "a quote that is not closed"},
		{"backslash at the end", "a TXT x\\", "a backslash with nothing behind it"},
		{"control character", "a TXT x\x00", "a control character, 0x0"},
		{"origin not absolute", "$ORIGIN sub", "one full domain name with its trailing dot"},
		{"origin impossible", "$ORIGIN a..b.", "$ORIGIN: empty label"},
		{"TTL", "$TTL soon", `$TTL "soon" is not a number of seconds`},
		{"TTL zero", "$TTL 0", `is not a number of seconds`},
		{"huge", strings.Repeat("x", 1<<20+1), "f: zone dstack.host: zone file: larger than"},
		{"many", strings.Repeat("a A 192.0.2.1\n", 10_002), "more than 10000 records"},
	} {
		_, err := dnsserver.ParseZoneFile("f", []byte(row.text), "dstack.host")
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v\nwant it to hold %s", row.name, err, row.want)
		}
	}
}

// Records that parse are still held to the zone, with the file's line.
func TestZoneFileRecordsAreHeldToTheZone(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{"x.example.org. A 192.0.2.1", `f:1: zone dstack.host: Records[0] "x.example.org." A: outside the zone`},
		{"@ NS ns.example.org.", "type is not one of"},
		{"@ SOA a. b. 1 2 3 4 5", "type is not one of"},
		{"* A 192.0.2.1", "has '*'"},
		{"x A 192.0.2.1\nx CNAME example.org.", "f:2: zone dstack.host: CNAME x.dstack.host.: a CNAME with other data"},
	} {
		records, err := dnsserver.ParseZoneFile("f", []byte(row.text), "dstack.host")
		if err != nil {
			t.Fatal(err)
		}
		c := testZone()
		c.Records = records
		_, err = dnsserver.NewZone(c)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v\nwant it to hold %s", row.text, err, row.want)
		}
		if _, ok := errors.AsType[*dnsserver.Fault](err); !ok {
			t.Errorf("%s: no Fault: %T", row.text, err)
		}
	}
}

// What parses either makes a zone that answers its records, or is refused.
func FuzzZoneFile(f *testing.F) {
	f.Add(zoneFile)
	f.Add("@ HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1\n_25._tcp TLSA 3 1 1 (\n00 )\n")
	f.Add("\\065 TXT \"\\\"\\000\" a\\;b\n")
	f.Fuzz(func(t *testing.T, text string) {
		records, err := dnsserver.ParseZoneFile("f", []byte(text), "dstack.host")
		if err != nil {
			return
		}
		z, err := dnsserver.NewZone(dnsserver.ZoneConfig{
			Origin: "dstack.host", NS: []dnsserver.NameServer{{Name: "ns.example.net"}}, Addrs: addrs("192.0.2.1"), Records: records,
		})
		if err != nil {
			return
		}
		zs := dnsserver.NewZones(z)
		for _, r := range records {
			m := zs.Answer(askEDNS(r.Name, dns.StringToType[r.Type], 1232), dnsserver.TCP, dns.MaxMsgSize)
			if _, err := m.Pack(); err != nil || len(m.Answer) == 0 {
				t.Fatalf("%v: %v\n%v", r, err, m)
			}
		}
	})
}
