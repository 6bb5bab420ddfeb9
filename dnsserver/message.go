package dnsserver

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// answer is a packed response without what depends on the single query: id,
// RD, the case of the question, EDNS. It is not changed once made.
type answer struct {
	// body is header, question in lower case, and the records but the OPT.
	body []byte
	// ttl is the TTL field of the OPT: extended rcode, version and flags.
	ttl uint32
	// options is the OPT's data: extended errors.
	options []byte
}

func (a *answer) rcode() int { return int(a.body[3]&0xf) | int(a.ttl>>24)<<4 }

// responder turns packets into packets. It belongs to one goroutine.
type responder struct {
	transport Transport
	cache     *cache // nil: every answer is decided anew
	query     query
	answer    answer // to query, where the cache does not have it
	scratch   []byte // its body
}

// respond answers a packet with a packet, or with nil if it must not be
// answered. The answer is in buf where it fits. Nothing is allocated for an
// answer that the cache has.
func (r *responder) respond(buf, packet []byte, from *view, now time.Time) []byte {
	q := &r.query
	verdict := q.read(packet)
	switch verdict {
	case silent:
		return nil
	case readable:
		if r.cache != nil {
			if a := r.cache.get(q, from.generation, now); a != nil && r.fits(a) {
				return r.finish(buf, a)
			}
		}
	}
	a, keep := r.decide(verdict, from.zones)
	if keep && r.cache != nil {
		r.cache.put(q, from.generation, now, a)
	}
	return r.finish(buf, a)
}

// decide makes the answer to the query that was read, and tells whether the
// same question will be answered the same by these zones.
func (r *responder) decide(verdict verdict, zones *Zones) (a *answer, keep bool) {
	q := &r.query
	if verdict == malformed {
		q.edns = edns{}
		return r.pack(refuse(q, &refuseFormat)), false
	}
	a = r.pack(zones.Answer(q.message(maxMessage), r.transport, maxMessage))
	if r.fits(a) {
		// What strangers can make up without end, names that don't exist, is not kept.
		return a, verdict == readable && a.rcode() == dns.RcodeSuccess && len(a.body) <= MaxUDPPayload
	}
	// The OPT is counted by Answer, but left out for those who do not speak EDNS.
	size := r.limit()
	if !q.edns.present {
		size = min(size+optOctets, maxMessage)
	}
	return r.pack(zones.Answer(q.message(uint16(size)), r.transport, size)), false
}

// refuse is the response to a query that [Zones.Answer] need not see.
func refuse(q *query, why *refusal) *dns.Msg {
	m := begin(q.message(maxMessage))
	why.write(m)
	return m
}

// limit is the most octets that the answer may have (RFC 6891 section 6.2.3).
func (r *responder) limit() int {
	if r.transport != UDP {
		return maxMessage
	}
	if !r.query.edns.present {
		return dns.MinMsgSize
	}
	return min(max(dns.MinMsgSize, int(r.query.edns.size)), MaxUDPPayload)
}

// optOctets is the size of an OPT without options.
const optOctets = 11

func (r *responder) fits(a *answer) bool {
	size := len(a.body)
	if r.query.edns.present {
		size += optOctets + len(a.options)
	}
	return size <= r.limit()
}

// pack packs a message and takes its OPT apart.
func (r *responder) pack(m *dns.Msg) *answer {
	a := &r.answer
	if opt := m.IsEdns0(); opt != nil {
		a.ttl, a.options = opt.Hdr.Ttl&0xffffff|uint32(m.Rcode)>>4<<24, packErrors(opt)
	}
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	m.Rcode &= 0xf
	body, err := m.PackBuffer(r.scratch)
	if err != nil {
		// Can't happen: the zone's records were packed when it was made.
		body = make([]byte, headerOctets)
		body[2], body[3] = flagQR|byte(m.Opcode)<<3, dns.RcodeServerFailure
	}
	r.scratch = body[:cap(body)]
	a.body = body
	return a
}

// packErrors packs the extended errors of an OPT (RFC 8914 section 2).
func packErrors(opt *dns.OPT) (out []byte) {
	for _, option := range opt.Option {
		if e, ok := option.(*dns.EDNS0_EDE); ok {
			out = binary.BigEndian.AppendUint16(out, dns.EDNS0EDE)
			out = binary.BigEndian.AppendUint16(out, uint16(2+len(e.ExtraText)))
			out = binary.BigEndian.AppendUint16(out, e.InfoCode)
			out = append(out, e.ExtraText...)
		}
	}
	return out
}

// finish makes an answer the response to the query that was read: its id, its
// RD, its question octet for octet, and EDNS in kind.
func (r *responder) finish(buf []byte, a *answer) []byte {
	q := &r.query
	out := append(buf[:0], a.body...)
	out[0], out[1] = q.packet[0], q.packet[1]
	if q.recurse() {
		out[2] |= flagRD
	}
	if out[5] == 1 { // a question
		copy(out[headerOctets:], q.asked())
	}
	if !q.edns.present {
		return out
	}
	binary.BigEndian.PutUint16(out[10:], binary.BigEndian.Uint16(out[10:])+1)
	out = append(out, 0, 0, byte(dns.TypeOPT), MaxUDPPayload>>8, MaxUDPPayload&0xff)
	out = binary.BigEndian.AppendUint32(out, a.ttl)
	out = binary.BigEndian.AppendUint16(out, uint16(len(a.options)))
	return append(out, a.options...)
}
