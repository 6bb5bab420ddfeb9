package agent_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

// Valid public keys; keyA sorts before keyB in text form.
var keyA, keyB = func() (a, b tunnel.PublicKey) {
	a = tunnel.PrivateKey{0: 8, 31: 65}.PublicKey()
	b = tunnel.PrivateKey{0: 16, 31: 65}.PublicKey()
	if a.String() > b.String() {
		return b, a
	}
	return a, b
}()

func server(key tunnel.PublicKey, ip, endpoint string) string {
	return fmt.Sprintf(`{"pk":%q,"ip":%q,"endpoint":%q}`, key, ip, endpoint)
}

func answer(client string, servers ...string) string {
	return fmt.Sprintf(`{"wg":{"client_ip":%q,"servers":[%s]}}`, client, strings.Join(servers, ","))
}

var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestParseAnswer(t *testing.T) {
	a := agent.Server{Key: keyA, Addr: netip.MustParseAddr("10.0.0.1"), Endpoint: "203.0.113.5:51820"}
	b := agent.Server{Key: keyB, Addr: netip.MustParseAddr("10.4.0.1"), Endpoint: "gw.example.com:51820"}
	client := netip.MustParseAddr("10.0.0.2")
	for _, tc := range []struct {
		name, in string
		want     agent.Answer
	}{
		{"one server", answer("10.0.0.2", server(keyA, "10.0.0.1/24", a.Endpoint)),
			agent.Answer{Address: client, Servers: []agent.Server{a}}},
		{"address without a prefix", answer("10.0.0.2", server(keyA, "10.0.0.1", a.Endpoint)),
			agent.Answer{Address: client, Servers: []agent.Server{a}}},
		{"ordered by key", answer("10.0.0.2", server(keyB, "10.4.0.1/24", b.Endpoint), server(keyA, "10.0.0.1/24", a.Endpoint)),
			agent.Answer{Address: client, Servers: []agent.Server{a, b}}},
		{"no servers", answer("10.0.0.2"), agent.Answer{Address: client}},
		{"servers missing", `{"wg":{"client_ip":"10.0.0.2"}}`, agent.Answer{Address: client}},
		{"all of dstack", `{"wg":{"client_ip":"10.0.0.2","servers":[` + server(keyA, "10.0.0.1/24", a.Endpoint) + `]},
			"agent":{"external_port":443,"internal_port":8090,"domain":"app.example.com","app_address_ns_prefix":"_dstack-app-address"},
			"gateways":[{"id":1,"uuid":"00","url":"https://x","last_seen":0,"wg_public_key":"","wg_ip":"","wg_endpoint":""}]}`,
			agent.Answer{Address: client, Servers: []agent.Server{a}, Domain: "app.example.com", ExternalPort: 443}},
		{"agent null", `{"wg":{"client_ip":"10.0.0.2"},"agent":null,"gateways":null}`, agent.Answer{Address: client}},
		{"IPv6 in brackets", answer("fd00::2", server(keyA, "fd00::1/64", "[2001:db8::1]:51820")),
			agent.Answer{Address: netip.MustParseAddr("fd00::2"), Servers: []agent.Server{
				{Key: keyA, Addr: netip.MustParseAddr("fd00::1"), Endpoint: "[2001:db8::1]:51820"}}}},
	} {
		got, err := agent.ParseAnswer([]byte(tc.in))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		} else if diff := cmp.Diff(tc.want, got, sameAddr); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}

func TestParseAnswerRefuses(t *testing.T) {
	ok := server(keyA, "10.0.0.1/24", "203.0.113.5:51820")
	endpoint := func(e string) string { return answer("10.0.0.2", server(keyA, "10.0.0.1/24", e)) }
	many := slices.Repeat([]string{ok}, 65)
	for name, tc := range map[string]struct{ in, want string }{
		"empty":                      {"", "EOF"},
		"null":                       {"null", "Missing wg info"},
		"no wg":                      {`{"agent":{"domain":"x"}}`, "Missing wg info"},
		"wg null":                    {`{"wg":null}`, "Missing wg info"},
		"a list":                     {`[]`, "cannot unmarshal"},
		"wg a string":                {`{"wg":"x"}`, "cannot unmarshal"},
		"an error of the gateway":    {`{"error":"x"}`, "Missing wg info"},
		"cut":                        {`{"wg":{"client_ip":"10.0.0.2"`, "EOF"},
		"data after":                 {answer("10.0.0.2") + "{}", "data after"},
		"text after":                 {answer("10.0.0.2") + "x", "data after"},
		"servers null":               {`{"wg":{"client_ip":"10.0.0.2","servers":null}}`, "servers: null"},
		"servers an object":          {`{"wg":{"client_ip":"10.0.0.2","servers":{}}}`, "cannot unmarshal"},
		"a server null":              {`{"wg":{"client_ip":"10.0.0.2","servers":[null]}}`, "pk:"},
		"no address":                 {`{"wg":{"servers":[]}}`, "client_ip"},
		"address with prefix":        {answer("10.0.0.2/32"), "client_ip"},
		"address unspecified":        {answer("0.0.0.0"), "client_ip"},
		"address loopback":           {answer("127.0.0.1"), "client_ip"},
		"address multicast":          {answer("224.0.0.1"), "client_ip"},
		"address broadcast":          {answer("255.255.255.255"), "client_ip"},
		"address mapped":             {answer("::ffff:10.0.0.2"), "client_ip"},
		"address with zone":          {answer("fe80::1%eth0"), "client_ip"},
		"address a name":             {answer("localhost"), "client_ip"},
		"address long":               {answer(strings.Repeat("1", 1<<16)), "client_ip"},
		"server has our address":     {answer("10.0.0.1", ok), "given twice"},
		"two with one key":           {answer("10.0.0.2", ok, server(keyA, "10.4.0.1/24", "1.2.3.4:5")), "pk"},
		"two with one address":       {answer("10.0.0.2", ok, server(keyB, "10.0.0.1/16", "1.2.3.4:5")), "given twice"},
		"key of low order":           {answer("10.0.0.2", server(tunnel.PublicKey{1}, "10.0.0.1/24", "1.2.3.4:5")), "small order"},
		"key zero":                   {answer("10.0.0.2", server(tunnel.PublicKey{}, "10.0.0.1/24", "1.2.3.4:5")), "small order"},
		"key with a newline":         {`{"wg":{"client_ip":"10.0.0.2","servers":[{"pk":"` + strings.Repeat("A", 43) + `\n"}]}}`, "pk:"},
		"prefix length of a server":  {answer("10.0.0.2", server(keyA, "10.0.0.1/33", "1.2.3.4:5")), "prefix length"},
		"prefix of a server empty":   {answer("10.0.0.2", server(keyA, "10.0.0.1/", "1.2.3.4:5")), "prefix length"},
		"address of a server":        {answer("10.0.0.2", server(keyA, "", "1.2.3.4:5")), "ip:"},
		"too many":                   {answer("10.0.0.2", many...), "at most 64"},
		"endpoint empty":             {endpoint(""), "endpoint"},
		"endpoint without port":      {endpoint("203.0.113.5"), "host:port"},
		"endpoint port 0":            {endpoint("203.0.113.5:0"), "port"},
		"endpoint port 65536":        {endpoint("203.0.113.5:65536"), "port"},
		"endpoint port named":        {endpoint("203.0.113.5:https"), "port"},
		"endpoint port signed":       {endpoint("203.0.113.5:+1"), "port"},
		"endpoint IPv6 bare":         {endpoint("2001:db8::1:51820"), "brackets"},
		"endpoint IPv6 zone":         {endpoint("[fe80::1%eth0]:51820"), "not the address"},
		"endpoint unspecified":       {endpoint("0.0.0.0:51820"), "not the address"},
		"endpoint multicast":         {endpoint("224.0.0.1:51820"), "not the address"},
		"endpoint host empty":        {endpoint(":51820"), "DNS name"},
		"endpoint like an address":   {endpoint("203.0.113.500:51820"), "DNS name"},
		"endpoint with a newline":    {endpoint("gw\nPostUp=reboot:51820"), "DNS name"},
		"endpoint with a space":      {endpoint("gw example:51820"), "DNS name"},
		"endpoint with empty labels": {endpoint("gw..example:51820"), "DNS name"},
		"endpoint label too long":    {endpoint(strings.Repeat("a", 64) + ":51820"), "DNS name"},
		"endpoint name too long":     {endpoint(strings.Repeat("a.", 130) + "a:51820"), "DNS name"},
	} {
		got, err := agent.ParseAnswer([]byte(tc.in))
		if err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		} else if !strings.Contains(err.Error(), tc.want) || len(err.Error()) > 1000 {
			t.Errorf("%s: %.1000v; want it to say %q", name, err, tc.want)
		}
	}
}

func TestPortPolicyHasNoNull(t *testing.T) {
	for _, tc := range []struct {
		in   agent.PortPolicy
		want string
	}{
		{agent.PortPolicy{}, `{"ports":[],"restrict_mode":false}`},
		{agent.PortPolicy{Ports: []agent.Port{{443, true}}, RestrictMode: true},
			`{"ports":[{"port":443,"pp":true}],"restrict_mode":true}`},
	} {
		got, err := json.Marshal(tc.in)
		if err != nil || string(got) != tc.want {
			t.Errorf("%s, %v; want %s", got, err, tc.want)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte(answer("10.0.0.2", server(keyA, "10.0.0.1/24", "203.0.113.5:51820"), server(keyB, "fd00::1", "gw.example:1"))))
	f.Add([]byte(`{"wg":null}`))
	f.Add([]byte(`{"wg":{"client_ip":"10.0.0.2","servers":[null,{}]},"agent":{"external_port":99999}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := agent.ParseAnswer(data)
		if err != nil {
			return
		}
		if !a.Address.IsValid() || len(a.Servers) > 64 {
			t.Fatalf("accepted %+v", a)
		}
		for i, s := range a.Servers {
			if s.Addr == a.Address || i > 0 && a.Servers[i-1].Key.String() >= s.Key.String() {
				t.Fatalf("accepted %+v", a)
			}
		}
		if !a.Equal(a) {
			t.Fatal("not equal to itself")
		}
	})
}
