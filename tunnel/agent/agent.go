package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"dstack.host/tunnel"
)

// Config says who registers, where, and what becomes of the answer. URLs, TLS and PrivateKey are required.
type Config struct {
	// URLs are the gateways to register with, in the order of preference: https://host:port, with or without /prpc.
	URLs []string
	// TLS holds this CVM's certificate and decides whether the gateway is trusted. It is not changed; the protocol and,
	// where it is empty, the server name are filled in for each connection.
	TLS *tls.Config
	// Trust judges the gateway once the TLS handshake is complete, before anything is sent to it: a verdict that takes
	// longer than a handshake may, as that on a quote whose collateral has to be fetched. It may be nil: then TLS decides.
	Trust func(context.Context, tls.ConnectionState) error
	// Fallback returns a certificate that carries a quote, for gateways that ask for one. It may be nil.
	Fallback func(context.Context) (*tls.Certificate, error)
	// PrivateKey is the WireGuard key of this CVM.
	PrivateKey tunnel.PrivateKey
	// Ports is the port policy to announce; nil announces an open one.
	Ports *PortPolicy
	// Evidence makes the request's member "evidence" for the connection whose TLS exporter it is given (ExporterLabel),
	// binding key. It may be nil: no member. It is called once for each attempt, after the TLS handshake, and for each
	// challenge that a gateway passes on through the tunnel (EvidencePort).
	Evidence func(ctx context.Context, exporter []byte, key tunnel.PublicKey) (json.RawMessage, error)
	// Tunnel is how Run opens the tunnel. PrivateKey, Address and Inbound are set by the agent, and Logger if it is nil.
	Tunnel tunnel.Config
	// Serve is run by Run for as long as the tunnel is open with one address; ctx ends when the tunnel is about to
	// close. If it returns earlier, Run ends with its error. It may be nil.
	Serve func(ctx context.Context, t *tunnel.Tunnel) error
	// Status is told every attempt of Run. It may be nil; it must not block.
	Status func(Status)
	// Turn is called at every turn of Run: each Timing.Poll, or after an attempt that took longer. It may be nil.
	Turn func()
	// Timing is the pace of Run.
	Timing Timing
	// Resolve returns the addresses of an endpoint's name; nil asks the system.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Logger may be nil.
	Logger *slog.Logger
}

// Status is the outcome of one attempt to register.
type Status struct {
	// Time is when the attempt began.
	Time time.Time
	// Forced attempts set the tunnel up anew.
	Forced bool
	// Answer is the gateway's, if Err is nil.
	Answer Answer
	// Err is why the attempt failed, at the gateway or in configuring the tunnel.
	Err error
}

// Agent registers one CVM. Its methods can be called concurrently, but Run only once at a time.
type Agent struct {
	cfg     Config
	targets []target
	public  tunnel.PublicKey
}

// New checks everything that can be checked without the network.
func New(cfg Config) (*Agent, error) {
	a := &Agent{cfg: cfg, public: cfg.PrivateKey.PublicKey()}
	var faults []error
	if len(cfg.URLs) == 0 {
		faults = append(faults, errors.New("Missing gateway urls")) // dstack's text
	}
	for _, u := range cfg.URLs {
		t, err := parseTarget(u)
		if err != nil {
			faults = append(faults, err)
		}
		a.targets = append(a.targets, t)
	}
	if cfg.TLS == nil {
		faults = append(faults, errors.New("tls: not set: registration needs a certificate and a way to trust the gateway"))
	}
	if cfg.PrivateKey == (tunnel.PrivateKey{}) {
		faults = append(faults, errors.New("private key: not set"))
	}
	if cfg.Ports != nil && slices.ContainsFunc(cfg.Ports.Ports, func(p Port) bool { return p.Port == 0 }) {
		faults = append(faults, errors.New("ports: port must be between 1 and 65535"))
	}
	for _, d := range []time.Duration{
		cfg.Timing.Poll, cfg.Timing.Refresh, cfg.Timing.Stale, cfg.Timing.Retry, cfg.Timing.MaxRetry,
	} {
		if d < 0 {
			faults = append(faults, fmt.Errorf("timing: %v is negative", d))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if a.cfg.Logger == nil {
		a.cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if a.cfg.Turn == nil {
		a.cfg.Turn = func() {}
	}
	return a, nil
}

// Run registers, opens the tunnel, and keeps both fresh until ctx ends; then it closes the tunnel and returns nil. A
// registration that fails is reported to Status and tried again. The errors it returns are those of Serve.
func (a *Agent) Run(ctx context.Context) error {
	l := newLink(&a.cfg)
	return loop(ctx, a.cfg.Timing.withDefaults(), a.Register, l, a.report, a.cfg.Turn)
}

func (a *Agent) report(s Status) {
	if s.Err != nil {
		a.cfg.Logger.Warn("not registered", "error", s.Err, "forced", s.Forced)
	} else {
		a.cfg.Logger.Debug("registered", "address", s.Answer.Address, "servers", len(s.Answer.Servers), "forced", s.Forced)
	}
	if a.cfg.Status != nil {
		a.cfg.Status(s)
	}
}

// device is what the loop configures.
type device interface {
	// apply makes the tunnel what the answer says; with anew, even if it is already.
	apply(ctx context.Context, a Answer, anew bool) error
	// observe reads the state of the tunnel.
	observe(ctx context.Context) observation
	// failed yields the error with which the service behind the tunnel ended.
	failed() <-chan error
	// close ends the tunnel and waits for the service.
	close() error
}

// loop is the clock and the hands of machine.
func loop(
	ctx context.Context, timing Timing, register func(context.Context) (Answer, error), d device, report func(Status), turn func(),
) (err error) {
	defer func() { err = errors.Join(err, d.close()) }()
	m := machine{timing: timing}
	tick := time.NewTicker(timing.Poll)
	defer tick.Stop()
	for {
		now := time.Now()
		var act action
		if m, act = m.step(now, d.observe(ctx)); act != wait {
			s := Status{Time: now, Forced: act == force}
			if s.Answer, s.Err = register(ctx); s.Err == nil {
				s.Err = d.apply(ctx, s.Answer, s.Forced)
			}
			if ctx.Err() != nil {
				return nil
			}
			m = m.done(now, act, s.Err == nil)
			report(s)
		}
		turn()
		select {
		case <-ctx.Done():
			return nil
		case err := <-d.failed():
			return fmt.Errorf("agent: serve: %w", err)
		case <-tick.C:
		}
	}
}
