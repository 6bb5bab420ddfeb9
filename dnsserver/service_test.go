package dnsserver_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// serviceZone is the test zone with everything that hosts can have.
func serviceZone() dnsserver.ZoneConfig {
	c := testZone()
	c.Passthrough = func(label string) bool { return strings.HasSuffix(label, "s") }
	c.HostTXT = func(canonical string) []string {
		if canonical == otherID {
			return nil
		}
		return []string{"app=" + canonical, `odd=\`, "instances=2"}
	}
	c.Service = &dnsserver.Service{
		ALPN: []string{"h3", "h2", "http/1.1"}, ECH: []byte{1, 2, 3},
		OriginKeys: [][32]byte{{0xaa}}, Keys: [][32]byte{{0xbb}, {0xcc}},
	}
	return c
}

const svc = `1 . alpn="h3,h2,http/1.1" ipv4hint="192.0.2.1" ech="AQID" ipv6hint="2001:db8::1"`

func TestHostsHaveTheirServiceRecords(t *testing.T) {
	zs := dnsserver.NewZones(newZone(t, serviceZone()))
	nodata := answered{Rcode: "NOERROR", AA: true, Ns: []string{soa}}
	nxdomain := answered{Rcode: "NXDOMAIN", AA: true, Ns: []string{soa}}
	tlsa := func(owner string, digests ...string) answered {
		a := answered{Rcode: "NOERROR", AA: true}
		for _, d := range digests {
			a.Answer = append(a.Answer, fmt.Sprintf("%s 60 IN TLSA 3 1 1 %s%062d", owner, d, 0))
		}
		return a
	}
	https := func(owner string) answered {
		return answered{Rcode: "NOERROR", AA: true, Answer: []string{owner + " 60 IN HTTPS " + svc}}
	}
	const zone = ".dstack.host."
	for _, row := range []struct {
		name  string
		owner string
		qtype uint16
		want  answered
	}{
		{"origin", "dstack.host.", dns.TypeHTTPS, https("dstack.host.")},
		{"gateway", "gateway" + zone, dns.TypeHTTPS, https("gateway" + zone)},
		{"app", appID + zone, dns.TypeHTTPS, https(appID + zone)},
		{"app in capitals", strings.ToUpper(appID) + zone, dns.TypeHTTPS, https(strings.ToUpper(appID) + zone)},
		{"app with a port", "0x" + appID + "-8080g" + zone, dns.TypeHTTPS, https("0x" + appID + "-8080g" + zone)},
		{"passthrough has none", appID + "-8443s" + zone, dns.TypeHTTPS, nodata},
		{"passthrough has addresses", appID + "s" + zone, dns.TypeA,
			answered{Rcode: "NOERROR", AA: true, Answer: []string{appID + "s" + zone + " 60 IN A 192.0.2.1"}}},
		{"key of the origin", "_443._tcp.dstack.host.", dns.TypeTLSA, tlsa("_443._tcp.dstack.host.", "aa")},
		{"keys of the gateway", "_443._tcp.gateway" + zone, dns.TypeTLSA, tlsa("_443._tcp.gateway"+zone, "bb", "cc")},
		{"keys of an app", "_443._TCP." + appID + zone, dns.TypeTLSA, tlsa("_443._TCP."+appID+zone, "bb", "cc")},
		{"keys at another port", "_8443._tcp." + appID + zone, dns.TypeTLSA, nxdomain},
		{"keys of passthrough are the app's own", "_443._tcp." + appID + "s" + zone, dns.TypeTLSA, nxdomain},
		{"empty non-terminal", "_tcp." + appID + zone, dns.TypeTLSA, nodata},
		{"no empty non-terminal of passthrough", "_tcp." + appID + "s" + zone, dns.TypeTLSA, nxdomain},
		{"below a name that no app has", "_443._tcp." + strings.Repeat("ff", 20) + zone, dns.TypeTLSA, nxdomain},
		{"facts", "_dstack." + appID + zone, dns.TypeTXT, answered{Rcode: "NOERROR", AA: true,
			Answer: []string{"_dstack." + appID + zone + ` 60 IN TXT "app=` + appID + `" "odd=\\" "instances=2"`}}},
		{"facts of passthrough", "_dstack." + compose + "-1s" + zone, dns.TypeTXT, answered{Rcode: "NOERROR", AA: true,
			Answer: []string{"_dstack." + compose + "-1s" + zone + ` 60 IN TXT "app=` + compose + `" "odd=\\" "instances=2"`}}},
		{"facts of another type", "_dstack." + appID + zone, dns.TypeA, nodata},
		{"no facts", "_dstack." + otherID + zone, dns.TypeTXT, nxdomain},
		{"facts below facts", "_dstack._dstack." + appID + zone, dns.TypeTXT, nxdomain},
		{"no host, no facts", "_dstack.gateway" + zone, dns.TypeTXT, nxdomain},
		{"app address of nobody", "_dstack-app-address" + zone, dns.TypeA, nodata},
		{"validation of nobody", "_validation-persist" + zone, dns.TypeTXT, nodata},
	} {
		m := zs.Answer(ask(row.owner, row.qtype), dnsserver.UDP, dnsserver.MaxUDPPayload)
		if diff := cmp.Diff(row.want, shortenMsg(m)); diff != "" {
			t.Errorf("%s: %s %s (-want +got)\n%s", row.name, row.owner, dns.Type(row.qtype), diff)
		}
	}
}

func TestServiceAtAnotherPort(t *testing.T) {
	c := serviceZone()
	c.Service.Port, c.Service.ECH, c.Addrs = 8443, nil, addrs("192.0.2.1")
	zs := dnsserver.NewZones(newZone(t, c))
	for _, row := range []struct {
		owner string
		qtype uint16
		want  string
	}{
		{appID + ".dstack.host.", dns.TypeHTTPS, `1 . alpn="h3,h2,http/1.1" port="8443" ipv4hint="192.0.2.1"`},
		{"_8443._https." + appID + "-1.dstack.host.", dns.TypeHTTPS, "1 " + appID + `-1.dstack.host. alpn="h3,h2,http/1.1" port="8443" ipv4hint="192.0.2.1"`},
		{"_8443._https.dstack.host.", dns.TypeHTTPS, `1 dstack.host. alpn="h3,h2,http/1.1" port="8443" ipv4hint="192.0.2.1"`},
		{"_8443._tcp." + appID + ".dstack.host.", dns.TypeTLSA, fmt.Sprintf("3 1 1 bb%062d", 0)},
	} {
		m := zs.Answer(ask(row.owner, row.qtype), dnsserver.UDP, dnsserver.MaxUDPPayload)
		if len(m.Answer) == 0 {
			t.Errorf("%s: %v", row.owner, m)
			continue
		}
		if got := strings.TrimPrefix(m.Answer[0].String(), m.Answer[0].Header().String()); got != row.want {
			t.Errorf("%s: got %s\nwant %s", row.owner, got, row.want)
		}
	}
}
