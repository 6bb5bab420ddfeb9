package tunnel_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"dstack.host/tunnel"
)

var (
	local4 = netip.MustParseAddr("10.0.0.1")
	local6 = netip.MustParseAddr("fd00::1")
)

// packet returns an IP packet of proto for dst with payload; change, if not nil, spoils its header.
func packet(dst netip.Addr, proto byte, payload []byte, change func([]byte)) []byte {
	var head []byte
	if dst.Is4() {
		head = make([]byte, 20)
		head[0], head[9] = 0x45, proto
		copy(head[16:], dst.AsSlice())
	} else {
		head = make([]byte, 40)
		head[0], head[6] = 0x60, proto
		copy(head[24:], dst.AsSlice())
	}
	if change != nil {
		change(head)
	}
	return append(head, payload...)
}

func segment(flags byte) []byte {
	b := make([]byte, 20)
	b[12], b[13] = 0x50, flags
	return b
}

func icmp(kind byte) []byte { return append([]byte{kind}, make([]byte, 7)...) }

func TestOnlyAnswersPassTheFilter(t *testing.T) {
	const fin, syn, rst, psh, ack = 1, 2, 4, 8, 16
	other4, other6 := netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("fd00::9")
	for _, tc := range []struct {
		name   string
		packet []byte
		local  netip.Addr
		want   bool
	}{
		{"SYN-ACK", packet(local4, 6, segment(syn|ack), nil), local4, true},
		{"data", packet(local4, 6, segment(psh|ack), nil), local4, true},
		{"FIN", packet(local4, 6, segment(fin|ack), nil), local4, true},
		{"RST", packet(local4, 6, segment(rst), nil), local4, true},
		{"IPv6 data", packet(local6, 6, segment(ack), nil), local6, true},
		{"header options", packet(local4, 6, append(make([]byte, 4), segment(ack)...), func(h []byte) { h[0] = 0x46 }), local4, true},
		{"unreachable", packet(local4, 1, icmp(3), nil), local4, true},
		{"time exceeded", packet(local4, 1, icmp(11), nil), local4, true},
		{"IPv6 packet too big", packet(local6, 58, icmp(2), nil), local6, true},
		{"don't fragment", packet(local4, 6, segment(ack), func(h []byte) { h[6] = 0x40 }), local4, true},

		{"SYN", packet(local4, 6, segment(syn), nil), local4, false},
		{"SYN with FIN", packet(local4, 6, segment(syn|fin), nil), local4, false},
		{"SYN with PSH and RST", packet(local4, 6, segment(syn|psh|rst), nil), local4, false},
		{"IPv6 SYN", packet(local6, 6, segment(syn), nil), local6, false},
		{"SYN behind header options", packet(local4, 6, append(make([]byte, 4), segment(syn)...), func(h []byte) { h[0] = 0x46 }), local4, false},
		{"for another host", packet(other4, 6, segment(ack), nil), local4, false},
		{"IPv6 for another host", packet(other6, 6, segment(ack), nil), local6, false},
		{"broadcast", packet(netip.MustParseAddr("255.255.255.255"), 6, segment(ack), nil), local4, false},
		{"the other family", packet(local6, 6, segment(ack), nil), local4, false},
		{"UDP", packet(local4, 17, make([]byte, 20), nil), local4, false},
		{"ping", packet(local4, 1, icmp(8), nil), local4, false},
		{"redirect", packet(local4, 1, icmp(5), nil), local4, false},
		{"IPv6 ping", packet(local6, 58, icmp(128), nil), local6, false},
		{"IPv6 router advertisement", packet(local6, 58, icmp(134), nil), local6, false},
		{"ICMPv6 in IPv4", packet(local4, 58, icmp(1), nil), local4, false},
		{"IPv6 extension header", packet(local6, 0, segment(ack), nil), local6, false},
		{"first fragment", packet(local4, 6, segment(ack), func(h []byte) { h[6] = 0x20 }), local4, false},
		{"later fragment", packet(local4, 6, segment(ack), func(h []byte) { h[7] = 1 }), local4, false},
		{"short segment", packet(local4, 6, segment(ack)[:19], nil), local4, false},
		{"short ICMP", packet(local4, 1, icmp(3)[:7], nil), local4, false},
		{"header shorter than a header", packet(local4, 6, segment(ack), func(h []byte) { h[0] = 0x44 }), local4, false},
		{"header longer than the packet", packet(local4, 6, segment(ack), func(h []byte) { h[0] = 0x4f }), local4, false},
		{"IPv6 cut", packet(local6, 6, nil, nil)[:39], local6, false},
		{"version 5", packet(local4, 6, segment(ack), func(h []byte) { h[0] = 0x55 }), local4, false},
		{"empty", nil, local4, false},
	} {
		if got := tunnel.Solicited(tc.packet, tc.local); got != tc.want {
			t.Errorf("%s: passes %v, want %v", tc.name, got, tc.want)
		}
	}
}

// to is a segment for a port.
func to(port uint16, flags byte) []byte {
	b := segment(flags)
	binary.BigEndian.PutUint16(b[2:], port)
	return b
}

func TestInvitedAreSegmentsForTheOpenPorts(t *testing.T) {
	const syn, ack = 2, 16
	ports := []uint16{80, 8091}
	for _, tc := range []struct {
		name   string
		packet []byte
		want   bool
	}{
		{"SYN for an open port", packet(local4, 6, to(80, syn), nil), true},
		{"data for the other", packet(local4, 6, to(8091, ack), nil), true},
		{"SYN for another port", packet(local4, 6, to(22, syn), nil), false},
		{"port in the wrong octet order", packet(local4, 6, to(80<<8, syn), nil), false},
		{"UDP for an open port", packet(local4, 17, to(80, 0), nil), false},
		{"for another host", packet(netip.MustParseAddr("10.0.0.9"), 6, to(80, syn), nil), false},
		{"fragment", packet(local4, 6, to(80, syn), func(h []byte) { h[6] = 0x20 }), false},
		{"cut", packet(local4, 6, to(80, syn)[:19], nil), false},
		{"empty", nil, false},
	} {
		if got := tunnel.Invited(tc.packet, local4, ports); got != tc.want {
			t.Errorf("%s: passes %v, want %v", tc.name, got, tc.want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add(packet(local4, 6, segment(18), nil))
	f.Add(packet(local6, 58, icmp(1), nil))
	f.Add([]byte{0x4f})
	f.Fuzz(func(t *testing.T, b []byte) {
		if tunnel.Solicited(b, local4) && (b[0]>>4 != 4 || b[9] != 6 && b[9] != 1 || netip.AddrFrom4([4]byte(b[16:20])) != local4) {
			t.Fatalf("passed %x", b)
		}
		if tunnel.Solicited(b, local6) && b[0]>>4 != 6 {
			t.Fatalf("passed %x", b)
		}
	})
}
