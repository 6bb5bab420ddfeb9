package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrPoolExhausted says that every address of a pool is in use or reserved.
var ErrPoolExhausted = errors.New("no free address in the pool")

// poolScan bounds the search of one allocation: twice the peers that a device can have.
const poolScan = 2 << 16

// Pool is the set of addresses that are given to peers: a prefix without its network and broadcast address and
// without the reserved prefixes. It holds no state, so it can be copied and used concurrently. The zero value is empty.
type Pool struct {
	clients  netip.Prefix
	reserved []netip.Prefix
}

// NewPool returns the pool of the addresses of clients that are in none of reserved: the gateway's own address, the
// broadcast address of the surrounding network and what the operator keeps.
func NewPool(clients netip.Prefix, reserved ...netip.Prefix) (Pool, error) {
	var faults []error
	if !clients.IsValid() || clients.Addr().Is4In6() || clients.Addr().Zone() != "" {
		return Pool{}, fmt.Errorf("client range %v: not an IPv4 or IPv6 prefix", clients)
	}
	p := Pool{clients: clients.Masked()}
	if clients != p.clients {
		faults = append(faults, fmt.Errorf("client range %v: has host bits set, write %v", clients, p.clients))
	}
	for _, r := range reserved {
		if !r.IsValid() || r.Addr().Is4In6() || r.Addr().Zone() != "" {
			faults = append(faults, fmt.Errorf("reserved range %v: not an IPv4 or IPv6 prefix", r))
			continue
		}
		p.reserved = append(p.reserved, r.Masked())
	}
	if err := errors.Join(faults...); err != nil {
		return Pool{}, err
	}
	if _, err := p.Allocate(func(netip.Addr) bool { return false }); err != nil {
		return Pool{}, fmt.Errorf("client range %v: every address is reserved", clients)
	}
	return p, nil
}

// Contains reports whether a is an address that [Pool.Allocate] can return.
func (p Pool) Contains(a netip.Addr) bool {
	if !p.clients.IsValid() || !p.clients.Contains(a) || a.Zone() != "" || a == p.network() || a == p.broadcast() {
		return false
	}
	for _, r := range p.reserved {
		if r.Contains(a) {
			return false
		}
	}
	return true
}

// Allocate returns the lowest address for which used is false. The error is [ErrPoolExhausted].
func (p Pool) Allocate(used func(netip.Addr) bool) (netip.Addr, error) {
	if !p.clients.IsValid() {
		return netip.Addr{}, ErrPoolExhausted
	}
	a := p.clients.Addr()
	for range poolScan {
		if !a.IsValid() || !p.clients.Contains(a) {
			break
		}
		if end := p.reservedEnd(a); end.IsValid() {
			a = end.Next()
			continue
		}
		if p.Contains(a) && !used(a) {
			return a, nil
		}
		a = a.Next()
	}
	return netip.Addr{}, ErrPoolExhausted
}

// reservedEnd returns the last address of the reserved prefix that holds a, the zero Addr if none does. Skipping a
// whole prefix at once keeps the search short where it is a large part of an IPv6 range.
func (p Pool) reservedEnd(a netip.Addr) netip.Addr {
	for _, r := range p.reserved {
		if r.Contains(a) {
			return lastOf(r)
		}
	}
	return netip.Addr{}
}

// network returns the address that names the range itself: in IPv6 the subnet-router anycast address (RFC 4291
// section 2.6.1). A range of one or two addresses has none (RFC 3021, RFC 6164).
func (p Pool) network() netip.Addr {
	if p.clients.Addr().BitLen()-p.clients.Bits() < 2 {
		return netip.Addr{}
	}
	return p.clients.Addr()
}

// broadcast returns the last address of an IPv4 range of four addresses or more.
func (p Pool) broadcast() netip.Addr {
	if !p.clients.Addr().Is4() || p.clients.Bits() > 30 {
		return netip.Addr{}
	}
	return lastOf(p.clients)
}

// lastOf returns the highest address of a masked prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
