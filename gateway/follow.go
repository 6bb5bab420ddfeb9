package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"dstack.host/dnsserver"
	"dstack.host/gateway/registry"
	"dstack.host/tunnel"
)

// How soon a difference that could not be applied is tried again: at first, and at the latest when it stays.
const (
	retryInterval = 2 * time.Second
	retryMost     = time.Minute
)

// follow applies every change of the registry and of the certificates to the tunnel and the zones, until ctx ends.
func (g *Gateway) follow(ctx context.Context) error {
	wait, told := retryInterval, rate.NewLimiter(rate.Every(10*time.Second), 3)
	for {
		registered, certified, turned := g.registry.Changed(), g.certs.Changed(), g.secrets.Changed()
		again := time.After(untilResign(time.Now()))
		if snapshot := g.registry.Snapshot(); snapshot.Loaded() {
			err := g.apply(ctx, snapshot)
			close(*g.applied.Swap(new(make(chan struct{}))))
			switch {
			case ctx.Err() != nil:
				return nil
			case err == nil:
				wait = retryInterval
			default:
				level := slog.LevelDebug
				if told.Allow() {
					level = slog.LevelError
				}
				g.log.Log(ctx, level, "the state could not be applied in full; trying again", "error", fmt.Sprintf("%.1000v", err), "after", wait)
				again, wait = time.After(wait), min(2*wait, retryMost)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-registered:
		case <-certified:
		case <-g.signing.changed:
		case <-turned:
		case <-again:
		}
	}
}

// peerPatience is how long a registration waits for its peer. A tunnel that is in trouble is no reason to refuse.
const peerPatience = time.Second

// register registers an instance and returns when the tunnel has its peer: a guest that has its answer begins the handshake at once,
// and tries again only five seconds after one that nobody knew (WireGuard's REKEY_TIMEOUT).
func (g *Gateway) register(ctx context.Context, inst registry.Instance) (registry.Instance, bool, error) {
	got, changed, err := g.registry.Register(ctx, inst)
	if err != nil || !changed {
		return got, changed, err
	}
	patience := time.NewTimer(peerPatience)
	defer patience.Stop()
	for {
		applied := *g.applied.Load()
		if g.tunnel.Has(got.Key, got.Addr) {
			return got, true, nil
		}
		select {
		case <-applied:
		case <-patience.C:
			return got, true, nil
		case <-ctx.Done():
			return got, true, nil
		}
	}
}

// untilResign is how long the zones made now may stay.
func untilResign(now time.Time) time.Duration {
	return now.Truncate(dnsserver.ResignInterval).Add(dnsserver.ResignInterval).Sub(now)
}

// apply makes tunnel and zones what the snapshot says. The names come last: who can resolve an app finds its peer there. An
// instance that the tunnel can't take as a peer keeps nobody else out, and has no name until it registers what can be: another
// key than this node's own, or, where this node has got its address, anything at all, for which the registry gives it another one.
func (g *Gateway) apply(ctx context.Context, snapshot *registry.Snapshot) error {
	listed := listing{Snapshot: snapshot}
	refused := g.tunnel.Reconcile(ctx, g.peers(snapshot))
	if refused != nil {
		listed.without = g.peerless(snapshot)
		refused = fmt.Errorf("%d of %d instances have no peer and no name: %w", len(listed.without), snapshot.Len(), refused)
	}
	zones, err := g.zones(listed, time.Now())
	if err != nil {
		return errors.Join(refused, err)
	}
	g.dns.SetZones(zones...)
	return refused
}

// peerless are the instances that the tunnel does not have.
func (g *Gateway) peerless(snapshot *registry.Snapshot) map[registry.InstanceID]bool {
	without := map[registry.InstanceID]bool{}
	for inst := range snapshot.Instances() {
		if !g.tunnel.Has(inst.Key, inst.Addr) {
			without[inst.ID] = true
		}
	}
	return without
}

// listing is what names are made of: a snapshot, without some instances.
type listing struct {
	*registry.Snapshot
	without map[registry.InstanceID]bool
}

// resolve returns the instances that a label names.
func (l listing) resolve(label string) []*registry.Instance {
	name, err := registry.ParseLabel(label)
	if err != nil {
		return nil
	}
	all := l.Resolve(name)
	if len(l.without) == 0 {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(inst *registry.Instance) bool { return l.without[inst.ID] })
}

// keepalive holds the way through a NAT open (dstack 0.6 gateway/templates/wg.conf).
const keepalive = 25 * time.Second

func (g *Gateway) peers(snapshot *registry.Snapshot) []tunnel.Peer {
	prefix6 := g.config.Tunnel.Address6.Masked()
	want := make([]tunnel.Peer, 0, snapshot.Len())
	for inst := range snapshot.Instances() {
		want = append(want, tunnel.Peer{Key: inst.Key, Addr: inst.Addr, Addr6: inst.Addr6(prefix6), Keepalive: keepalive})
	}
	return want
}

// expireInterval is how often challenge records are looked for that their process has left behind.
const expireInterval = 5 * time.Minute

// expire removes them, until ctx ends.
func (g *Gateway) expire(ctx context.Context) error {
	for {
		if err := g.registry.ExpireChallenges(ctx); err != nil && ctx.Err() == nil {
			g.log.Warn("challenge records left behind could not be removed; trying again", "error", err, "after", expireInterval)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(expireInterval):
		}
	}
}

// challenges publishes dns-01 answers (RFC 8555 section 8.4) through the registry, on every node.
type challenges struct{ g *Gateway }

// SetTXT returns when our own DNS server, asked over the network, answers the value.
func (c challenges) SetTXT(ctx context.Context, fqdn, value string) error {
	if err := c.g.registry.SetChallenge(ctx, fqdn, value); err != nil {
		return err
	}
	server := reachable(c.g.DNSAddr()).String()
	for {
		answer, err := dnsserver.Query(ctx, server, fqdn, "TXT")
		if err == nil && slices.Contains(answer.Answers, value) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("our DNS server at %s does not answer the challenge at %s: %w", server, fqdn, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// DeleteTXT removes one value.
func (c challenges) DeleteTXT(ctx context.Context, fqdn, value string) error {
	return c.g.registry.DeleteChallenge(ctx, fqdn, value)
}

// reachable is an address to reach a listener of this machine by.
func reachable(addr netip.AddrPort) netip.AddrPort {
	if !addr.Addr().IsUnspecified() {
		return addr
	}
	if addr.Addr().Is4() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), addr.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), addr.Port())
}

// dial connects to a port of an instance through the tunnel.
func (g *Gateway) dial(ctx context.Context, inst *registry.Instance, port uint16) (net.Conn, error) {
	return g.tunnel.DialContext(ctx, "tcp", netip.AddrPortFrom(inst.Addr, port).String())
}

// handshake is when the instance's tunnel last proved to be alive; zero for never.
func (g *Gateway) handshake(inst *registry.Instance) time.Time {
	last, _ := g.tunnel.Handshake(inst.Key)
	return last
}

// tunnelUp reports whether requests can be sent to the instance.
func (g *Gateway) tunnelUp(inst *registry.Instance) bool {
	return time.Since(g.handshake(inst)) < g.config.Tunnel.HandshakeStale
}
