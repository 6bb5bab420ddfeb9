package enroll_test

import (
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
)

// expected is the whole answer to a registration, octet by octet.
func expected(addr string) string {
	return fmt.Sprintf(`{"wg":{"client_ip":"%s","servers":[{"pk":"%s","ip":"10.77.0.1/24","endpoint":"203.0.113.5:51820"}]},`+
		`"agent":{"external_port":443,"internal_port":8090,"domain":"apps.example.com","app_address_ns_prefix":"_dstack-app-address"},"gateways":[]}`, addr, gatewayKey)
}

// TestEveryKindOfGuestRegisters holds what is registered for each certificate that dstack's guests have, and without.
func TestEveryKindOfGuestRegisters(t *testing.T) {
	w := newWorld(t)
	tests := []struct {
		name         string
		certificate  func(*testing.T, *simtdx.TD) tls.Certificate
		evidence     bool
		wantIdentity string
		wantBinding  ratls.Binding
	}{
		{"attestation, signed by itself", func(t *testing.T, td *simtdx.TD) tls.Certificate { return attested(t, td) },
			false, "ratls-v0", ratls.BindingCertificate},
		{"legacy quote and event log", func(t *testing.T, td *simtdx.TD) tls.Certificate {
			return attested(t, td, func(o *ratls.CertOptions) { o.Legacy = true })
		}, false, "ratls-legacy", ratls.BindingCertificate},
		{"attestation of version 1", func(t *testing.T, td *simtdx.TD) tls.Certificate {
			return leaf(t, nil, func(spki []byte) []pkix.Extension {
				return []pkix.Extension{ext(t, 8, messagePack(t, attestation(t, td, ratls.TaggedReportData(ratls.TagCertificate, spki))))}
			})
		}, false, "ratls-v1", ratls.BindingCertificate},
		{"attestation and app info of the KMS", func(t *testing.T, td *simtdx.TD) tls.Certificate {
			info := fromKMS(t, td)
			return attested(t, td, func(o *ratls.CertOptions) {
				o.Parent, o.AppID, o.AppInfo, o.AppUsage = w.kms.appCA(t, info.AppID), info.AppID, &info, "app:custom"
			})
		}, false, "ratls-v0", ratls.BindingCertificate},
		{"attestation below a KMS that nobody knows", func(t *testing.T, td *simtdx.TD) tls.Certificate {
			return attested(t, td, func(o *ratls.CertOptions) { o.Parent = newKMS(t).temp })
		}, false, "ratls-v0", ratls.BindingCertificate},
		{"app info of the KMS, nine elements", func(t *testing.T, td *simtdx.TD) tls.Certificate { return w.kms.guest(t, fromKMS(t, td)) },
			false, "kms-app-info", ratls.BindingAppInfo},
		{"app info of the KMS, eight elements", func(t *testing.T, td *simtdx.TD) tls.Certificate {
			info := fromKMS(t, td)
			return leaf(t, w.kms.appCA(t, info.AppID), func([]byte) []pkix.Extension {
				return []pkix.Extension{ext(t, 3, info.AppID), ext(t, 4, []byte("app:custom")), ext(t, 9, shortInfo(t, info))}
			})
		}, false, "kms-app-info", ratls.BindingAppInfo},
		{"evidence beside an attestation", func(t *testing.T, td *simtdx.TD) tls.Certificate { return attested(t, td) },
			true, "ratls-v0", ratls.BindingWireGuard},
		{"evidence beside app info", func(t *testing.T, td *simtdx.TD) tls.Certificate { return w.kms.guest(t, fromKMS(t, td)) },
			true, "kms-app-info", ratls.BindingWireGuard},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			td, key := w.boot(t, simtdx.VM{AppCompose: fmt.Sprintf(`{"name":"guest %d"}`, i)}), newKey()
			s := dial(t, w.at, test.certificate(t, td))
			text := body(key)
			if test.evidence {
				text = withEvidence(key, evidence(t, td, statement(t, td, key, s.challenge(t))))
			}
			a := s.register(t, text)
			inst := w.registry.Snapshot().Instance(idOf(t, td).ID)
			if inst == nil {
				t.Fatalf("not registered: %d %s", a.status, a.body)
			}
			if a.status != http.StatusOK || a.body != expected(inst.Addr.String()) || a.header.Get("Content-Type") != "application/json" {
				t.Errorf("answer %d %v\n%s\nwant\n%s", a.status, a.header, a.body, expected(inst.Addr.String()))
			}
			checkInstance(t, w, inst, td, key, test.wantIdentity, test.wantBinding)
		})
	}
}

// checkInstance holds what is registered to what the domain is, and the stored evidence to verifying once more.
func checkInstance(t *testing.T, w *world, inst *registry.Instance, td *simtdx.TD, key tunnel.PublicKey, identity string, binding ratls.Binding) {
	t.Helper()
	want := idOf(t, td)
	if inst.App != want.App || inst.Compose != want.Compose || inst.Key != key || inst.Identity != identity {
		t.Errorf("registered %+v", inst)
	}
	if diff := cmp.Diff(&registry.PortPolicy{}, inst.Ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	wantInfo := want.Info
	wantInfo.DeviceID = inst.Info.DeviceID // known only where a verified quote gives it
	if binding == ratls.BindingAppInfo {
		wantInfo = fromKMS(t, td)
	} else if len(inst.Info.DeviceID) != 32 || string(inst.Info.DeviceID) == string(fromKMS(t, td).DeviceID) {
		t.Errorf("device %x is not that of the quote", inst.Info.DeviceID)
	}
	if identity == "ratls-legacy" {
		wantInfo.OSImageHash = ratls.Hex{} // such a certificate has no vm config
	}
	if diff := cmp.Diff(wantInfo, inst.Info); diff != "" {
		t.Errorf("app info (-want +got):\n%s", diff)
	}
	e := must(ratls.ParseAppEvidence(inst.Evidence))(t)
	if e.Binding != binding || e.InstanceID != inst.ID.String() {
		t.Errorf("evidence of %s with binding %q, want %q", e.InstanceID, e.Binding, binding)
	}
	if binding == ratls.BindingAppInfo {
		return
	}
	verified := must(e.Verify(t.Context(), w.config.Verifier))(t)
	if e.Kind != ratls.KindSimulatedTDX || string(verified.Info.InstanceID) != string(inst.ID[:]) {
		t.Errorf("evidence of kind %q is of instance %x", e.Kind, verified.Info.InstanceID)
	}
}

func TestARefreshThatChangesNothingWritesNothing(t *testing.T) {
	w := newWorld(t)
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	cert := attested(t, td)
	first := register(t, w.at, cert, body(key))
	s := dial(t, w.at, cert)
	for range 3 {
		w.unchanged(t, func() answer { return s.register(t, body(key)) }, http.StatusOK, first.body)
	}
	// The certificate is made anew every ten days; the quote in it proves nothing new.
	w.unchanged(t, func() answer { return register(t, w.at, attested(t, td), body(key)) }, http.StatusOK, first.body)
}

func TestARebootBringsANewKeyAndKeepsTheAddress(t *testing.T) {
	w := newWorld(t)
	vm := simtdx.VM{AppCompose: "{}", InstanceSeed: make([]byte, 20)}
	first := register(t, w.at, attested(t, w.boot(t, vm)), body(newKey()))
	td, key := w.boot(t, vm), newKey()
	again := register(t, w.at, attested(t, td), body(key))
	if first.status != http.StatusOK || first.body != again.body {
		t.Errorf("after the reboot %d %s, before %s", again.status, again.body, first.body)
	}
	if inst := w.registry.Snapshot().Instance(idOf(t, td).ID); inst.Key != key || w.registry.Snapshot().Len() != 1 {
		t.Errorf("%d instances, this one with key %s, want %s", w.registry.Snapshot().Len(), inst.Key, key)
	}
}

// TestAGuestThatAsksGetsAnAddressOfIPv6 asks, asks again, and stops asking; the answer to who does not ask is the stock one.
func TestAGuestThatAsksGetsAnAddressOfIPv6(t *testing.T) {
	w := newWorld(t)
	change := func(c *enroll.Config) {
		c.Prefix6 = netip.MustParsePrefix("fd12:3456:789a::/64")
		c.Servers = slices.Clone(c.Servers)
		c.Servers[0].Address6 = netip.MustParsePrefix("fd12:3456:789a::1/64")
	}
	at := w.serve(t, change)
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	cert := attested(t, td)
	asking := fmt.Sprintf(`{"client_public_key":"%s","port_policy":{"ports":[],"restrict_mode":false},"ipv6":true}`, key)
	with := fmt.Sprintf(`{"wg":{"client_ip":"10.77.0.2","servers":[{"pk":"%s","ip":"10.77.0.1/24","endpoint":"203.0.113.5:51820","ip6":"fd12:3456:789a::1/64"}],"client_ip6":"fd12:3456:789a::a4d:2"},`, gatewayKey)
	for _, step := range []struct {
		at   netip.AddrPort
		body string
		want string
	}{
		{at, asking, with},
		{at, asking, with},
		{w.serve(t, change), asking, with},    // a gateway that was restarted
		{w.at, asking, expected("10.77.0.2")}, // one without a prefix
		{at, body(key), expected("10.77.0.2")},
	} {
		if a := register(t, step.at, cert, step.body); a.status != http.StatusOK || !strings.HasPrefix(a.body, step.want) {
			t.Errorf("%d %s\nwant %s", a.status, a.body, step.want)
		}
	}
}

// TestWeakerEvidenceKeepsTheStronger refreshes an instance that once proved its key with certificates that prove less.
func TestWeakerEvidenceKeepsTheStronger(t *testing.T) {
	w := newWorld(t)
	const compose = `{"name":"narrow","port_policy":{"ports":[{"port":8080,"pp":true}],"restrict_mode":true}}`
	td, key := w.boot(t, simtdx.VM{AppCompose: compose}), newKey()
	s := dial(t, w.at, attested(t, td))
	if a := s.register(t, withEvidence(key, evidence(t, td, statement(t, td, key, s.challenge(t))))); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	inst := w.registry.Snapshot().Instance(idOf(t, td).ID)
	want := &registry.PortPolicy{Restrict: true, Ports: []registry.Port{{Port: 8080, Proxy: true}}}
	if diff := cmp.Diff(want, inst.Ports); diff != "" {
		t.Errorf("the measured port policy counts, not the reported one (-want +got):\n%s", diff)
	}
	for name, cert := range map[string]tls.Certificate{"attestation": attested(t, td), "app info": w.kms.guest(t, fromKMS(t, td))} {
		for _, ports := range []string{"", `,"port_policy":{"ports":[],"restrict_mode":false}`} {
			text := fmt.Sprintf(`{"client_public_key":"%s"%s}`, key, ports)
			t.Run(name, func(t *testing.T) {
				w.unchanged(t, func() answer { return register(t, w.at, cert, text) }, http.StatusOK, "client_ip")
			})
		}
	}
	other := newKey() // the statement does not name it, so it counts no more; the measured compose file is still that of the code
	if a := register(t, w.at, attested(t, td), body(other)); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	again := w.registry.Snapshot().Instance(inst.ID)
	if again.Key != other || again.Binding != ratls.BindingCertificate || !again.Measured {
		t.Errorf("registered with the other key: %+v", again)
	}
	if diff := cmp.Diff(want, again.Ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
}

func TestTheReportedPortPolicyIsKept(t *testing.T) {
	w := newWorld(t)
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	cert := attested(t, td)
	for _, row := range []struct {
		ports string
		want  *registry.PortPolicy
	}{
		{``, nil},
		{`,"port_policy":null`, nil},
		{`,"port_policy":{}`, &registry.PortPolicy{}},
		{`,"port_policy":{"ports":[{"port":443,"pp":true},{"port":80},{"port":443}],"restrict_mode":true}`,
			&registry.PortPolicy{Restrict: true, Ports: []registry.Port{{Port: 80}, {Port: 443}}}},
		{`,"port_policy":{"ports":[{"port":65535,"pp":true,"new":1}],"restrict_mode":false,"newer":[]},"newest":{"a":[1]}`,
			&registry.PortPolicy{Ports: []registry.Port{{Port: 65535, Proxy: true}}}},
	} {
		if a := register(t, w.at, cert, fmt.Sprintf(`{"client_public_key":"%s"%s}`, key, row.ports)); a.status != http.StatusOK {
			t.Errorf("%s: %d %s", row.ports, a.status, a.body)
		}
		if diff := cmp.Diff(row.want, w.registry.Snapshot().Instance(idOf(t, td).ID).Ports); diff != "" {
			t.Errorf("%s (-want +got):\n%s", row.ports, diff)
		}
	}
}

// TestAnswersHaveNoNull looks at the types of everything in an answer, as serde does.
func TestAnswersHaveNoNull(t *testing.T) {
	w := newWorld(t)
	a := register(t, w.at, attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"})), body(newKey()))
	var check func(path string, v any)
	check = func(path string, v any) {
		switch v := v.(type) {
		case nil:
			t.Errorf("%s is null", path)
		case map[string]any:
			for name, member := range v {
				check(path+"."+name, member)
			}
		case []any:
			for _, element := range v {
				check(path+"[]", element)
			}
		}
	}
	var v any
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatal(err)
	}
	check("answer", v)
}
