package enroll_test

import (
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/prpc"
	"dstack.host/gateway/registry"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
)

// protoBody is a request of a guest in protobuf, octet by octet: its key, and a policy that opens two ports.
func protoBody(key tunnel.PublicKey) string {
	return "\x0a\x2c" + key.String() + "\x12\x0e" + "\x0a\x05\x08\xbb\x03\x10\x01" + "\x0a\x03\x08\x90\x3f" + "\x10\x01"
}

func TestAGuestRegistersInProtobuf(t *testing.T) {
	w := newWorld(t)
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	a := dial(t, w.at, attested(t, td)).send(t, "POST", "/prpc/RegisterCvm", "", protoBody(key))
	inst := w.registry.Snapshot().Instance(idOf(t, td).ID)
	if inst == nil {
		t.Fatalf("not registered: %d %q", a.status, a.body)
	}
	field := func(number int, content string) string {
		return fmt.Sprintf("%c%c%s", number<<3|2, len(content), content)
	}
	server := field(1, gatewayKey.String()) + field(2, "10.77.0.1/24") + field(3, "203.0.113.5:51820")
	want := field(1, field(1, inst.Addr.String())+field(2, server)) +
		field(2, "\x08\xbb\x03\x10\x9a\x3f"+field(3, "apps.example.com")+field(4, "_dstack-app-address"))
	if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/octet-stream" || a.body != want {
		t.Errorf("answer %d %v\n%q\nwant\n%q", a.status, a.header, a.body, want)
	}
	ports := &registry.PortPolicy{Restrict: true, Ports: []registry.Port{{Port: 443, Proxy: true}, {Port: 8080}}}
	if diff := cmp.Diff(ports, inst.Ports); diff != "" || inst.Key != key {
		t.Errorf("key %s, want %s; ports (-want +got):\n%s", inst.Key, key, diff)
	}
}

func TestErrorsOfProtobufCallsAreProtobuf(t *testing.T) {
	w := newWorld(t)
	for name, row := range map[string]struct{ path, body, want string }{
		"no certificate":  {"/prpc/RegisterCvm", protoBody(newKey()), "no attestation provided"},
		"unknown method":  {"/prpc/Nothing", "", "Service not found: Nothing"},
		"not under /prpc": {"/x", "", "CVMs register at"},
	} {
		t.Run(name, func(t *testing.T) {
			a := dial(t, w.at, tls.Certificate{}).send(t, "POST", row.path, "", row.body)
			var message struct {
				Text string `json:"text" prpc:"1"`
			}
			if err := prpc.Unmarshal([]byte(a.body), &message); err != nil || a.status/100 != 4 || !strings.Contains(message.Text, row.want) {
				t.Errorf("%d %q: %v", a.status, a.body, err)
			}
		})
	}
}

func TestWhatTheGatewayTellsOfItself(t *testing.T) {
	w := newWorld(t)
	seen := time.Unix(1700000000, 0)
	at := w.serve(t, func(c *enroll.Config) {
		c.AppID = idOf(t, w.boot(t, simtdx.VM{AppCompose: `{"name":"gateway"}`})).Info.AppID
		c.ACMEInfo = func() ([]byte, error) {
			return []byte(`{"account_uri":"https://acme/1","hist_keys":[],"quoted_hist_keys":[{"public_key":"00ff","quote":"{}","attestation":""}],"account_quote":"q","account_attestation":""}`), nil
		}
		c.Nodes = func() []enroll.Node {
			return []enroll.Node{{ID: 7, UUID: [16]byte{1}, URL: "https://gw:8000", LastSeen: seen, Server: c.Servers[0]}, {ID: 9, URL: "https://other:8000", Server: c.Servers[0], LastSeen: seen}}
		}
	})
	peer := attested(t, w.boot(t, simtdx.VM{AppCompose: `{"name":"gateway"}`}))
	for _, row := range []struct {
		name, method, path string
		certificate        tls.Certificate
		status             int
		want               string
	}{
		{"info", "POST", "/prpc/Info?json", tls.Certificate{}, 200, `{"base_domain":"apps.example.com","external_port":443,"app_address_ns_prefix":"_dstack-app-address","version":"v1.2.3 (test)"}`},
		{"info by GET", "GET", "/prpc/Tproxy.Info", tls.Certificate{}, 200, `{"base_domain":"apps.example.com","external_port":443,"app_address_ns_prefix":"_dstack-app-address","version":"v1.2.3 (test)"}`},
		{"info in protobuf", "POST", "/prpc/Info", tls.Certificate{}, 200, "\x0a\x10apps.example.com\x10\xbb\x03\x1a\x13_dstack-app-address\x22\x0dv1.2.3 (test)"},
		{"certificates", "POST", "/prpc/AcmeInfo?json", tls.Certificate{}, 200, `{"account_uri":"https://acme/1","hist_keys":[],"quoted_hist_keys":[{"public_key":"00ff","quote":"{}","attestation":""}],"account_quote":"q","account_attestation":""}`},
		{"certificates in protobuf", "POST", "/prpc/AcmeInfo", tls.Certificate{}, 200, "\x0a\x0ehttps://acme/1\x1a\x08\x0a\x02\x00\xff\x12\x02{}\x22\x01q"},
		{"peers, to a gateway", "POST", "/prpc/GetPeers?json", peer, 200, `{"my_id":7,"my_url":"https://gw:8000","peers":[{"id":7,"url":"https://gw:8000"},{"id":9,"url":"https://other:8000"}]}`},
		{"peers, to an app", "POST", "/prpc/GetPeers?json", attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"})), 400, "{\n  \"error\": \"the peers of this gateway are told to gateways of its own app\"\n}"},
		{"peers, to a stranger", "POST", "/prpc/GetPeers", tls.Certificate{}, 400, "\x0a\x72no attestation provided: present a client certificate with a TDX quote, or one of the KMS that this gateway trusts"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := dial(t, at, row.certificate).send(t, row.method, row.path, "", "")
			if a.status != row.status || a.body != row.want {
				t.Errorf("%d %q\nwant %d %q", a.status, a.body, row.status, row.want)
			}
		})
	}
	// A registration tells the nodes too.
	td := w.boot(t, simtdx.VM{AppCompose: "{}"})
	a := register(t, at, attested(t, td), body(newKey()))
	want := fmt.Sprintf(`"gateways":[{"id":7,"uuid":"01%s","url":"https://gw:8000","last_seen":1700000000,"wg_public_key":"%s","wg_ip":"10.77.0.1/24","wg_endpoint":"203.0.113.5:51820"},{"id":9,`,
		hex.EncodeToString(make([]byte, 15)), gatewayKey)
	if !strings.Contains(a.body, want) {
		t.Errorf("%s\nwant in it %s", a.body, want)
	}
}

// TestEverythingOfOtherPlatformsIsRefusedByName shows attestations of both versions that are none of TDX.
func TestEverythingOfOtherPlatformsIsRefusedByName(t *testing.T) {
	w := newWorld(t)
	tests := map[string][]byte{}
	for platform, name := range map[byte]string{1: "Google Cloud", 2: "AWS Nitro Enclave", 3: "AMD SEV-SNP", 4: "AWS NitroTPM"} {
		tests["version 0 "+name] = []byte{0, platform, 0}
	}
	for kind, name := range map[string]string{"gcp-tdx": "Google Cloud", "nitro-enclave": "AWS Nitro Enclave", "sev-snp": "AMD SEV-SNP", "aws-nitro-tpm": "AWS NitroTPM"} {
		text := func(s string) []byte { return append([]byte{0xa0 | byte(len(s))}, s...) }
		m := append([]byte{0x83}, text("version")...)
		m = append(append(append(m, 1), text("platform")...), 0x82)
		m = append(append(append(m, text("kind")...), text(kind)...), text("data")...)
		tests["version 1 "+name] = append(m, 0x80)
	}
	for name, content := range tests {
		t.Run(name, func(t *testing.T) {
			_, platform, _ := strings.Cut(strings.TrimPrefix(name, "version "), " ")
			info := fromKMS(t, w.boot(t, simtdx.VM{AppCompose: "{}"}))
			// Below the KMS, too: what a certificate carries has to be right even where its app info would do.
			cert := leaf(t, w.kms.appCA(t, info.AppID), func([]byte) []pkix.Extension {
				return []pkix.Extension{ext(t, 3, info.AppID), ext(t, 9, shortInfo(t, info)), ext(t, 8, content)}
			})
			w.unchanged(t, func() answer { return register(t, w.at, cert, body(newKey())) }, http.StatusBadRequest, "not supported yet: ")
			w.unchanged(t, func() answer { return register(t, w.at, cert, body(newKey())) }, http.StatusBadRequest, platform)
		})
	}
}
