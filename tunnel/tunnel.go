package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// ErrNoPeer says that no peer has the address that was dialed.
var ErrNoPeer = errors.New("no peer of the tunnel has this address")

// Tunnel is one WireGuard interface. Its methods can be called concurrently.
type Tunnel struct {
	// set by Open
	name      string
	public    PublicKey
	address   netip.Prefix
	own       []netip.Prefix // address, and the second one
	listen    netip.AddrPort
	interval  time.Duration
	inbound   bool
	device    platform
	described string
	log       *slog.Logger

	// guarded by mu
	mu     sync.Mutex
	closed bool
	peers  map[PublicKey]Peer // what the device has
	want   []Peer             // as last given to Reconcile; nil before
	asked  bool               // Reconcile was called
	unsure bool               // a message failed: peers must be read again

	// changed by Reconcile, read by anybody
	addrs sync.Map // netip.Addr → PublicKey
	// replaced by Poll and Reconcile, read by anybody
	handshakes atomic.Pointer[map[PublicKey]time.Time]
}

// Open creates the device, gives it its key and addresses, and listens. The device's own goroutines run until Close.
// An error about a taken port satisfies errors.Is(err, syscall.EADDRINUSE) and names the port.
func Open(cfg Config) (*Tunnel, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	d, why, err := openPlatform(&cfg)
	if err != nil {
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	t := &Tunnel{
		name: cfg.Name, public: cfg.PrivateKey.PublicKey(), address: cfg.Address, own: cfg.addresses(), interval: cfg.HandshakeInterval,
		inbound: cfg.Inbound, device: d, described: why, log: cfg.Logger,
	}
	t.handshakes.Store(&map[PublicKey]time.Time{})
	if err := t.start(&cfg); err != nil {
		return nil, fmt.Errorf("tunnel: %w", errors.Join(err, d.close()))
	}
	t.log.Info("tunnel open", "device", why, "listen", t.listen, "address", t.address, "key", t.public)
	return t, nil
}

// start configures a device that was created, and reads back what it became.
func (t *Tunnel) start(cfg *Config) error {
	key, port := wgtypes.Key(cfg.PrivateKey), int(cfg.Listen.Port())
	if err := t.device.ConfigureDevice(t.name, wgtypes.Config{PrivateKey: &key, ListenPort: &port}); err != nil {
		return fmt.Errorf("configure with udp port %d: %w", port, err)
	}
	if err := t.device.up(); err != nil {
		return fmt.Errorf("wireguard on udp port %d: %w", port, err)
	}
	d, err := t.device.Device(t.name)
	if err != nil {
		return err
	}
	addr := cfg.Listen.Addr()
	if !addr.IsValid() {
		addr = netip.IPv6Unspecified()
	}
	t.listen = netip.AddrPortFrom(addr, uint16(d.ListenPort))
	t.peers = peersOf(d, nil)
	for _, p := range t.peers {
		for _, a := range p.addrs() {
			t.addrs.Store(a, p.Key)
		}
	}
	return nil
}

// Run reads the device every HandshakeInterval until ctx ends, then returns nil. See Poll.
func (t *Tunnel) Run(ctx context.Context) error {
	tick := time.NewTicker(t.interval)
	defer tick.Stop()
	for {
		switch err := t.Poll(ctx); {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			t.log.Warn("tunnel not read", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Poll reads the device once: it replaces the snapshot of the handshakes, and if the peers are not those last given to
// Reconcile (somebody used wg(8), or a message was lost), it puts them right.
func (t *Tunnel) Poll(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("tunnel: %w", net.ErrClosed)
	}
	if err := t.read(); err != nil || !t.asked {
		return err
	}
	changes := diff(t.peers, t.want)
	if len(changes) == 0 {
		return nil
	}
	t.log.Warn("tunnel peers differed from what was configured", "changes", len(changes))
	return t.apply(ctx, changes)
}

// read takes the peers and the handshakes from the device. The caller holds mu.
func (t *Tunnel) read() error {
	d, err := t.device.Device(t.name)
	if err != nil {
		return fmt.Errorf("read device: %w", err)
	}
	seen := make(map[PublicKey]time.Time, len(d.Peers))
	for i := range d.Peers {
		if at := d.Peers[i].LastHandshakeTime; !at.IsZero() {
			seen[PublicKey(d.Peers[i].PublicKey)] = at
		}
	}
	t.handshakes.Store(&seen)
	t.peers, t.unsure = peersOf(d, t.peers), false
	return nil
}

// Reconcile makes the peers of the device those in want, with one message for each peer that differs and none for the
// others. A peer that can't be applied is told in the error and does not keep the others from being applied; of two
// with the same key or address the first is taken. The slice is not kept.
func (t *Tunnel) Reconcile(ctx context.Context, want []Peer) error {
	good, faults := checkPeers(t.public, t.own, want)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("tunnel: %w", net.ErrClosed)
	}
	t.want, t.asked = good, true
	if t.unsure {
		if err := t.read(); err != nil {
			return errors.Join(faults, err)
		}
	}
	return errors.Join(faults, t.apply(ctx, diff(t.peers, good)))
}

// apply sends the changes one by one. The caller holds mu.
func (t *Tunnel) apply(ctx context.Context, changes []Change) error {
	var faults []error
	removed := false
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			faults = append(faults, err)
			break
		}
		if err := t.applyOne(c); err != nil {
			t.unsure = true
			faults = append(faults, fmt.Errorf("%v peer %v: %w", c.Op, c.Key(), err))
			continue
		}
		removed = removed || c.Op == Remove
	}
	if removed {
		t.forgetHandshakes()
	}
	return errors.Join(faults...)
}

// applyOne makes one change on the device and then in the tables. The route to a new address comes first: if it can't
// be made, the peer stays as it was and the change is tried again by the next Poll.
func (t *Tunnel) applyOne(c Change) error {
	was, is := c.Was.addrs(), c.Peer.addrs()
	if c.Op != Remove {
		if err := c.Peer.check(); err != nil {
			return err
		}
		for _, a := range is {
			if !slices.Contains(was, a) && !t.onLink(a) {
				if err := t.device.route(a, true); err != nil {
					return err
				}
			}
		}
	}
	msg := wgtypes.Config{Peers: []wgtypes.PeerConfig{c.message()}}
	if err := t.device.ConfigureDevice(t.name, msg); err != nil {
		return err
	}
	if c.Op == Remove {
		delete(t.peers, c.Was.Key)
	} else {
		t.peers[c.Peer.Key] = c.Peer
		for _, a := range is {
			t.addrs.Store(a, c.Peer.Key)
		}
	}
	var faults []error
	for _, a := range was {
		// A successor may hold the old address already, if peers exchange theirs.
		if !slices.Contains(is, a) && t.addrs.CompareAndDelete(a, c.Was.Key) && !t.onLink(a) {
			faults = append(faults, t.device.route(a, false))
		}
	}
	return errors.Join(faults...)
}

// onLink reports whether an address is reached without a route of its own.
func (t *Tunnel) onLink(a netip.Addr) bool {
	return slices.ContainsFunc(t.own, func(p netip.Prefix) bool { return p.Contains(a) })
}

// forgetHandshakes drops the handshakes of peers that are gone, so that a key that comes back starts anew.
func (t *Tunnel) forgetHandshakes() {
	left := maps.Clone(*t.handshakes.Load())
	maps.DeleteFunc(left, func(k PublicKey, _ time.Time) bool {
		_, ok := t.peers[k]
		return !ok
	})
	t.handshakes.Store(&left)
}

// Handshake returns when the last handshake with a peer was, as of the last reading of the device, and false if there
// was none or the peer is unknown. It takes no lock.
func (t *Tunnel) Handshake(key PublicKey) (time.Time, bool) {
	at, ok := (*t.handshakes.Load())[key]
	return at, ok
}

// Has reports whether the device has a peer with this key and address. It takes no lock.
func (t *Tunnel) Has(key PublicKey, addr netip.Addr) bool {
	has, ok := t.addrs.Load(addr)
	return ok && has == key
}

// Peers returns the peers of the device, ordered by address.
func (t *Tunnel) Peers() []Peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return byAddr(t.peers)
}

// PublicKey returns this end's key.
func (t *Tunnel) PublicKey() PublicKey { return t.public }

// Address returns this end's address inside the tunnel, with its prefix.
func (t *Tunnel) Address() netip.Prefix { return t.address }

// ListenAddr returns the UDP address of the outside, with the port that was really taken.
func (t *Tunnel) ListenAddr() netip.AddrPort { return t.listen }

// Device says which device the tunnel runs on and, where it was chosen, why not on a better one.
func (t *Tunnel) Device() string { return t.described }

// OnHost reports whether the tunnel is an interface of this host, so that programs of the host are reached through it. Otherwise
// it ends in this process.
func (t *Tunnel) OnHost() bool {
	_, inProcess := t.device.(*netDevice)
	return !inProcess
}

// DialContext connects to a peer. The network is tcp, tcp4 or tcp6, the address an IP literal with a port: nothing is
// resolved, and an address that no peer has is ErrNoPeer at once, so that nothing leaves by another interface.
// A refused connection satisfies errors.Is(err, syscall.ECONNREFUSED) on every device. The connection has a CloseWrite
// method.
func (t *Tunnel) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := parseDial(network, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	if _, ok := t.addrs.Load(to.Addr()); !ok {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(to), Err: ErrNoPeer}
	}
	return t.device.dial(ctx, to)
}

func parseDial(network, address string) (netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil || port == 0 {
		return netip.AddrPort{}, fmt.Errorf("port %q: want 1 to 65535", service)
	}
	switch {
	case network == "tcp", network == "tcp4" && addr.Is4(), network == "tcp6" && addr.Is6():
		return netip.AddrPortFrom(addr, uint16(port)), nil
	}
	return netip.AddrPort{}, net.UnknownNetworkError(network)
}

// Listen listens for TCP connections from peers. The address must be one of this end's, or unspecified, which means the first.
func (t *Tunnel) Listen(a netip.AddrPort) (net.Listener, error) {
	if !t.inbound {
		return nil, errors.New("tunnel: listen: this end takes no connections from its peers")
	}
	if a.Addr().IsUnspecified() {
		a = netip.AddrPortFrom(t.address.Addr(), a.Port())
	}
	if !slices.ContainsFunc(t.own, func(p netip.Prefix) bool { return p.Addr() == a.Addr() }) {
		return nil, fmt.Errorf("tunnel: listen %v: the address of this end is %v", a, t.address.Addr())
	}
	return t.device.listen(a)
}

// Close ends the device, its listeners and its connections, and returns when nothing of it runs any more. It can be
// called again.
func (t *Tunnel) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	t.addrs.Clear()
	t.handshakes.Store(&map[PublicKey]time.Time{})
	return t.device.close()
}
