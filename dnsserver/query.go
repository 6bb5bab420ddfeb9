package dnsserver

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// headerOctets is the size of a message's header, RFC 1035 section 4.1.1.
const headerOctets = 12

// verdict is what a packet is, as far as it was read.
type verdict int

const (
	silent     verdict = iota // not to be answered: too short for a header, or itself a response
	malformed                 // to be answered FORMERR
	otherCode                 // an opcode other than QUERY: its sections may mean anything and were not read
	badCookie                 // a query, but for the length of its cookie
	cookieOnly                // asks for a cookie and nothing else, RFC 7873 section 5.4
	readable                  // a query
)

// query is what an answer depends on: header, question and EDNS. It is read
// strictly and without the library, whose reader takes a message whose counts
// lie, refuses one whose EDNS options it knows better than we care to, and
// builds everything that is then thrown away. It is reused from packet to
// packet.
type query struct {
	packet []byte
	opcode int
	// question is where the question ends in the packet: headerOctets if there
	// is none, or none that can be read.
	question int
	// lower holds the question, name, type and class, with the name in lower case.
	lower [maxNameOctets + 4]byte
	edns  edns
	tsig  bool // there is a TSIG record; what it is worth was not looked at
}

// typeAndClass is what follows the name of a question.
const typeAndClass = 4

// Flags of the third octet of a header, RFC 1035 section 4.1.1. Only RD is
// copied to the response (AD and CD stay clear by RFC 4035 section 3.1.6).
const (
	flagQR = 0x80
	flagAA = 0x04
	flagTC = 0x02
	flagRD = 0x01
)

// Flags of an OPT: DO (RFC 3225) and CO (RFC 9824) are those that answers depend on.
const (
	flagDO    = 0x8000
	ednsFlags = flagDO | 0x4000
)

func (q *query) id() uint16     { return binary.BigEndian.Uint16(q.packet) }
func (q *query) recurse() bool  { return q.packet[2]&flagRD != 0 && q.opcode == dns.OpcodeQuery }
func (q *query) asked() []byte  { return q.packet[headerOctets:q.question] }
func (q *query) key() []byte    { return q.lower[:q.question-headerOctets] }
func (q *query) name() []byte   { return q.key()[:len(q.key())-typeAndClass] }
func (q *query) qtype() uint16  { return binary.BigEndian.Uint16(q.packet[q.question-4:]) }
func (q *query) qclass() uint16 { return binary.BigEndian.Uint16(q.packet[q.question-2:]) }

// read reads a packet.
func (q *query) read(packet []byte) verdict {
	q.packet, q.question, q.edns, q.tsig = packet, headerOctets, edns{}, false
	if len(packet) < headerOctets || packet[2]&flagQR != 0 {
		return silent
	}
	q.opcode = int(packet[2]>>3) & 0xf
	if q.opcode != dns.OpcodeQuery {
		return otherCode
	}
	p := parser{packet: packet, off: headerOctets}
	questions := binary.BigEndian.Uint16(packet[4:])
	if questions > 1 || questions == 1 && !p.question(q) || !p.records(q) {
		return malformed
	}
	switch {
	case q.edns.badCookie:
		return badCookie
	case questions == 1:
		return readable
	case q.edns.cookie != nil:
		return cookieOnly
	}
	return malformed
}

// asking is a query in the form that [Zones.Answer] takes, in room that is
// reused from query to query.
type asking struct {
	msg      dns.Msg
	question [1]dns.Question
	opt      dns.OPT
	extra    [1]dns.RR
}

// of makes the query that was read: in lower case, so that an answer is the same
// for every case of the question, and with an OPT.
func (a *asking) of(q *query, size uint16) *dns.Msg {
	a.msg = dns.Msg{MsgHdr: dns.MsgHdr{Opcode: q.opcode}}
	if q.question > headerOctets {
		name, _, _ := dns.UnpackDomainName(q.lower[:], 0) // was read already
		a.question[0] = dns.Question{Name: name, Qtype: q.qtype(), Qclass: q.qclass()}
		a.msg.Question = a.question[:]
	}
	a.opt = dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT, Class: size}}
	a.opt.Hdr.Ttl = uint32(q.edns.version)<<16 | uint32(q.edns.flags)
	a.extra[0] = &a.opt
	a.msg.Extra = a.extra[:]
	return &a.msg
}

// parser walks a message.
type parser struct {
	packet []byte
	off    int
}

// question reads the question, whose name can't be compressed: there is
// nothing before it to point to.
func (p *parser) question(q *query) bool {
	compressed, ok := p.skipName()
	if !ok || compressed || p.off-headerOctets > maxNameOctets || len(p.packet)-p.off < typeAndClass {
		return false
	}
	name := p.packet[headerOctets:p.off]
	p.off += typeAndClass
	q.question = p.off
	lower(q.lower[:], name)
	copy(q.lower[len(name):], p.packet[p.off-typeAndClass:p.off])
	return true
}

// lower copies a name in wire form with ASCII letters in lower case (RFC 4343
// section 3). A length octet is at most 63, below 'A', so it is never taken for
// a letter. Eight octets go at once: an octet is upper case if it has no high
// bit, and adding 0x3f sets that bit but adding 0x25 does not.
func lower(to, name []byte) {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	for ; len(name) >= 8; name, to = name[8:], to[8:] {
		octets := binary.LittleEndian.Uint64(name)
		low := octets &^ uint64(high)
		upper := (low + (0x80-'A')*ones) &^ (low + (0x7f-'Z')*ones) & high &^ octets
		binary.LittleEndian.PutUint64(to, octets|upper>>2)
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		to[i] = c
	}
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
// answers, and authority records only for IXFR (RFC 1995 section 3).
func (p *parser) records(q *query) bool {
	answers, authority := binary.BigEndian.Uint16(p.packet[6:]), binary.BigEndian.Uint16(p.packet[8:])
	transfer := q.question > headerOctets && q.qtype() == dns.TypeIXFR
	if answers > 0 || authority > 1 || authority == 1 && !transfer {
		return false
	}
	if authority == 1 && (!p.record(q) || q.edns.present) {
		return false
	}
	for range binary.BigEndian.Uint16(p.packet[10:]) {
		if !p.record(q) {
			return false
		}
	}
	return p.off == len(p.packet)
}

// record moves past one record and reads it if it is an OPT.
func (p *parser) record(q *query) bool {
	root := p.off < len(p.packet) && p.packet[p.off] == 0
	if _, ok := p.skipName(); !ok || len(p.packet)-p.off < 10 {
		return false
	}
	fixed := p.packet[p.off : p.off+10]
	p.off += 10
	size := int(binary.BigEndian.Uint16(fixed[8:]))
	if len(p.packet)-p.off < size {
		return false
	}
	data := p.packet[p.off : p.off+size]
	p.off += size
	if rrtype := binary.BigEndian.Uint16(fixed); rrtype != dns.TypeOPT {
		q.tsig = q.tsig || rrtype == dns.TypeTSIG
		return true
	}
	return q.edns.read(root, fixed, data)
}
