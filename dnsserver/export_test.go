package dnsserver

// Respond is the whole way from packet to packet.
func (zs *Zones) Respond(buf, packet []byte, transport Transport, maxSize int) []byte {
	return zs.respond(buf, packet, transport, maxSize)
}
