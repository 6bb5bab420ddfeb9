package proxy

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"dstack.host/gateway/registry"
)

// maxCandidates is how many instances of an app one connection tries (dstack 0.6 connect_top_n).
const maxCandidates = 3

// stagger is how long the first instance may take before the next is tried beside it (RFC 8305 section 5 recommends 250 ms).
const stagger = 250 * time.Millisecond

// backend is an app as one client connection sees it. It is immutable and compared by identity: two requests with the same backend may share an
// upstream connection, and a change of the app's instances makes a new one.
type backend struct {
	p         *Proxy
	name      registry.Name
	instances []*registry.Instance
	client    netip.AddrPort // for the PROXY protocol
	local     netip.AddrPort
	seq       uint64 // of this backend on its client connection
}

// Dial connects to one of the instances. Its error is a *failure. It is safe for concurrent use.
func (b *backend) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, b.p.cfg.DialTimeout)
	defer cancel()
	candidates, f := b.candidates()
	if f != nil {
		return nil, f
	}
	if len(candidates) == 1 {
		return b.connect(ctx, candidates[0])
	}
	return b.race(ctx, candidates)
}

// candidates are the instances worth trying: those that do not drain, allow the port, and whose tunnel is up, the freshest handshakes of them. Among
// these the order is random, so that an app's load spreads over its instances.
func (b *backend) candidates() ([]*registry.Instance, *failure) {
	wanted := filter(b.instances, func(i *registry.Instance) bool { return !i.Draining() })
	if len(wanted) == 0 {
		return nil, fail(Draining, nil)
	}
	allowed := filter(wanted, func(i *registry.Instance) bool { return i.Policy().Allowed(b.name.Port) })
	if len(allowed) == 0 {
		return nil, fail(PortDenied, nil)
	}
	up := filter(allowed, b.p.cfg.TunnelUp)
	if len(up) == 0 {
		return nil, fail(TunnelDown, nil)
	}
	if len(up) > 1 {
		up = freshest(up, b.p.cfg.Handshake)
	}
	return up, nil
}

// freshest orders instances by their last handshake and keeps as many as are tried, in random order.
func freshest(list []*registry.Instance, handshake func(*registry.Instance) time.Time) []*registry.Instance {
	list = slices.Clone(list)
	shuffle := func(l []*registry.Instance) { rand.Shuffle(len(l), func(i, j int) { l[i], l[j] = l[j], l[i] }) }
	shuffle(list)
	if handshake != nil && len(list) > maxCandidates {
		type aged struct {
			inst *registry.Instance
			at   time.Time
		}
		ages := make([]aged, len(list))
		for i, inst := range list {
			ages[i] = aged{inst, handshake(inst)}
		}
		slices.SortStableFunc(ages, func(a, b aged) int { return b.at.Compare(a.at) })
		for i := range maxCandidates {
			list[i] = ages[i].inst
		}
		shuffle(list[:maxCandidates])
	}
	return list[:min(len(list), maxCandidates)]
}

// filter is list without those for which keep is false. It copies only if there are any.
func filter(list []*registry.Instance, keep func(*registry.Instance) bool) []*registry.Instance {
	for i, inst := range list {
		if keep(inst) {
			continue
		}
		out := slices.Clone(list[:i])
		for _, inst := range list[i+1:] {
			if keep(inst) {
				out = append(out, inst)
			}
		}
		return out
	}
	return list
}

// attempt is the outcome of one connect.
type attempt struct {
	conn net.Conn
	err  error
}

// race connects to the candidates one after the other, each next one as soon as one fails or after the stagger, and takes the first
// that succeeds (RFC 8305 section 5).
func (b *backend) race(ctx context.Context, candidates []*registry.Instance) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	results := make(chan attempt, len(candidates))
	defer func() {
		cancel()
		running.Wait() // the losers end as soon as the context does
		close(results)
		for late := range results {
			if late.conn != nil {
				late.conn.Close()
			}
		}
	}()
	next := 0
	start := func() {
		inst := candidates[next]
		next++
		running.Go(func() {
			conn, err := b.connect(ctx, inst)
			results <- attempt{conn, err}
		})
	}
	start()
	timer := time.NewTimer(stagger)
	defer timer.Stop()
	var failed []error
	for {
		select {
		case a := <-results:
			if a.err == nil {
				return a.conn, nil
			}
			if failed = append(failed, a.err); len(failed) == len(candidates) {
				return nil, worst(failed)
			}
		case <-timer.C:
		}
		if next < len(candidates) {
			start()
			timer.Reset(stagger)
		}
	}
}

// worst picks the failure that says most about the app: an answer, even a refusal, before silence, silence before a dead tunnel.
func worst(failed []error) error {
	order := []Reason{AppRefused, AppTimeout, TunnelDown}
	return slices.MinFunc(failed, func(a, b error) int {
		return cmp.Compare(slices.Index(order, asFailure(a).reason), slices.Index(order, asFailure(b).reason))
	})
}

// connect dials one instance and sends the PROXY protocol header if its policy asks for one.
func (b *backend) connect(ctx context.Context, inst *registry.Instance) (net.Conn, error) {
	conn, err := b.p.cfg.Dial(ctx, inst, b.name.Port)
	if err != nil {
		return nil, dialFailure(ctx, err)
	}
	if !inst.Policy().Proxy(b.name.Port) {
		return conn, nil
	}
	deadline, _ := ctx.Deadline()
	conn.SetWriteDeadline(deadline) //nolint:errcheck // a dead connection fails the write
	if _, err := conn.Write(proxyHeader(b.client, b.local)); err != nil {
		conn.Close()
		return nil, fail(AppClosed, err)
	}
	conn.SetWriteDeadline(time.Time{}) //nolint:errcheck // likewise
	return conn, nil
}

// dialFailure tells an app that is not there from one that is not heard and from a tunnel that does not carry.
func dialFailure(ctx context.Context, err error) *failure {
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fail(AppRefused, err)
	case isNet && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded), ctx.Err() != nil:
		return fail(AppTimeout, err)
	}
	return fail(TunnelDown, err)
}
