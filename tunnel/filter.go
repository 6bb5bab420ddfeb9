package tunnel

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/tun"
)

// filtered is a TUN that lets peers answer but not ask: of what arrives through the tunnel only segments of
// connections that were begun on this side reach the host, and the ICMP errors that belong to them. It keeps the
// gateway's own services, and the hosts behind it, out of reach of its peers.
type filtered struct {
	tun.Device
	local []netip.Prefix // this end's addresses
	// open lets peers ask too: what they like, or with ports only to open TCP connections to those.
	open  bool
	ports []uint16
}

// Write implements tun.Device.
func (f *filtered) Write(bufs [][]byte, offset int) (int, error) {
	if f.open && f.ports == nil {
		return f.Device.Write(bufs, offset)
	}
	kept := bufs[:0] // the slice is the caller's to give away, wireguard-go resets it after the call
	for _, b := range bufs {
		if f.passes(b[offset:]) {
			kept = append(kept, b)
		}
	}
	if len(kept) == 0 {
		return len(bufs), nil
	}
	if _, err := f.Device.Write(kept, offset); err != nil {
		return 0, err
	}
	return len(bufs), nil
}

// passes reports whether a packet is for one of this end's addresses, and may reach it.
func (f *filtered) passes(packet []byte) bool {
	for _, own := range f.local {
		if local := own.Addr(); solicited(packet, local) || f.open && invited(packet, local, f.ports) {
			return true
		}
	}
	return false
}

// Protocol numbers (IANA) and the parts of the headers that matter.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoICMPv6 = 58

	ipv4Head = 20
	ipv6Head = 40
	tcpHead  = 20

	tcpDestination = 2
	tcpFlags       = 13
	flagSYN        = 0x02
	flagACK        = 0x10
	icmpFirst      = 8 // octets before the quoted packet
)

// solicited reports whether packet may reach local without an invitation having been looked up: a TCP segment that is
// no opening SYN, or an ICMP error. Without an open connection the host answers such a segment with a reset at most.
// Fragments are refused: neither side needs them within one MTU, and the second has no header to judge.
func solicited(packet []byte, local netip.Addr) bool {
	dst, proto, payload, ok := splitIP(packet)
	if !ok || dst != local {
		return false
	}
	switch {
	case proto == protoTCP:
		return len(payload) >= tcpHead && payload[tcpFlags]&(flagSYN|flagACK) != flagSYN
	case proto == protoICMP && local.Is4():
		// Destination unreachable and time exceeded (RFC 792).
		return len(payload) >= icmpFirst && (payload[0] == 3 || payload[0] == 11)
	case proto == protoICMPv6 && local.Is6():
		// Error messages are the types below 128 (RFC 4443 section 2.1).
		return len(payload) >= icmpFirst && payload[0] < 128
	}
	return false
}

// invited reports whether packet is a TCP segment for one of the ports of local.
func invited(packet []byte, local netip.Addr, ports []uint16) bool {
	dst, proto, payload, ok := splitIP(packet)
	return ok && dst == local && proto == protoTCP && len(payload) >= tcpHead &&
		slices.Contains(ports, binary.BigEndian.Uint16(payload[tcpDestination:]))
}

// splitIP returns the destination, the protocol and the payload of an unfragmented packet. Extension headers of IPv6
// count as a protocol of their own.
func splitIP(packet []byte) (dst netip.Addr, proto byte, payload []byte, ok bool) {
	if len(packet) < ipv4Head {
		return dst, 0, nil, false
	}
	switch packet[0] >> 4 {
	case 4:
		head := int(packet[0]&0x0f) * 4
		fragment := packet[6]&0x3f != 0 || packet[7] != 0 // more fragments, or an offset
		if head < ipv4Head || head > len(packet) || fragment {
			return dst, 0, nil, false
		}
		return netip.AddrFrom4([4]byte(packet[16:20])), packet[9], packet[head:], true
	case 6:
		if len(packet) < ipv6Head {
			return dst, 0, nil, false
		}
		return netip.AddrFrom16([16]byte(packet[24:40])), packet[6], packet[ipv6Head:], true
	}
	return dst, 0, nil, false
}
