package dnsserver

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// headerOctets is the size of a message's header, RFC 1035 section 4.1.1.
const headerOctets = 12

// respond answers a packet with a packet, or with nil if it must not be
// answered: what is too short for a header, and responses. The answer is in buf
// where it fits.
//
// The library's own reader is not used for what strangers send: it takes a
// message whose counts lie, refuses one whose EDNS options it knows better than
// we care to, and builds everything that is then thrown away.
func (zs *Zones) respond(buf, packet []byte, transport Transport, maxSize int) []byte {
	query, ok := parseQuery(packet)
	if query == nil {
		return nil
	}
	var m *dns.Msg
	if ok {
		m = zs.Answer(query, transport, maxSize)
	} else {
		m = begin(query)
		refuseFormat.write(m)
	}
	out, err := m.PackBuffer(buf)
	if err != nil {
		// Can't happen: the zone's records were packed when it was made.
		m = &dns.Msg{MsgHdr: dns.MsgHdr{Id: query.Id, Response: true, Opcode: query.Opcode, Rcode: dns.RcodeServerFailure}}
		if out, err = m.PackBuffer(buf); err != nil {
			return nil
		}
	}
	return out
}

// parseQuery reads a query strictly, up to what an answer depends on: header,
// question and the OPT's fixed fields; of all other records it takes the
// framing. It returns nil for what must not be answered, and false with what
// could be read if the message is malformed. Of opcodes other than QUERY only
// the header is read, for their sections may mean anything.
func parseQuery(packet []byte) (*dns.Msg, bool) {
	if len(packet) < headerOctets || packet[2]&0x80 != 0 {
		return nil, false
	}
	query := &dns.Msg{MsgHdr: dns.MsgHdr{
		Id:               binary.BigEndian.Uint16(packet),
		Opcode:           int(packet[2]>>3) & 0xf,
		RecursionDesired: packet[2]&0x01 != 0,
	}}
	if query.Opcode != dns.OpcodeQuery {
		return query, true
	}
	p := parser{packet: packet, off: headerOctets}
	if binary.BigEndian.Uint16(packet[4:]) != 1 || !p.question(query) {
		return query, false
	}
	opt, ok := p.records(
		binary.BigEndian.Uint16(packet[6:]),
		binary.BigEndian.Uint16(packet[8:]),
		binary.BigEndian.Uint16(packet[10:]),
		query.Question[0].Qtype == dns.TypeIXFR,
	)
	if !ok {
		return query, false
	}
	if opt != nil {
		query.Extra = []dns.RR{opt}
	}
	return query, true
}

// parser walks a message.
type parser struct {
	packet []byte
	off    int
}

// question reads the question, whose name can't be compressed: there is
// nothing before it to point to.
func (p *parser) question(query *dns.Msg) bool {
	begin := p.off
	if compressed, ok := p.skipName(); !ok || compressed || p.off-begin > maxNameOctets || len(p.packet)-p.off < 4 {
		return false
	}
	name, _, err := dns.UnpackDomainName(p.packet, begin)
	if err != nil {
		return false
	}
	query.Question = []dns.Question{{
		Name:   name,
		Qtype:  binary.BigEndian.Uint16(p.packet[p.off:]),
		Qclass: binary.BigEndian.Uint16(p.packet[p.off+2:]),
	}}
	p.off += 4
	return true
}

// skipName moves past a name and tells whether it ended in a compression pointer.
func (p *parser) skipName() (compressed, ok bool) {
	for p.off < len(p.packet) {
		n := int(p.packet[p.off])
		switch {
		case n == 0:
			p.off++
			return false, true
		case n >= 0xc0:
			p.off += 2
			return true, p.off <= len(p.packet)
		case n > maxLabelOctets:
			return false, false
		}
		p.off += 1 + n
	}
	return false, false
}

// records walks the other sections up to the packet's end. A query has no
// answers, and authority records only for IXFR.
func (p *parser) records(answers, authority, additional uint16, transfer bool) (*dns.OPT, bool) {
	if answers > 0 || authority > 1 || authority == 1 && !transfer {
		return nil, false
	}
	if authority == 1 {
		if opt, ok := p.record(); !ok || opt != nil {
			return nil, false
		}
	}
	var found *dns.OPT
	for range additional {
		opt, ok := p.record()
		if !ok || opt != nil && found != nil { // one OPT at most, RFC 6891 section 6.1.1
			return nil, false
		}
		if opt != nil {
			found = opt
		}
	}
	return found, p.off == len(p.packet)
}

// record moves past one record and returns it if it is an OPT.
func (p *parser) record() (*dns.OPT, bool) {
	root := p.off < len(p.packet) && p.packet[p.off] == 0
	if _, ok := p.skipName(); !ok || len(p.packet)-p.off < 10 {
		return nil, false
	}
	fixed := p.packet[p.off : p.off+10]
	p.off += 10
	size := int(binary.BigEndian.Uint16(fixed[8:]))
	if len(p.packet)-p.off < size {
		return nil, false
	}
	data := p.packet[p.off : p.off+size]
	p.off += size
	if binary.BigEndian.Uint16(fixed) != dns.TypeOPT {
		return nil, true
	}
	return &dns.OPT{Hdr: dns.RR_Header{
		Name:   ".",
		Rrtype: dns.TypeOPT,
		Class:  binary.BigEndian.Uint16(fixed[2:]),
		Ttl:    binary.BigEndian.Uint32(fixed[4:]),
	}}, root && wellFormedOptions(data)
}

// wellFormedOptions tells whether the options fill the OPT's data exactly.
// What they say is ignored (RFC 6891 section 6.1.2).
func wellFormedOptions(data []byte) bool {
	for len(data) > 0 {
		if len(data) < 4 {
			return false
		}
		size := 4 + int(binary.BigEndian.Uint16(data[2:]))
		if len(data) < size {
			return false
		}
		data = data[size:]
	}
	return true
}
