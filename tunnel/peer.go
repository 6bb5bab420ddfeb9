package tunnel

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Peer is the other end of a tunnel.
type Peer struct {
	// Key identifies the peer; no two peers have the same.
	Key PublicKey
	// Addr is the only address the peer may use inside the tunnel; no two peers have the same.
	Addr netip.Addr
	// Addr6 is a second one, of IPv6 where Addr is of IPv4. The zero value: none.
	Addr6 netip.Addr
	// Endpoint is where the peer is reached. The zero value: learned from the peer's own packets. WireGuard follows a
	// peer that moves in either case.
	Endpoint netip.AddrPort
	// Keepalive is the interval of empty packets that keep a NAT open, in whole seconds up to 65535. Zero sends none.
	Keepalive time.Duration
}

// addrs are the addresses that the peer may use.
func (p Peer) addrs() []netip.Addr {
	list := make([]netip.Addr, 0, 2)
	for _, a := range []netip.Addr{p.Addr, p.Addr6} {
		if a.IsValid() {
			list = append(list, a)
		}
	}
	return list
}

// allowedIPs are the addresses as prefixes that hold nothing else.
func (p Peer) allowedIPs() (list []net.IPNet) {
	for _, a := range p.addrs() {
		list = append(list, ipNet(netip.PrefixFrom(a, a.BitLen())))
	}
	return list
}

// check tells everything that a device would refuse or read differently.
func (p Peer) check() error {
	var faults []error
	if err := p.Key.check(); err != nil {
		faults = append(faults, fmt.Errorf("key: %w", err))
	}
	if err := checkUnicast(p.Addr); err != nil {
		faults = append(faults, fmt.Errorf("address %v: %w", p.Addr, err))
	}
	if p.Addr6 != (netip.Addr{}) {
		if err := checkSecond(p.Addr, p.Addr6); err != nil {
			faults = append(faults, fmt.Errorf("second address %v: %w", p.Addr6, err))
		}
	}
	if p.Endpoint != (netip.AddrPort{}) {
		if err := checkEndpoint(p.Endpoint); err != nil {
			faults = append(faults, fmt.Errorf("endpoint %v: %w", p.Endpoint, err))
		}
	}
	if p.Keepalive < 0 || p.Keepalive > math.MaxUint16*time.Second || p.Keepalive%time.Second != 0 {
		faults = append(faults, fmt.Errorf("keepalive %v: want whole seconds, 0 to 65535", p.Keepalive))
	}
	return errors.Join(faults...)
}

// checkSecond tells why an address can't be the second one beside another.
func checkSecond(first, second netip.Addr) error {
	if err := checkUnicast(second); err != nil {
		return err
	}
	if !first.Is4() || !second.Is6() || second.IsLinkLocalUnicast() {
		return errors.New("want a routable IPv6 address beside one of IPv4")
	}
	return nil
}

func checkUnicast(a netip.Addr) error {
	switch {
	case !a.IsValid():
		return errors.New("not set")
	case a.Is4In6():
		return errors.New("an IPv4 address in IPv6 form")
	case a.Zone() != "":
		return errors.New("has a zone")
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return errors.New("not the address of a host")
	}
	return nil
}

func checkEndpoint(e netip.AddrPort) error {
	switch {
	case !e.IsValid(), e.Port() == 0:
		return errors.New("want an address and a port")
	case e.Addr().Is4In6(), e.Addr().IsUnspecified(), e.Addr().IsMulticast():
		return errors.New("not the address of a host")
	}
	return nil
}

// checkPeers returns the peers that a device self can have, in order. Of two with the same key or address the first
// stays; every one left out is told in the error. One bad peer must not keep the others out.
func checkPeers(self PublicKey, own []netip.Prefix, peers []Peer) ([]Peer, error) {
	var (
		good   = make([]Peer, 0, len(peers))
		keys   = make(map[PublicKey]struct{}, len(peers))
		addrs  = make(map[netip.Addr]struct{}, len(peers))
		faults []error
	)
	for _, p := range peers {
		var err error
		if _, ok := keys[p.Key]; ok {
			err = errors.New("key given twice")
		} else if p.Key == self {
			err = errors.New("is this device's own key")
		}
		for _, a := range p.addrs() {
			if _, ok := addrs[a]; ok {
				err = cmp.Or(err, fmt.Errorf("address %v given twice", a))
			} else if slices.ContainsFunc(own, func(o netip.Prefix) bool { return o.Addr() == a }) {
				err = cmp.Or(err, fmt.Errorf("%v is this device's own address", a))
			}
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("peer %v: %w", p.Key, err))
			continue
		}
		keys[p.Key] = struct{}{}
		for _, a := range p.addrs() {
			addrs[a] = struct{}{}
		}
		good = append(good, p)
	}
	return good, errors.Join(faults...)
}

// Op is what a [Change] does.
type Op uint8

// The operations.
const (
	Remove Op = iota
	Add
	Update
)

// String returns the name of the operation in lower case.
func (o Op) String() string {
	switch o {
	case Remove:
		return "remove"
	case Add:
		return "add"
	case Update:
		return "update"
	}
	return fmt.Sprintf("op %d", uint8(o))
}

// Change is one step from the peers a device has to those it should have.
type Change struct {
	Op Op
	// Was is the peer before; zero for Add.
	Was Peer
	// Peer is the peer after; zero for Remove.
	Peer Peer
}

// Key returns the key of the peer the change is about.
func (c Change) Key() PublicKey {
	if c.Op == Remove {
		return c.Was.Key
	}
	return c.Peer.Key
}

// Diff returns the changes that turn current into want, in an order that can be applied step by step. A peer whose
// address a new one takes (a CVM that came back with a new key) is removed immediately before its successor is added,
// so that packets of the one are never taken for the other's; every other peer that is gone is removed first, and peers
// that stay are updated before new ones are added. Where peers that stay exchange addresses, WireGuard moves the address
// with the first message: an allowed IP has one owner.
// A wanted peer without Endpoint does not differ from a current one with any. Both lists must be free of duplicate keys
// and addresses.
func Diff(current, want []Peer) []Change {
	have := make(map[PublicKey]Peer, len(current))
	for _, p := range current {
		have[p.Key] = p
	}
	return diff(have, want)
}

func diff(have map[PublicKey]Peer, want []Peer) []Change {
	var updates, adds []Change
	for _, p := range want {
		was, ok := have[p.Key]
		switch {
		case !ok:
			adds = append(adds, Change{Op: Add, Peer: p})
		case differs(was, p):
			updates = append(updates, Change{Op: Update, Was: was, Peer: p})
		}
	}
	news := slices.Concat(updates, adds)
	if len(want)-len(adds) == len(have) {
		return news
	}
	return withRemovals(gone(have, want), news)
}

// gone returns the peers of have that are not in want, ordered so that the result depends on nothing but the input.
func gone(have map[PublicKey]Peer, want []Peer) []Peer {
	left := maps.Clone(have)
	for _, p := range want {
		delete(left, p.Key)
	}
	return byAddr(left)
}

// withRemovals puts the removal of each peer in left before the change that takes its address, or else at the start.
func withRemovals(left []Peer, news []Change) []Change {
	heirs := make(map[netip.Addr]struct{}, len(news))
	for _, c := range news {
		heirs[c.Peer.Addr] = struct{}{}
	}
	all := make([]Change, 0, len(left)+len(news))
	before := make(map[netip.Addr]Peer)
	for _, p := range left {
		if _, ok := heirs[p.Addr]; ok {
			before[p.Addr] = p
			continue
		}
		all = append(all, Change{Op: Remove, Was: p})
	}
	for _, c := range news {
		if was, ok := before[c.Peer.Addr]; ok {
			all = append(all, Change{Op: Remove, Was: was})
		}
		all = append(all, c)
	}
	return all
}

func differs(was, want Peer) bool {
	return was.Addr != want.Addr || was.Addr6 != want.Addr6 || was.Keepalive != want.Keepalive || moved(was, want)
}

func moved(was, want Peer) bool {
	return want.Endpoint.IsValid() && was.Endpoint != want.Endpoint
}

// message returns the part of a configure message that makes the change, and only it: an update that leaves the
// address alone must not replace the AllowedIPs, for packets are dropped in between.
func (c Change) message() wgtypes.PeerConfig {
	m := wgtypes.PeerConfig{PublicKey: wgtypes.Key(c.Key())}
	if c.Op == Remove {
		m.Remove, m.UpdateOnly = true, true
		return m
	}
	// A peer that is not there must not be created by an update: it was removed behind our back and the next reading
	// of the device will tell.
	m.UpdateOnly = c.Op == Update
	if c.Was.Addr != c.Peer.Addr || c.Was.Addr6 != c.Peer.Addr6 {
		m.ReplaceAllowedIPs = true
		m.AllowedIPs = c.Peer.allowedIPs()
	}
	if c.Was.Keepalive != c.Peer.Keepalive {
		m.PersistentKeepaliveInterval = &c.Peer.Keepalive
	}
	if moved(c.Was, c.Peer) {
		m.Endpoint = net.UDPAddrFromAddrPort(c.Peer.Endpoint)
	}
	return m
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// peersOf returns the peers of d by key. For the endpoint, which WireGuard changes by itself, it takes what known says
// of the same key. A peer with other AllowedIPs than one address, or one of each family, gets no Addr, so it differs from any
// wanted one.
func peersOf(d *wgtypes.Device, known map[PublicKey]Peer) map[PublicKey]Peer {
	peers := make(map[PublicKey]Peer, len(d.Peers))
	for i := range d.Peers {
		from := &d.Peers[i]
		p := Peer{Key: PublicKey(from.PublicKey), Keepalive: from.PersistentKeepaliveInterval}
		p.Endpoint = known[p.Key].Endpoint
		p.Addr, p.Addr6 = addrsOf(from.AllowedIPs)
		peers[p.Key] = p
	}
	return peers
}

// addrsOf reads the AllowedIPs of a peer that has one address, or one of IPv4 and one of IPv6; of any other it returns none.
func addrsOf(allowed []net.IPNet) (first, second netip.Addr) {
	var list []netip.Addr
	for _, a := range allowed {
		ones, bits := a.Mask.Size()
		addr, _ := netip.AddrFromSlice(a.IP)
		if addr = addr.Unmap(); ones != bits || bits != addr.BitLen() {
			return netip.Addr{}, netip.Addr{}
		}
		list = append(list, addr)
	}
	slices.SortFunc(list, netip.Addr.Compare) // IPv4 comes first
	switch {
	case len(list) == 1:
		return list[0], netip.Addr{}
	case len(list) == 2 && list[0].Is4() && list[1].Is6():
		return list[0], list[1]
	}
	return netip.Addr{}, netip.Addr{}
}

// byAddr returns the peers ordered by address.
func byAddr(peers map[PublicKey]Peer) []Peer {
	all := make([]Peer, 0, len(peers))
	for _, p := range peers {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Peer) int {
		return cmp.Or(a.Addr.Compare(b.Addr), slices.Compare(a.Key[:], b.Key[:]))
	})
	return all
}
