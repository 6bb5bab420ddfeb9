package enroll_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

// join registers with the agent that runs in CVMs, which checks the gateway's certificate and reads its answer.
func join(t *testing.T, w *world, c agent.Config, cert tls.Certificate) (agent.Answer, error) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(w.kms.root.Leaf)
	c.TLS = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return must(agent.New(c))(t).Register(ctx)
}

func TestTheAgentRegisters(t *testing.T) {
	w := newWorld(t)
	const compose = `{"name":"app","port_policy":{"ports":[{"port":443,"pp":true}],"restrict_mode":true}}`
	td, private := w.boot(t, simtdx.VM{AppCompose: compose}), tunnel.NewPrivateKey()
	got, err := join(t, w, agent.Config{
		URLs: []string{fmt.Sprintf("https://%s/", w.at)}, PrivateKey: private,
		Ports: &agent.PortPolicy{Ports: []agent.Port{{Port: 443, PP: true}}, RestrictMode: true},
		Evidence: func(ctx context.Context, exporter []byte, key tunnel.PublicKey) (json.RawMessage, error) {
			e, err := ratls.NewAppEvidence(ctx, td, statement(t, td, key, hex.EncodeToString(exporter)))
			if err != nil {
				return nil, err
			}
			return json.Marshal(e)
		},
	}, attested(t, td))
	if err != nil {
		t.Fatal(err)
	}
	inst := w.registry.Snapshot().Instance(idOf(t, td).ID)
	want := agent.Answer{
		Address: inst.Addr, Domain: "apps.example.com", ExternalPort: 443,
		Servers: []agent.Server{{Key: gatewayKey, Addr: w.config.Servers[0].Address.Addr(), Endpoint: "203.0.113.5:51820"}},
	}
	if !want.Equal(got) || got.Domain != want.Domain || got.ExternalPort != want.ExternalPort {
		t.Errorf("answer %+v, want %+v", got, want)
	}
	e := must(ratls.ParseAppEvidence(inst.Evidence))(t)
	if inst.Key != private.PublicKey() || e.Binding != ratls.BindingWireGuard || e.AppCompose != compose {
		t.Errorf("registered %v with binding %q", inst.Key, e.Binding)
	}
	if diff := cmp.Diff(&registry.PortPolicy{Restrict: true, Ports: []registry.Port{{Port: 443, Proxy: true}}}, inst.Ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
}

// TestTheAgentComesBackWithItsQuote is dstack's fallback: the first certificate has no quote, and its KMS is not ours.
func TestTheAgentComesBackWithItsQuote(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*enroll.Config){
		"no KMS":      func(c *enroll.Config) { c.KMSRoot = nil },
		"another KMS": func(*enroll.Config) {},
	} {
		t.Run(name, func(t *testing.T) {
			td := w.boot(t, simtdx.VM{AppCompose: "{}"})
			asked := 0
			_, err := join(t, w, agent.Config{
				URLs: []string{fmt.Sprintf("https://%s", w.serve(t, change))}, PrivateKey: tunnel.NewPrivateKey(),
				Fallback: func(context.Context) (*tls.Certificate, error) {
					asked++
					return ptr(attested(t, td)), nil
				},
			}, newKMS(t).guest(t, fromKMS(t, td)))
			if err != nil || asked != 1 {
				t.Fatalf("asked %d times for the quote: %v", asked, err)
			}
			if inst := w.registry.Snapshot().Instance(idOf(t, td).ID); inst == nil || inst.Identity != "ratls-v0" {
				t.Errorf("registered %+v", inst)
			}
		})
	}
}

func TestTheAgentReadsWhyItWasRefused(t *testing.T) {
	w := newWorld(t)
	td := w.boot(t, simtdx.VM{AppCompose: "{}", NoInstanceID: true})
	_, err := join(t, w, agent.Config{URLs: []string{fmt.Sprintf("https://%s", w.at)}, PrivateKey: tunnel.NewPrivateKey()}, attested(t, td))
	if err == nil || !strings.Contains(err.Error(), "instance id is empty") {
		t.Errorf("error %v", err)
	}
}
