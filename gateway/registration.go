package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"

	"dstack.host/gateway/config"
	"dstack.host/gateway/enroll"
	"dstack.host/gateway/prpc"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
)

// agentPort is where the guest agent of a dstack CVM listens inside the tunnel (dstack 0.6 guest-agent/dstack.toml).
const agentPort = 8090

func (g *Gateway) openEnroll(ctx context.Context, parts Parts) error {
	certificate, err := g.enrollCertificate(ctx)
	if err != nil {
		return err
	}
	kms, err := optionalCertificate(g.config.Enroll.KMSRoot)
	if err != nil {
		return fmt.Errorf("enroll.kms_root: %w", err)
	}
	app, err := appOf(certificate.Certificate[0])
	if err != nil {
		return fmt.Errorf("certificate of the registration server: %w", err)
	}
	c := g.config.Enroll
	settings := enroll.Config{
		Listen: c.Listen, Certificate: certificate, KMSRoot: kms, Verifier: g.trust.Verifier, Appraise: g.config.Attestation.Apps.Pins().Judge,
		Evidence: evidenceOf(c), PerSource: enroll.Rate{Interval: c.SourceInterval, Burst: c.SourceBurst}, PerInstance: enroll.Rate{Interval: c.InstanceInterval, Burst: c.InstanceBurst},
		Register: g.register, Current: func(id registry.InstanceID) *registry.Instance { return g.registry.Snapshot().Instance(id) },
		Prefix6: g.config.Tunnel.Address6.Masked(),
		Servers: []enroll.TunnelServer{g.tunnelServer()}, Nodes: g.nodes, AppID: app, ACMEInfo: g.attester.ACMEInfo,
		Agent:   enroll.AgentInfo{ExternalPort: g.publicPort(), InternalPort: agentPort, Domain: g.config.BaseDomains[0], AppAddressNSPrefix: "_dstack-app-address"},
		Version: parts.Version, Metrics: parts.Metrics, Logger: g.log,
	}
	if c.AuthURL != "" {
		settings.Authorize = enroll.Webhook(c.AuthURL, nil)
	}
	if err := g.openReview(settings, parts); err != nil {
		return err
	}
	settings.Refused = func(ctx context.Context, inst *registry.Instance, reason string) {
		g.review.Refuse(ctx, inst, reason, errors.New("it was refused when it registered again"))
	}
	g.enroll, err = enroll.New(settings)
	return err
}

// openReview makes what looks after instances once they are registered.
func (g *Gateway) openReview(settings enroll.Config, parts Parts) (err error) {
	c := g.config.Enroll
	g.ports = enroll.NewPorts(enroll.PortsConfig{Registry: g.registry, Dial: g.dial, Up: g.tunnelUp, Port: agentPort, Logger: g.log})
	g.review, err = enroll.NewReview(enroll.ReviewConfig{
		Enroll: settings, Registry: g.registry, Handshake: g.handshake,
		Interval: c.ReviewInterval, Drain: c.Drain, Stale: c.Stale, Metrics: parts.Metrics, Logger: g.log,
	})
	return err
}

// AdminRPC is dstack's admin calls about single instances, for a listener that strangers can't reach.
func (g *Gateway) AdminRPC() *prpc.Service { return enroll.Admin(g.registry) }

func evidenceOf(c config.Enroll) enroll.Evidence {
	if c.Evidence == "off" {
		return enroll.EvidenceOff
	}
	return enroll.Evidence(c.Evidence)
}

// appOf is the app id in a certificate of this gateway's own: the KMS's word, or what its event log says.
func appOf(der []byte) ([]byte, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	carried, err := ratls.ReadCertificate(cert)
	if err != nil || carried.AppID != nil || carried.Quote == nil {
		return carried.AppID, err
	}
	quote, err := ratls.ParseQuote(carried.Quote)
	if err != nil {
		return nil, err
	}
	info, err := ratls.DecodeAppInfo(quote, carried.Events, carried.VMConfig)
	return info.AppID, err
}

// tunnelServer is this node's end of the tunnel, as guests are told it.
func (g *Gateway) tunnelServer() enroll.TunnelServer {
	endpoint := g.config.Tunnel.Endpoint
	if endpoint == "" {
		endpoint = g.tunnel.ListenAddr().String()
	}
	return enroll.TunnelServer{Key: g.tunnel.PublicKey(), Address: g.tunnel.Address(), Address6: g.config.Tunnel.Address6, Endpoint: endpoint}
}

// nodes are the gateways that guests and peers are told of: this one. What it says stays the same as long as it runs.
func (g *Gateway) nodes() []enroll.Node {
	sum := sha256.Sum256([]byte("node:" + g.config.Node))
	name := gatewayLabel + "." + g.config.BaseDomains[0]
	if len(g.config.Enroll.Names) > 0 {
		name = g.config.Enroll.Names[0]
	}
	return []enroll.Node{{
		ID: binary.BigEndian.Uint32(sum[:4])>>1 | 1, UUID: [16]byte(sum[4:20]), LastSeen: g.started, Server: g.tunnelServer(),
		URL: "https://" + net.JoinHostPort(name, strconv.Itoa(int(g.EnrollAddr().Port()))),
	}}
}
