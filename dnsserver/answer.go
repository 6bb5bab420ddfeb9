package dnsserver

import (
	"github.com/miekg/dns"
)

// Transport is what a query came over.
type Transport string

// Transports. A stream carries messages of any size, so nothing is truncated on it.
const (
	UDP   Transport = "udp"
	TCP   Transport = "tcp"
	TLS   Transport = "dot" // RFC 7858
	HTTPS Transport = "doh" // RFC 8484
)

// MaxUDPPayload is the largest answer over UDP: it fits every path without
// fragments (RFC 9715 section 3.1).
const MaxUDPPayload = 1232

// Zones is an immutable set of zones, safe for concurrent use. The nil *Zones
// is the state before the first set: it answers SERVFAIL with the extended
// error Not Ready, for a name that is missing too early would be remembered as
// missing.
type Zones struct {
	byOrigin map[string]*Zone // origin in wire form
	longest  int              // octets of the longest origin
}

// NewZones makes a set of zones. Zones may lie below each other: a name
// belongs to the one with the most labels. Of zones with one origin the last
// one counts. With no zones at all everything is refused.
func NewZones(zones ...*Zone) *Zones {
	zs := &Zones{byOrigin: make(map[string]*Zone, len(zones))}
	for _, z := range zones {
		zs.byOrigin[z.wire] = z
		zs.longest = max(zs.longest, len(z.wire))
	}
	return zs
}

// find returns the zone of a name in wire form and the labels above its origin.
func (zs *Zones) find(wire []byte) (*Zone, []byte) {
	for off := 0; off < len(wire); off += 1 + int(wire[off]) {
		if len(wire)-off > zs.longest {
			continue
		}
		if z := zs.byOrigin[string(wire[off:])]; z != nil {
			return z, wire[:off]
		}
	}
	return nil, nil
}

// Answer decides what a query is answered. It is a pure function of the zones
// and its arguments. It returns nil for a message that must not be answered:
// one that is itself a response. maxSize is the most octets that the transport
// carries; over UDP the query's EDNS payload size limits the answer further, to
// 512 octets without EDNS.
//
// The response shares records and the question with the zones and the query:
// it is only to be read and packed.
func (zs *Zones) Answer(query *dns.Msg, transport Transport, maxSize int) *dns.Msg {
	if query.Response {
		return nil
	}
	m := begin(query)
	zone, r := zs.resolve(m, query)
	if r != nil {
		r.write(m)
	}
	if zone != nil && zone.signing != nil && wantsProof(m) && !zone.signMessage(m, transport != UDP) {
		truncate(m) // never unsigned: who is in earnest comes again, over TCP
	}
	fit(m, sizeLimit(query, transport, maxSize))
	return m
}

// wantsProof tells whether the client asked for DNSSEC records (RFC 3225).
func wantsProof(m *dns.Msg) bool {
	opt := m.IsEdns0()
	return opt != nil && opt.Do()
}

// truncate leaves nothing of an answer but that there is one (RFC 2181 section 9).
func truncate(m *dns.Msg) {
	m.Truncated, m.Answer, m.Ns, m.Rcode = true, nil, nil, dns.RcodeSuccess
	if opt := m.IsEdns0(); opt != nil {
		m.Extra = []dns.RR{opt}
	} else {
		m.Extra = nil
	}
}

// begin makes the response's header, question and OPT. Only RD is copied from
// the query's flags (RFC 1035 section 4.1.1; AD and CD stay clear by RFC 4035
// section 3.1.6).
func begin(query *dns.Msg) *dns.Msg {
	m := &dns.Msg{Compress: true}
	m.Id, m.Response, m.Opcode = query.Id, true, query.Opcode
	m.RecursionDesired = query.RecursionDesired && query.Opcode == dns.OpcodeQuery
	if len(query.Question) == 1 {
		m.Question = query.Question
	}
	if asked := query.IsEdns0(); asked != nil {
		opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT, Class: MaxUDPPayload}}
		opt.SetDo(asked.Do()) // RFC 3225 section 3
		opt.SetCo(asked.Co()) // RFC 9824 section 5.1
		m.Extra = []dns.RR{opt}
	}
	return m
}

// resolve writes the answer into m, and returns the zone that it is from, or
// why there is none.
func (zs *Zones) resolve(m, query *dns.Msg) (*Zone, *refusal) {
	if r := refuseMessage(query); r != nil {
		return nil, r
	}
	question := query.Question[0]
	var buf [maxNameOctets]byte
	wire, ok := wireName(&buf, question.Name)
	if !ok {
		return nil, &refuseName
	}
	if r := refuseQuestion(question); r != nil {
		return nil, r
	}
	if zs == nil {
		return nil, &refuseNotReady
	}
	zone, rel := zs.find(wire)
	if zone == nil {
		return nil, &refuseZone
	}
	zone.answer(m, question, rel)
	return zone, nil
}

// answer writes the authoritative answer to a question about a name of the zone.
func (z *Zone) answer(m *dns.Msg, question dns.Question, rel []byte) {
	m.Authoritative = true
	owner := question.Name
	var buf [maxNameOctets]byte
	for range maxAliases + 1 {
		static, host := z.lookup(rel)
		if static == nil && host == nil {
			m.Rcode = dns.RcodeNameError // of the last name, RFC 6604 section 3
			m.Ns = []dns.RR{z.deniedFor(rel)}
			if z.signing != nil && wantsProof(m) {
				z.proveNoName(m, rel, m.IsEdns0().Co())
			}
			return
		}
		alias := static.set(dns.TypeCNAME)
		if alias == nil || question.Qtype == dns.TypeCNAME || question.Qtype == dns.TypeANY {
			z.data(m, owner, question.Qtype, rel, static, host)
			return
		}
		m.Answer = append(m.Answer, withOwner(alias[0], owner))
		owner = alias[0].(*dns.CNAME).Target
		wire, ok := wireName(&buf, owner)
		if !ok {
			return
		}
		var inside bool
		if rel, inside = relative(wire, z.wire); !inside {
			return
		}
	}
}

// data answers at a name that exists: with the records of the type, or with
// NODATA (RFC 2308 section 2.2).
func (z *Zone) data(m *dns.Msg, owner string, qtype uint16, rel []byte, static, host *node) {
	switch {
	case qtype == dns.TypeANY:
		m.Answer = append(m.Answer, z.any(owner, static))
		return
	case z.signing != nil && (qtype == dns.TypeNSEC || qtype == dns.TypeRRSIG):
		z.proof(m, owner, qtype, rel, static, host)
		return
	}
	rrs := static.set(qtype)
	if rrs == nil {
		rrs = host.set(qtype)
	}
	if rrs == nil {
		m.Ns = []dns.RR{z.deniedFor(rel)}
		if z.signing != nil && wantsProof(m) {
			z.proveNoData(m, rel, static, host)
		}
		return
	}
	for _, rr := range rrs {
		m.Answer = append(m.Answer, withOwner(rr, owner))
	}
	if qtype == dns.TypeNS {
		z.glue(m, rrs)
	}
}

// any answers ANY with one small record: the CNAME, which can't have company,
// or HINFO (RFC 8482 sections 4.1 and 4.2).
func (z *Zone) any(owner string, static *node) dns.RR {
	if alias := static.set(dns.TypeCNAME); alias != nil {
		return withOwner(alias[0], owner)
	}
	ttl := z.negative.Header().Ttl
	return &dns.HINFO{
		Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeHINFO, Class: dns.ClassINET, Ttl: ttl},
		Cpu: "RFC8482",
	}
}

// proof answers those who ask for the records of DNSSEC themselves. Of the
// signatures at a name they are given one, as of ANY.
func (z *Zone) proof(m *dns.Msg, owner string, qtype uint16, rel []byte, static, host *node) {
	nsec := withOwner(z.nsecAt(rel, static, host), owner)
	if qtype == dns.TypeNSEC {
		m.Answer = append(m.Answer, nsec)
		return
	}
	signatures, ok := z.signatures([]dns.RR{nsec}, forExisting, false)
	if !ok {
		truncate(m)
		return
	}
	m.Answer = append(m.Answer, signatures...)
}

// deniedFor returns the SOA that every negative answer carries (RFC 2308
// section 2): how long a name is denied.
func (z *Zone) deniedFor(rel []byte) dns.RR {
	if len(rel) >= len(acmeWire) && string(rel[:len(acmeWire)]) == acmeWire {
		return z.challenge
	}
	return z.negative
}

// glue adds the addresses of name servers inside the zone.
func (z *Zone) glue(m *dns.Msg, servers []dns.RR) {
	var buf [maxNameOctets]byte
	for _, server := range servers {
		wire, ok := wireName(&buf, server.(*dns.NS).Ns)
		if !ok {
			continue
		}
		if rel, inside := relative(wire, z.wire); inside {
			n := z.nodes[string(rel)]
			m.Extra = append(m.Extra, n.set(dns.TypeA)...)
			m.Extra = append(m.Extra, n.set(dns.TypeAAAA)...)
		}
	}
}

// withOwner returns the record with its owner as the question spells it
// (RFC 4343 section 4.1); so the owner also compresses to the question.
func withOwner(rr dns.RR, owner string) dns.RR {
	if rr.Header().Name == owner {
		return rr
	}
	switch rr := rr.(type) {
	case *dns.A:
		renamed := *rr
		renamed.Hdr.Name = owner
		return &renamed
	case *dns.AAAA:
		renamed := *rr
		renamed.Hdr.Name = owner
		return &renamed
	}
	renamed := dns.Copy(rr)
	renamed.Header().Name = owner
	return renamed
}

// sizeLimit returns the most octets that the answer may have (RFC 6891 section 6.2.3).
func sizeLimit(query *dns.Msg, transport Transport, maxSize int) int {
	if transport != UDP {
		return maxSize
	}
	size := dns.MinMsgSize
	if opt := query.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
	}
	return min(size, maxSize)
}

// fit makes the response fit. Glue is left out silently, for it is only a
// help; a response whose sections don't fit is sent empty with TC, for half an
// answer must not be used (RFC 2181 section 9).
func fit(m *dns.Msg, size int) {
	m.Compress = false
	small := m.Len() <= size // without computing the compression
	m.Compress = true
	if small || m.Len() <= size {
		return
	}
	if opt := m.IsEdns0(); opt != nil {
		m.Extra = []dns.RR{opt}
	} else {
		m.Extra = nil
	}
	if m.Len() > size {
		rcode := m.Rcode
		truncate(m)
		m.Rcode = rcode
	}
}
