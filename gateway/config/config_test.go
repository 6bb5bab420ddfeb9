package config_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/config"
)

var update = flag.Bool("update", false, "rewrite the files in configs that are made from the code")

const minimal = `
base_domains = ["dstack.example.com"]
dns.addresses = ["203.0.113.5"]
tunnel.endpoint = "203.0.113.5:51820"
`

func TestMinimalConfigurationIsEnough(t *testing.T) {
	c, err := config.Parse("gateway.toml", []byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Proxy.Listen.Port(), uint16(443); got != want {
		t.Errorf("proxy.listen has port %d, want the default %d", got, want)
	}
}

func TestFaultsNameFileLineKeyAndWhatWouldBeRight(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"unknown key", "proxy.lisen = \":443\"", `x.toml:5: proxy.lisen: no such key; did you mean "listen"?`},
		{"unknown table", "[zebra]\nstripes = 1", `x.toml:5: zebra: no such key; here go: attestation, base_domains,`},
		{"unknown key in a table", "[proxy]\nlisen = 1", `x.toml:6: proxy.lisen: no such key; did you mean "listen"?`},
		{"text for a number", "tunnel.mtu = \"1420\"", `x.toml:5: tunnel.mtu: wants a whole number, as 1; is the text "1420"`},
		{"number for a text", "node = 7", `x.toml:5: node: wants a text in quotes, as "text"; is 7`},
		{"negative number", "tunnel.mtu = -1", `x.toml:5: tunnel.mtu: wants a whole number, as 1; is -1`},
		{"huge number", "tunnel.mtu = 99999999999", `x.toml:5: tunnel.mtu: wants a whole number`},
		{"text for a truth", "attestation.allow_debug = \"yes\"", `wants true or false, as true; is the text "yes"`},
		{"number for a duration", "attestation.validity = 5", `wants a duration, as "30s"; is 5`},
		{"not a duration", "attestation.validity = \"5 minutes\"", `x.toml:5: attestation.validity: wants a duration, as "30s": time:`},
		{"negative duration", "attestation.validity = \"-5m\"", `is negative`},
		{"not an address", "proxy.listen = \"443\"", `x.toml:5: proxy.listen: wants an address and port, as "203.0.113.5:443" or ":443"`},
		{"port out of range", "proxy.listen = \":65536\"", `x.toml:5: proxy.listen: wants an address and port`},
		{"text for a list", "dns.listen = \":53\"", `x.toml:5: dns.listen: wants a list, as ["203.0.113.5:443" or ":443"]; is the text ":53"`},
		{"bad item in a list", "dns.listen = [\":53\", \"x\"]", `x.toml:5: dns.listen.2: wants an address and port`},
		{"value for a table", "log = 1", `x.toml:5: log: wants a table, [log]; is 1`},
		{"inline table", "log = { level = \"loud\" }", `x.toml:5: log.level: "loud" is none of debug, info, warn, error`},
		{"impossible kind", "[attestation]\nkind = \"sgx\"", `x.toml:6: attestation.kind: "sgx" is none of tdx, simulated-tdx`},
		{"revoked can't be accepted", "attestation.accepted_tcb = [\"Revoked\"]", `x.toml:5: attestation.accepted_tcb: "Revoked" can't be accepted`},
		{"clients outside the tunnel", "tunnel.clients = \"192.168.0.0/24\"", `x.toml:5: tunnel.clients: 192.168.0.0/24 must lie inside the tunnel network 10.0.0.0/16`},
		{"missing file", "enroll.kms_root = \"/nonexistent/root.pem\"", `x.toml:5: enroll.kms_root: open /nonexistent/root.pem`},
		{"no such want of evidence", "enroll.evidence = \"always\"", `x.toml:5: enroll.evidence: "always" is none of required, preferred, off`},
		{"webhook that is no URL", "enroll.auth_url = \"localhost\"", `x.toml:5: enroll.auth_url: "localhost" is not a URL`},
		{"nothing at once", "enroll.source_burst = 0", `x.toml:5: enroll.source_burst: source_burst and instance_burst must be at least 1`},
		{"no ULA", "tunnel.address6 = \"2001:db8::1/64\"", `x.toml:5: tunnel.address6: 2001:db8::1/64 is not an IPv6 ULA`},
		{"ULA in a network that is too small", "tunnel.address6 = \"fd00::1/112\"", `x.toml:5: tunnel.address6: fd00::1/112 is not an IPv6 ULA`},
		{"ULA of a client", "tunnel.address6 = \"fd00::a00:5/64\"", `x.toml:5: tunnel.address6: fd00::a00:5/64 ends like the address of a client in 10.0.0.0/16`},
		{"half a pair", "enroll.cert_file = \"/dev/null\"", `x.toml:5: enroll.cert_file: cert_file and key_file go together`},
		{"user without etcd", "store.username = \"root\"", `store.endpoints: is empty, so the embedded etcd is used`},
		{"record outside", "[[dns.records]]\nname = \"@\"\ntype = \"MX\"\ndata = \"0 .\"\n[[dns.records]]\nname = \"x.example.org.\"\ntype = \"A\"\ndata = \"192.0.2.1\"",
			`x.toml:9: dns.records.2: Records[1] "x.example.org." A: outside the zone`},
		{"record with an unknown key", "[[dns.records]]\nname = \"@\"\n[[dns.records]]\nnam = \"@\"", `x.toml:8: dns.records.2.nam: no such key; did you mean "name"?`},
		{"record with other data than its type's", "[[dns.records]]\nname = \"x\"\ntype = \"A\"\ndata = \"x\"", `x.toml:5: dns.records.1: Records[0] "x" A: data "x"`},
		{"CNAME with other data", "[[dns.records]]\nname = \"gateway\"\ntype = \"CNAME\"\ndata = \"example.org.\"",
			`x.toml:5: dns.records.1: CNAME gateway.dstack.example.com.: a CNAME with other data`},
		{"name server inside without glue", "dns.secondary_name_servers = [\"ns2.dstack.example.com\"]", `x.toml:5: dns.secondary_name_servers: NS[1] "ns2.dstack.example.com": glue missing`},
		{"algorithm", "dns.dnssec.algorithm = \"rsasha1\"", `x.toml:5: dns.dnssec.algorithm: "rsasha1" is neither`},
		{"denial", "dns.dnssec.denial = \"nsec3\"", `x.toml:5: dns.dnssec.denial: "nsec3" is none of block, compact`},
		{"lifetime", "dns.dnssec.zsk_lifetime = \"1h\"", `x.toml:5: dns.dnssec.zsk_lifetime: 1h0m0s is shorter than a rollover`},
		{"no signing", "dns.dnssec.signing_percent = 0", `x.toml:5: dns.dnssec.signing_percent: 0 is not between`},
		{"resolver", "dns.dnssec.resolver = \"quad9\"", `x.toml:5: dns.dnssec.resolver: "quad9" is not address:port`},
		{"zone file missing", "dns.zone_files = [\"/nonexistent/x.zone\"]", `x.toml:5: dns.zone_files: open /nonexistent/x.zone`},
		{"zone file that is none", "dns.zone_files = [\"config_test.go\"]", `x.toml:5: dns.zone_files: config_test.go:1: zone file:`},
		{"one query of none", "dns.query_log_sample = 0", `x.toml:5: dns.query_log_sample: must be at least 1`},
		{"dnstap over UDP", "dns.dnstap = \"udp:127.0.0.1:6000\"", `x.toml:5: dns.dnstap: "udp:127.0.0.1:6000" is neither unix:/path nor tcp:host:port`},
		{"slip of nothing", "dns.rate_limit_slip = 0", `x.toml:5: dns.rate_limit_slip: must be at least 1`},
		{"syntax", "tunnel.mtu = ", `x.toml:5: not TOML:`},
		{"key twice", "node = \"a\"\nnode = \"b\"", `not TOML:`},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := config.Parse("x.toml", []byte(minimal+row.text))
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v\nwant it to hold %s", err, row.want)
			}
		})
	}
}

func TestValuesThatCannotWorkAreRefused(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{`base_domains = []`, "base_domains: names no domain"},
		{`base_domains = ["localhost"]`, `"localhost" is not a domain`},
		{`base_domains = ["Dstack.host"]`, `"Dstack.host" is not a domain`},
		{`base_domains = ["dstack.host."]`, `"dstack.host." is not a domain`},
		{`base_domains = ["a_b.host"]`, `"a_b.host" is not a domain`},
		{`base_domains = ["d.host", "x.d.host"]`, `"x.d.host" lies in "d.host", which is signed`},
		{`base_domains = ["d.host", "d.host"]`, `"d.host" stands there twice`},
		{`tunnel.endpoint = "[2001:db8::1]:51820"`, "dstack guests can't read IPv6"},
		{`tunnel.endpoint = "203.0.113.5:0"`, `port "0" is not between 1 and 65535`},
		{`tunnel.endpoint = "203.0.113.5"`, `is not address:port`},
		{`proxy.listen = ":8000"`, "enroll.listen: [::]:8000 has the TCP port of proxy.listen"},
		{`dns.listen = [":53", "127.0.0.1:53"]`, "dns.listen: 127.0.0.1:53 has the TCP port of dns.listen"},
		{`metrics.listen = ["127.0.0.1:443"]`, "metrics.listen: 127.0.0.1:443 has the TCP port of proxy.listen"},
		{`tunnel.listen = ":53"`, "has the UDP port of dns.listen"},
		{`tunnel.address = "10.0.0.0/16"`, "is the address of the network itself; take the next one, 10.0.0.1/16"},
		{`tunnel.clients = "10.0.0.1/32"`, "tunnel.clients: 10.0.0.1/32 is wholly reserved"},
		{`tunnel.name = "dstack-wireguard0"`, "can't be the name of a network interface"},
		{`enroll.names = ["bad name"]`, `enroll.names: "bad name" is neither a DNS name nor an IP address`},
		{`enroll.kms_root = "config_test.go"`, "enroll.kms_root: config_test.go holds nothing in PEM"},
		{`enroll.kms_root = "/nonexistent"`, "enroll.kms_root: open /nonexistent"},
		{`data_dir = "config_test.go"`, "data_dir: config_test.go is no folder"},
		{`dns.name_server = "gateway"`, `dns.name_server: "gateway" is a name of the gateway itself`},
		{`node = 2026-01-01`, "a date or a time"},
		{`dns.addresses = ["224.0.0.1"]`, "dns.addresses: 224.0.0.1 is not the address of a host"},
		{`dns.addresses = []`, "dns.addresses: is empty, so the ACME server could not find"},
	} {
		text := minimal
		for line := range strings.Lines(minimal) {
			if key, _, _ := strings.Cut(row.text, " ="); strings.HasPrefix(line, key) {
				text = strings.Replace(minimal, line, row.text+"\n", 1)
			}
		}
		if text == minimal { // a key that the minimal one does not have
			text = row.text + "\n" + minimal
		}
		if _, err := config.Parse("x.toml", []byte(text)); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s\ngot %v\nwant it to hold %s", row.text, err, row.want)
		}
	}
}

func TestAllFaultsAreToldAtOnceInTheOrderOfTheFile(t *testing.T) {
	_, err := config.Parse("x.toml", []byte("node = 1\n[log]\nlevel = \"loud\"\ncolour = true\n[tunnel]\nmtu = 1\n"))
	var faults config.Faults
	if !errors.As(err, &faults) {
		t.Fatalf("got %T, want Faults", err)
	}
	var got []string
	for _, f := range faults {
		got = append(got, fmt.Sprint(f.Line, " ", f.Key))
	}
	want := []string{"0 base_domains", "0 dns.addresses", "1 node", "3 log.level", "4 log.colour", "5 tunnel.endpoint", "6 tunnel.mtu"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

func TestStaticRecordsGoToTheirZones(t *testing.T) {
	file := filepath.Join(t.TempDir(), "static.zone")
	if err := os.WriteFile(file, []byte("docs 300 CNAME docs.example.net.\nx.b.a.example. 60 A 192.0.2.7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse("x.toml", fmt.Appendf(nil, `base_domains = ["a.example", "b.a.example"]
dns.dnssec.sign = false
dns.addresses = ["203.0.113.5"]
dns.zone_files = [%q]
dns.records = [{name = "@", type = "MX", data = "0 ."}, {name = "x.a.example.", type = "TXT", data = "x", ttl = "2m"}]
tunnel.endpoint = "203.0.113.5:51820"`, file))
	if err != nil {
		t.Fatal(err)
	}
	for base, want := range map[string][]string{
		"a.example":   {"@ MX 0s dns.records.1", "x.a.example. TXT 2m0s dns.records.2", "docs.a.example. CNAME 5m0s " + file + ":1"},
		"b.a.example": {"@ MX 0s dns.records.1", "docs.b.a.example. CNAME 5m0s " + file + ":1", "x.b.a.example. A 1m0s " + file + ":2"},
	} {
		zone, err := c.Zone(base)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range zone.Records {
			got = append(got, fmt.Sprint(r.Name, " ", r.Type, " ", r.TTL, " ", r.Source))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", base, diff)
		}
	}
}

func TestLoadTellsHowToNameAFile(t *testing.T) {
	if _, err := config.Load(t.TempDir() + "/none.toml"); err == nil || !strings.Contains(err.Error(), "-c FILE") {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte("a = {b.c = [1, {d = 2}]}\n[[x.y]]\n\"q u\" = 1979-05-27"))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, err := config.Parse("x.toml", text)
		if faults, ok := errors.AsType[config.Faults](err); ok && len(faults) == 0 {
			t.Error("an error without a fault")
		}
	})
}

// example holds the values that only the operator knows.
var example = map[string]string{
	"base_domains":    `["dstack.example.com"]`,
	"dns.addresses":   `["203.0.113.5"]`,
	"tunnel.endpoint": `"203.0.113.5:51820"`,
}

func TestSampleHoldsEveryKey(t *testing.T) {
	golden(t, "../../configs/gateway.toml", "# Every key of dstack-gateway with its default. Only three have none: base_domains, dns.addresses and tunnel.endpoint.\n"+sample(config.Reference()))
	if _, err := config.Load("../../configs/gateway.toml"); err != nil {
		t.Error(err)
	}
}

func TestPolicySampleHoldsEveryKey(t *testing.T) {
	golden(t, "../../configs/policy.toml", "# Every key of a policy for dstack-gateway verify --policy FILE with its default.\n"+sample(config.PolicyReference()))
	if _, err := config.LoadPolicy("../../configs/policy.toml"); err != nil {
		t.Error(err)
	}
}

// sample writes keys as a TOML file.
func sample(keys []config.Key) string {
	var b strings.Builder
	table := ""
	for _, key := range keys {
		in, name, ok := strings.Cut(key.Name, ".")
		if !ok {
			in, name = "", key.Name
		}
		if in != table {
			fmt.Fprintf(&b, "\n[%s]\n", in)
			table = in
		}
		value := key.Default
		if v, ok := example[key.Name]; ok {
			value = v
		}
		fmt.Fprintf(&b, "# %s\n%s = %s\n", key.Help, name, value)
	}
	return b.String()
}

func TestMinimalSampleParses(t *testing.T) {
	if _, err := config.Load("../../configs/gateway.minimal.toml"); err != nil {
		t.Error(err)
	}
}

func TestReferenceIsThatOfTheCode(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Configuration\n\nTOML, read strictly: an unknown key, a wrong type or an impossible combination stops the start and is told with\n" +
		"file, line, key and what would be right. `dstack-gateway check-config -c FILE` tells the same without starting anything.\n\n" +
		"- [gateway.minimal.toml](gateway.minimal.toml): what a node on the public internet has to say\n" +
		"- [gateway.toml](gateway.toml): every key with its default\n" +
		"- [policy.toml](policy.toml): every key of a policy for `dstack-gateway verify --policy FILE`, with its default\n\n" +
		"Durations are texts as `\"30s\"`, `\"5m\"` or `\"12h\"`; an address without a host, as `\":443\"`, is every address of both families.\n\n" +
		"| key | default | effect |\n|---|---|---|\n")
	for _, key := range config.Reference() {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", key.Name, key.Default, key.Help)
	}
	golden(t, "../../configs/README.md", b.String())
}

func golden(t *testing.T, file, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("%s differs from the code; go test ./gateway/config -update rewrites it (-want +got):\n%s", file, diff)
	}
}
