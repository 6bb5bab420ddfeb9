package demo

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

// webPort is where the apps listen inside their CVMs.
const webPort = 80

// cvm is one simulated confidential VM: a TD on a machine of its own, with an app and the agent that joins it to the
// gateway. What it knows of the gateway is what a remote one would: a URL, and the root that quotes have to chain to.
type cvm struct {
	name     string
	app      registry.AppID
	instance registry.InstanceID
	td       *simtdx.TD
	web      http.Handler
	verifier *ratls.Verifier
	log      *slog.Logger
}

// boot starts the TD of an app. Its instance id depends on the app alone, so that every demo has the same names.
func boot(a app, authority *simtdx.Authority, verifier *ratls.Verifier, log *slog.Logger) (*cvm, error) {
	machine, err := authority.Machine(simtdx.MachineOptions{Name: "host of " + a.name})
	if err != nil {
		return nil, err
	}
	seed := sha256.Sum256([]byte("demo instance of " + a.name))
	td, err := machine.Boot(simtdx.VM{AppCompose: a.compose, InstanceSeed: seed[:20]})
	if err != nil {
		return nil, err
	}
	info, err := td.Info()
	if err != nil {
		return nil, err
	}
	c := &cvm{name: a.name, td: td, verifier: verifier, log: log}
	copy(c.app[:], info.AppID)
	copy(c.instance[:], info.InstanceID)
	c.web = a.handler(c)
	return c, nil
}

// run joins the gateway at url and serves the app until ctx ends.
func (c *cvm) run(ctx context.Context, url string, joined chan<- struct{}) error {
	certificate, err := ratls.NewCertificate(ctx, c.td, ratls.CertOptions{CommonName: "dstack-guest-agent"})
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Config{
		URLs: []string{url},
		TLS: &tls.Config{
			MinVersion:   tls.VersionTLS13,
			Certificates: []tls.Certificate{certificate},
			// The gateway's name and issuer say nothing: its quote does.
			InsecureSkipVerify: true,
			VerifyConnection:   c.verifyGateway,
		},
		PrivateKey: tunnel.NewPrivateKey(),
		Evidence:   c.evidence,
		Tunnel:     tunnel.Config{Device: "netstack", Listen: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)},
		Serve: func(ctx context.Context, t *tunnel.Tunnel) error {
			return c.serve(ctx, t, joined)
		},
		Timing: agent.Timing{Poll: time.Second},
		Status: func(s agent.Status) {
			if s.Err != nil {
				c.log.Warn("registration failed", "app", c.name, "error", s.Err)
			}
		},
		Logger: c.log,
	})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// verifyGateway accepts a registration server whose certificate carries a quote that verifies.
func (c *cvm) verifyGateway(state tls.ConnectionState) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, _, err := ratls.VerifyCertificate(ctx, c.verifier, state.PeerCertificates[0])
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	return nil
}

// evidence proves that the WireGuard key is this CVM's, for one TLS session.
func (c *cvm) evidence(ctx context.Context, exporter []byte, key tunnel.PublicKey) (json.RawMessage, error) {
	e, err := ratls.NewAppEvidence(ctx, c.td, ratls.AppStatement{
		AppID: c.app.String(), InstanceID: c.instance.String(), WGPublicKey: key.String(),
		Challenge: hex.EncodeToString(exporter), IssuedAt: time.Now(),
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(e)
}

// serve runs the app on the tunnel.
func (c *cvm) serve(ctx context.Context, t *tunnel.Tunnel, joined chan<- struct{}) error {
	listener, err := t.Listen(netip.AddrPortFrom(t.Address().Addr(), webPort))
	if err != nil {
		return err
	}
	select {
	case joined <- struct{}{}:
	default: // it has joined before
	}
	s := server(c.web)
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
