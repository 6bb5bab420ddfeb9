package dnsserver

import (
	"encoding/binary"
	"net/netip"
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

// Kinds of answers, as they are limited.
const (
	kindData byte = iota
	kindDenial
	kindRefusal
)

func (a *answer) kind() byte {
	switch {
	case a.rcode() != dns.RcodeSuccess && a.rcode() != dns.RcodeNameError:
		return kindRefusal
	case a.rcode() == dns.RcodeNameError || a.body[6]|a.body[7] == 0:
		return kindDenial
	}
	return kindData
}

func (a *answer) rcode() int { return int(a.body[3]&0xf) | int(a.ttl>>24)<<4 }

// shared is what the goroutines that answer have in common.
type shared struct {
	cache     *cache   // nil: every answer is decided anew
	cookies   *cookies // nil: none are given
	limiter   *limiter // nil: nothing is limited
	slip      int      // every slip-th answer beyond the limit is sent, without data
	nsid      []byte
	keepalive uint16 // what is said of idle connections, in units of 100 ms
	sinks     []*sink
	transfers *transfers // nil: there are none, and TSIG is nothing special
}

// responder turns packets into packets. It belongs to one goroutine.
type responder struct {
	*shared
	*counters

	query   query
	cookie  [serverCookie]byte // for query, where it has one
	asking  asking             // query
	packer  packer             // of the answer's body
	denying denying            // query, where there is a cache
	answer  answer             // to query
	slipped int                // answers left out since the last that was not
}

// respond answers a packet with a packet, or with nil if it must not be
// answered. The answer is in buf where it fits. Nothing is allocated for an
// answer that the cache has.
func (r *responder) respond(buf, packet []byte, client netip.AddrPort, from *view, now time.Time) (out []byte) {
	q := &r.query
	verdict := q.read(packet)
	if verdict == silent {
		return nil
	}
	known := r.sendsCookie() && r.cookies.check(q.edns.cookie, client.Addr(), now, &r.cookie)
	a := r.find(verdict, from, now)
	if r.limiter != nil && r.transport == UDP && !known && !r.limiter.allow(client.Addr(), a.kind(), now) {
		a = r.limited(a)
	}
	if a != nil {
		out = r.finish(buf, a)
		if q.tsig && r.transfers != nil && verdict == readable {
			out = r.authenticate(out, packet, now)
		}
		r.answers[r.typePlace()][rcodePlace(a.rcode())].Add(1)
	}
	if len(r.sinks) > 0 {
		r.observe(r.transport, client, packet, out, now)
	}
	return out
}

// typePlace is where the query that was read is counted.
func (r *responder) typePlace() int {
	if r.query.question == headerOctets {
		return noType
	}
	return typePlace(r.query.qtype())
}

// find returns the answer to the query that was read.
func (r *responder) find(verdict verdict, from *view, now time.Time) *answer {
	if r.cache == nil || verdict != readable {
		a, _ := r.decide(verdict, from.zones)
		return a
	}
	var found bool
	if r.answer, found = r.cache.get(&r.query, from.generation, now); found && r.fits(&r.answer) {
		r.cached.Add(1)
		return &r.answer
	}
	if a := r.denial(from.zones); a != nil {
		return a
	}
	a, keep := r.decide(verdict, from.zones)
	if keep {
		r.cache.put(&r.query, from.generation, now, a)
	}
	return a
}

// decide makes the answer to the query that was read, and tells whether the
// same question will be answered the same by these zones.
func (r *responder) decide(verdict verdict, zones *Zones) (a *answer, keep bool) {
	q := &r.query
	switch verdict {
	case malformed:
		q.edns = edns{}
		return r.pack(r.refuse(&refuseFormat)), false
	case badCookie:
		return r.pack(r.refuse(&refuseCookie)), false
	case cookieOnly:
		return r.pack(begin(r.asking.of(q, maxMessage))), false
	}
	a = r.pack(zones.Answer(r.asking.of(q, maxMessage), r.transport, maxMessage))
	if verdict == readable && r.cache != nil {
		r.keepDenial(a)
	}
	if r.fits(a) {
		// What strangers can make up without end, names that don't exist, is not kept, and
		// neither is that there was no time to sign.
		return a, verdict == readable && a.rcode() == dns.RcodeSuccess && a.body[2]&flagTC == 0
	}
	// Answer counts an OPT with its own options only, also where it will be left out.
	size := r.limit() - r.ownOptions()
	if !q.edns.present {
		size = min(size+optOctets, maxMessage)
	}
	a = r.pack(zones.Answer(r.asking.of(q, uint16(size)), r.transport, size))
	if !r.fits(a) { // Answer counts on the library's compression, which may be better
		a = r.truncate(a)
	}
	return a, false
}

// refuse is the response to a query that [Zones.Answer] need not see.
func (r *responder) refuse(why *refusal) *dns.Msg {
	m := begin(r.asking.of(&r.query, maxMessage))
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

func (r *responder) fits(a *answer) bool { return len(a.body)+r.optSize(a) <= r.limit() }

// pack packs a message and takes its OPT apart.
func (r *responder) pack(m *dns.Msg) *answer {
	a := &r.answer
	*a = answer{}
	if opt := m.IsEdns0(); opt != nil {
		a.ttl, a.options = opt.Hdr.Ttl&0xffffff|uint32(m.Rcode)>>4<<24, packErrors(opt)
	}
	body, err := r.packer.pack(m, r.query.key())
	if err != nil {
		// Can't happen: the zone's records were packed when it was made.
		body = make([]byte, headerOctets)
		body[2], body[3] = flagQR|byte(m.Opcode)<<3, dns.RcodeServerFailure
	}
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
	return r.appendOPT(out, a)
}

// limited is what is sent instead of an answer beyond the limit: nothing, or
// an answer without data and with TC.
func (r *responder) limited(a *answer) *answer {
	if r.slipped++; r.slipped < r.slip {
		r.dropped.Add(1)
		return nil
	}
	r.slipped = 0
	r.truncated.Add(1)
	return r.truncate(a)
}

// truncate is an answer without its records, and with TC.
func (r *responder) truncate(a *answer) *answer {
	body := append(r.packer.out[:0], a.body[:r.query.question]...)
	body[2] |= flagTC
	clear(body[6:headerOctets]) // counts of answers
	r.packer.out, r.answer = body, answer{body: body, ttl: a.ttl}
	return &r.answer
}
