package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"time"

	"dstack.host/tunnel"
)

// resolveTimeout bounds the look-up of one endpoint.
const resolveTimeout = 5 * time.Second

// errStopped is what failed yields for a service that ended by itself without an error.
var errStopped = errors.New("ended while the tunnel was open")

// link is the tunnel as the answers want it, and the service behind it. It is used by one goroutine.
type link struct {
	// set by newLink
	template tunnel.Config
	serve    func(context.Context, *tunnel.Tunnel) error
	resolve  func(context.Context, string) ([]netip.Addr, error)
	log      *slog.Logger

	// of the open tunnel, nil before there is one
	tunnel *tunnel.Tunnel
	cancel context.CancelFunc // ends the service
	served chan error         // its end, once; closed after

	answer Answer // that was applied without a fault
}

func newLink(cfg *Config) *link {
	l := &link{template: cfg.Tunnel, serve: serving(cfg.Serve, cfg.Evidence, cfg.PrivateKey.PublicKey()), resolve: cfg.Resolve, log: cfg.Logger}
	l.template.PrivateKey, l.template.Inbound = cfg.PrivateKey, true
	if l.template.Logger == nil {
		l.template.Logger = cfg.Logger
	}
	if l.resolve == nil {
		l.resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return l
}

// apply implements device. A server whose name does not resolve keeps the others from nothing; the error makes the
// next attempt try it again.
func (l *link) apply(ctx context.Context, a Answer, anew bool) error {
	if l.tunnel != nil && !anew && a.Equal(l.answer) {
		return nil
	}
	peers, fault := l.peers(ctx, a)
	if fault != nil && len(peers) == 0 {
		return fault
	}
	if err := l.ensure(ctx, a.Address); err != nil {
		return err
	}
	if anew {
		// What dstack does by taking the interface down and up: sessions and learned endpoints are forgotten.
		if err := l.tunnel.Reconcile(ctx, nil); err != nil {
			return err
		}
	}
	if err := errors.Join(fault, l.tunnel.Reconcile(ctx, peers)); err != nil {
		l.answer = Answer{}
		return err
	}
	l.answer = a
	return nil
}

// ensure has a tunnel open with the address.
func (l *link) ensure(ctx context.Context, addr netip.Addr) error {
	if l.tunnel != nil && l.tunnel.Address().Addr() == addr {
		return nil
	}
	if err := l.close(); err != nil {
		l.log.Warn("tunnel with the former address not closed", "error", err)
	}
	cfg := l.template
	cfg.Address = netip.PrefixFrom(addr, addr.BitLen())
	t, err := tunnel.Open(cfg)
	if err != nil {
		return err
	}
	l.tunnel, l.served = t, make(chan error, 1)
	ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx)) // it ends with the tunnel, by close
	if l.serve == nil {
		return nil
	}
	go func(served chan<- error) {
		defer close(served)
		err := l.serve(ctx, t)
		if ctx.Err() == nil {
			served <- cmp.Or(err, errStopped)
		}
	}(l.served)
	return nil
}

// peers resolves the endpoints. A gateway that is configured already keeps its endpoint while its name does not resolve.
func (l *link) peers(ctx context.Context, a Answer) ([]tunnel.Peer, error) {
	var (
		peers  []tunnel.Peer
		faults []error
		known  = make(map[tunnel.PublicKey]netip.AddrPort)
	)
	if l.tunnel != nil {
		for _, p := range l.tunnel.Peers() {
			known[p.Key] = p.Endpoint
		}
	}
	for _, s := range a.Servers {
		at, err := l.endpoint(ctx, s.Endpoint)
		if err != nil {
			faults = append(faults, fmt.Errorf("gateway %v: endpoint %s: %w", s.Key, s.Endpoint, err))
			at = known[s.Key]
		}
		if !at.IsValid() {
			continue
		}
		peers = append(peers, tunnel.Peer{Key: s.Key, Addr: s.Addr, Endpoint: at, Keepalive: keepalive})
	}
	return peers, errors.Join(faults...)
}

// endpoint returns the first IPv4 address of s, or else the first address.
func (l *link) endpoint(ctx context.Context, s string) (netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(a.Unmap(), uint16(port)), nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addrs, err := l.resolve(ctx, host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if len(addrs) == 0 {
		return netip.AddrPort{}, errors.New("no address")
	}
	best := addrs[0]
	for _, a := range addrs {
		if a.Unmap().Is4() {
			best = a
			break
		}
	}
	return netip.AddrPortFrom(best.Unmap(), uint16(port)), nil
}

// observe implements device.
func (l *link) observe(ctx context.Context) (o observation) {
	if l.tunnel == nil {
		return o
	}
	o.configured = true
	if err := l.tunnel.Poll(ctx); err != nil {
		l.log.Warn("tunnel not read", "error", err)
	}
	for _, p := range l.tunnel.Peers() {
		if at, ok := l.tunnel.Handshake(p.Key); ok && at.After(o.handshake) {
			o.handshake = at
		}
	}
	return o
}

// failed implements device. Without a service the channel is never ready.
func (l *link) failed() <-chan error { return l.served }

// close implements device.
func (l *link) close() error {
	if l.tunnel == nil {
		return nil
	}
	l.cancel()
	if l.serve != nil {
		for range l.served {
		}
	}
	err := l.tunnel.Close()
	l.tunnel, l.cancel, l.served, l.answer = nil, nil, nil, Answer{}
	return err
}
