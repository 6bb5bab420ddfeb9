package proxy

import (
	"encoding/binary"
	"net/netip"
)

// proxySignature begins a PROXY protocol header of version 2 (HAProxy's proxy-protocol.txt section 2.2).
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeader is a PROXY protocol version 2 header for a TCP connection from client to local: what dstack 0.6 gateway/src/pp.rs sends.
// Addresses of different families are written as IPv6, the IPv4 one mapped.
func proxyHeader(client, local netip.AddrPort) []byte {
	from, to := client.Addr().Unmap(), local.Addr().Unmap()
	h := append(make([]byte, 0, 52), proxySignature...)
	switch {
	case !from.IsValid() || !to.IsValid():
		return append(h, 0x20, 0, 0, 0) // LOCAL: no addresses
	case from.Is4() && to.Is4():
		h = append(h, 0x21, 0x11, 0, 12)
		h = append(h, from.AsSlice()...)
		h = append(h, to.AsSlice()...)
	default:
		h = append(h, 0x21, 0x21, 0, 36)
		a, b := from.As16(), to.As16()
		h = append(h, a[:]...)
		h = append(h, b[:]...)
	}
	h = binary.BigEndian.AppendUint16(h, client.Port())
	return binary.BigEndian.AppendUint16(h, local.Port())
}
