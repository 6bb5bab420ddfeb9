package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"time"

	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

var (
	PrivateKey   = privateKey
	ListenSocket = listenSocket
)

// Judge makes the trust ready for a guest of a simulated authority whose certificate has a root, and judges a certificate as TLS
// showed it.
func (t Trust) Judge(ctx context.Context, a *simtdx.Authority, root, leaf *x509.Certificate) error {
	if err := t.check(); err != nil {
		return err
	}
	j, err := t.judge(&guest{authority: a}, root)
	if err != nil {
		return err
	}
	return j.trust(ctx, tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
}

// Config is the TLS configuration of the trust.
func (t Trust) Config(root *x509.Certificate) (*tls.Config, error) {
	j, err := t.judge(&guest{}, root)
	if err != nil {
		return nil, err
	}
	return j.config(), nil
}

// Check, Policy and URLs of ports.
func (p Ports) Check() error                             { return p.check() }
func (p Ports) Policy() agent.PortPolicy                 { return p.policy() }
func (p Ports) Inbound() []uint16                        { return p.inbound() }
func (p Ports) URLs(app string, a agent.Answer) []string { return p.urls(app, a) }

// ServePort forwards the connections of a listener.
func ServePort(ctx context.Context, l net.Listener, to string, connections int, log *slog.Logger) error {
	f := &forwarder{places: make(chan struct{}, connections), log: log}
	return f.serve(ctx, []port{{l, to}})
}

// Condition is what health is told from.
type Condition struct{ c condition }

// NewCondition is that of an instance of an app.
func NewCondition(p ratls.Platform, app, instance string) *Condition {
	return &Condition{condition{guest: &guest{platform: p, app: app, instance: instance}}}
}

// What happens to a join.
func (c *Condition) Opened(t *tunnel.Tunnel)                         { c.c.opened(t) }
func (c *Condition) Attempted(s agent.Status)                        { c.c.attempted(s) }
func (c *Condition) Meet(ctx context.Context, t *tunnel.Tunnel) bool { return c.c.meet(ctx, t) }
func (c *Condition) Health(now time.Time) Health                     { return c.c.health(now) }

// Serve tells the health.
func (c *Condition) Serve(ctx context.Context, l net.Listener) error {
	return serveHealth(ctx, l, &c.c)
}

// Certificates makes n certificates in a row, of which each has used up a part of its life when it is asked for again.
func Certificates(ctx context.Context, issue func() tls.Certificate, n int) (all []tls.Certificate, err error) {
	g := &guest{issue: func(context.Context) (tls.Certificate, *x509.Certificate, error) { return issue(), nil, nil }}
	for range n {
		c, _, err := g.current(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}
