package dnsserver_test

import (
	"encoding/base32"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dstack.host/dnsserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Hosts of the test zone.
var (
	appID   = strings.Repeat("ab", 20)
	otherID = strings.Repeat("0c", 20)
	compose = strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(make([]byte, 32)))
)

// canonical knows the forms of host labels: id or compose hash, 0x before an
// id, a port after a hyphen, then s or g.
func canonical(label string) (string, bool) {
	id, suffix, some := strings.Cut(label, "-")
	if some {
		suffix = strings.TrimSuffix(strings.TrimSuffix(suffix, "g"), "s")
		if _, err := strconv.ParseUint(suffix, 10, 16); err != nil {
			return "", false
		}
	} else if len(id)%2 == 1 && (strings.HasSuffix(id, "s") || strings.HasSuffix(id, "g")) {
		id = id[:len(id)-1]
	}
	id = strings.TrimPrefix(id, "0x")
	return id, len(id) == 40 || len(id) == 52
}

func hosts(canonical string) bool {
	return canonical == appID || canonical == otherID || canonical == compose
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// testZone describes the zone that most tests use.
func testZone() dnsserver.ZoneConfig {
	return dnsserver.ZoneConfig{
		Origin: "dstack.host",
		Serial: 7,
		NS: []dnsserver.NameServer{
			{Name: "ns1.dstack.host", Addrs: addrs("192.0.2.53", "2001:db8::53")},
			{Name: "ns2.example.net."},
		},
		SOA:       dnsserver.SOA{Contact: "dns.team@example.net", NegativeTTL: 20 * time.Second},
		Addrs:     addrs("192.0.2.1", "2001:db8::1"),
		Names:     []string{"gateway", "deep.down"},
		Hosts:     hosts,
		Canonical: canonical,
		TXT: map[string][]string{
			"_acme-challenge":                       {"first", `back\slash "quoted"`},
			"_acme-challenge." + appID:              {"app"},
			"_acme-challenge.alone":                 {"alone"},
			"_dstack-app-address.dstack.host":       {otherID + ":443"},
			"_dstack-app-address.full.dstack.host.": {"x:1"},
		},
		CAA: []dnsserver.CAA{
			{Tag: "issue", Value: "letsencrypt.org; validationmethods=dns-01; accounturi=https://acme.example/acct/1"},
			{Tag: "issuewild", Value: ";", Critical: true},
		},
		Records: []dnsserver.Record{
			{Name: "@", Type: "MX", Data: "0 ."},
			{Name: "www", Type: "CNAME", Data: "gateway.dstack.host."},
			{Name: "lost", Type: "cname", Data: "missing.dstack.host."},
			{Name: "away", Type: "CNAME", Data: "example.org."},
			{Name: "old", Type: "CNAME", Data: "WWW.dstack.host."},
			{Name: "four", Type: "A", Data: "192.0.2.4"},
		},
	}
}

func newZone(t testing.TB, c dnsserver.ZoneConfig) *dnsserver.Zone {
	t.Helper()
	z, err := dnsserver.NewZone(c)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// newZones makes the test zone and one below it.
func newZones(t testing.TB) *dnsserver.Zones {
	t.Helper()
	below := dnsserver.ZoneConfig{
		Origin: "below.dstack.host",
		NS:     []dnsserver.NameServer{{Name: "ns1.dstack.host"}},
		Addrs:  addrs("198.51.100.1"),
	}
	return dnsserver.NewZones(newZone(t, testZone()), newZone(t, below))
}
