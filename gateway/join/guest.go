package join

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"dstack.host/ratls"
	"dstack.host/ratls/guestagent"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

// Source says where this VM's evidence comes from: from dstack's guest agent when Agent is set, else from the software platform
// when Simulated is, else from the kernel's configfs-tsm.
type Source struct {
	// Agent is the address of dstack's guest agent.
	Agent string
	// Simulated is a file with the authority of simulated machines, as a simulated gateway keeps it in its data folder
	// (simulated-tdx.pem). Gateways have to be below it instead of Intel's root, and what is attested proves nothing.
	Simulated string
	// TDX are the files of a guest without guest agent. Its AppCompose is also what a simulated VM runs; without one, that VM
	// has a compose file that names its ports.
	TDX ratls.TDXOptions
}

// guest is this VM as gateways come to know it.
type guest struct {
	// set by open
	platform      ratls.Platform
	app, instance string            // ids, hex
	authority     *simtdx.Authority // that gateways descend from; nil for Intel
	issue         func(context.Context) (tls.Certificate, *x509.Certificate, error)

	mu          sync.Mutex
	certificate tls.Certificate   // guarded by mu
	root        *x509.Certificate // guarded by mu: what the certificate descends from; nil when it signed itself
}

// open reaches the platform and asks it who this VM is, which costs a quote or two.
func (s Source) open(ctx context.Context, ports agent.PortPolicy) (*guest, error) {
	g := new(guest)
	if err := s.reach(ctx, g, ports); err != nil {
		return nil, err
	}
	if g.issue == nil {
		g.issue = func(ctx context.Context) (tls.Certificate, *x509.Certificate, error) {
			c, err := ratls.NewCertificate(ctx, g.platform, ratls.CertOptions{CommonName: "dstack-guest-agent", Usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			return c, nil, err
		}
	}
	return g, g.identify(ctx)
}

// reach opens the platform.
func (s Source) reach(ctx context.Context, g *guest, ports agent.PortPolicy) (err error) {
	if s.Simulated != "" {
		if g.authority, err = readAuthority(s.Simulated); err != nil {
			return err
		}
	}
	switch {
	case s.Agent != "":
		var vm *guestagent.Guest
		if vm, err = guestagent.Open(ctx, s.Agent); err == nil {
			g.platform, g.issue = vm, vm.ClientCertificate
		}
	case s.Simulated != "":
		g.platform, err = simulated(g.authority, s.TDX.AppCompose, ports)
	default:
		if g.platform, err = ratls.OpenTDX(s.TDX); err != nil {
			err = fmt.Errorf("%w, in a container of a dstack CVM with /var/run/dstack.sock mounted; or try it without hardware: --simulated FILE", err)
		}
	}
	return err
}

// simulated boots a VM of the software platform. Its instance id depends on the host's name and the app alone, so that it is
// the same after a restart.
func simulated(authority *simtdx.Authority, composeFile string, ports agent.PortPolicy) (ratls.Platform, error) {
	compose, err := composeOf(composeFile, ports)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	machine, err := authority.Machine(simtdx.MachineOptions{Name: host})
	if err != nil {
		return nil, err
	}
	seed := sha256.Sum256([]byte("dstack-gateway join\x00" + host + "\x00" + compose))
	return machine.Boot(simtdx.VM{AppCompose: compose, InstanceSeed: seed[:20]})
}

// readAuthority reads the file of Source.Simulated.
func readAuthority(file string) (*simtdx.Authority, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	authority, err := simtdx.Load(text, simtdx.Options{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return authority, nil
}

// composeOf reads the file, or makes up a compose file that names the ports.
func composeOf(file string, ports agent.PortPolicy) (string, error) {
	if file != "" {
		text, err := os.ReadFile(file)
		return string(text), err
	}
	text, err := json.Marshal(map[string]any{"manifest_version": 2, "name": "join", "runner": "docker-compose", "gateway_enabled": true, "port_policy": ports})
	return string(text), err
}

// identify reads the ids that were measured.
func (g *guest) identify(ctx context.Context) error {
	raw, err := g.platform.Quote(ctx, ratls.ReportData{})
	if err != nil {
		return err
	}
	events, err := g.platform.EventLog(ctx)
	if err != nil {
		return err
	}
	q, err := ratls.ParseQuote(raw)
	if err != nil {
		return err
	}
	info, err := ratls.DecodeAppInfo(q, events, g.platform.VMConfig())
	if err != nil {
		return fmt.Errorf("this VM has not measured an app, which gateways name it by: %w", err)
	}
	if len(info.InstanceID) == 0 {
		return errors.New("this VM has no instance id (no_instance_id in its app-compose.json), and nothing else names it to a gateway")
	}
	g.app, g.instance = hex.EncodeToString(info.AppID), hex.EncodeToString(info.InstanceID)
	return nil
}

// simulated reports whether the evidence proves nothing, on this side or the other.
func (g *guest) simulated() bool { return g.authority != nil || g.platform.Kind() != ratls.KindTDX }

// current returns the TLS certificate that this VM shows, and its root if it has another than itself. It is made anew when a
// third of its life is left.
func (g *guest) current(ctx context.Context) (tls.Certificate, *x509.Certificate, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if leaf := g.certificate.Leaf; leaf != nil && time.Until(leaf.NotAfter) > leaf.NotAfter.Sub(leaf.NotBefore)/3 {
		return g.certificate, g.root, nil
	}
	certificate, root, err := g.issue(ctx)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("client certificate: %w", err)
	}
	g.certificate, g.root = certificate, root
	return certificate, root, nil
}

// evidence proves that the WireGuard key is this VM's, for one challenge.
func (g *guest) evidence(ctx context.Context, challenge []byte, key tunnel.PublicKey) (json.RawMessage, error) {
	e, err := ratls.NewAppEvidence(ctx, g.platform, ratls.AppStatement{
		AppID: g.app, InstanceID: g.instance, WGPublicKey: key.String(), Challenge: hex.EncodeToString(challenge), IssuedAt: time.Now(),
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(e)
}
