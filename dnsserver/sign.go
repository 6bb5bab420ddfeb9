package dnsserver

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// Times of signatures. All nodes sign the same bytes, so these are no
// configuration of one node.
const (
	// ResignInterval is how often a zone has to be made anew even if nothing
	// changed, so that its signatures are renewed.
	ResignInterval = time.Hour

	renewal  = 24 * time.Hour      // a signature is made anew that often, each at its own hour
	validity = 14 * 24 * time.Hour // of a signature from when it is made
	skew     = 3 * time.Hour       // that clocks of validators may be behind
)

// Denial is how a signed zone proves that a name does not exist.
type Denial string

const (
	// DenialBlock signs, for a whole span of names in which nothing exists, one
	// NSEC record, and says NXDOMAIN (RFC 4470 with wider spans).
	DenialBlock Denial = "block"
	// DenialCompact signs each name by itself and tells nothing of others
	// (RFC 9824).
	DenialCompact Denial = "compact"
)

// Signing makes a zone signed (RFC 4033 to 4035).
type Signing struct {
	// Signer makes the signatures. Required.
	Signer *Signer
	// Keys are the zone's keys with their times.
	Keys Keys
	// Denial is how absence is proved. Empty: DenialBlock.
	Denial Denial
	// At is when the zone is made. Signatures and keys are those of the last
	// full ResignInterval before, so that all nodes say the same.
	At time.Time
}

// signing is how a zone is signed.
type signing struct {
	signer     *Signer
	denial     Denial
	at         int64 // seconds since 1970, whole resign intervals
	keys, data []*Key
	hostDepth  int // how many octets of a host's label blocks may tell
}

// sign prepares signing and adds the records that a signed zone has at its origin.
func (b *builder) sign() {
	s := b.config.Signing
	if s == nil {
		return
	}
	sg := &signing{signer: s.Signer, denial: s.Denial, at: s.At.Truncate(ResignInterval).Unix()}
	if sg.denial == "" {
		sg.denial = DenialBlock
	}
	at := s.At.Truncate(ResignInterval)
	published := s.Keys.published(at)
	for _, k := range published {
		if k.role.signsKeys() {
			sg.keys = append(sg.keys, k)
		}
	}
	sg.data = s.Keys.signing(at)
	if err := b.checkSigning(sg); err != nil {
		b.fault("Signing", err)
		return
	}
	for _, k := range published {
		b.add(k.dnskey(b.zone.origin, keyTTL))
	}
	for _, k := range s.Keys.wanted(at) { // RFC 7344 section 4.1
		b.add(k.dnskey(b.zone.origin, keyTTL).ToCDNSKEY())
		b.add(k.ds(b.zone.origin, keyTTL).ToCDS())
	}
	sg.hostDepth = hostDepth(b.config.Labels.Len())
	b.zone.signing = sg
	b.zone.denials = b.zone.newDenials()
}

func (b *builder) checkSigning(s *signing) error {
	switch {
	case s.signer == nil:
		return errors.New("Signer is missing")
	case s.denial != DenialBlock && s.denial != DenialCompact:
		return fmt.Errorf("Denial: %.20q is neither %q nor %q", s.denial, DenialBlock, DenialCompact)
	case b.config.Signing.At.IsZero():
		return errors.New("At is missing")
	case len(s.keys) == 0 || len(s.data) == 0:
		return errors.New("Keys: none signs now")
	case s.denial == DenialBlock && b.config.Hosts != nil && b.config.Labels == nil:
		return errors.New("Labels are missing: blocks need the hosts in order")
	}
	return nil
}

// times returns the validity period of the signature over one set: each has its
// own hour of the day, so that they are not all made anew at once.
func (s *signing) times(owner []byte, rrtype uint16) (inception, expiration uint32) {
	h := fnv.New32a()
	_, _ = h.Write(owner) // never fails
	_, _ = h.Write([]byte{byte(rrtype >> 8), byte(rrtype)})
	interval := int64(ResignInterval / time.Second)
	period := int64(renewal / time.Second)
	phase := int64(h.Sum32()) % (period / interval) * interval
	made := (s.at-phase)/period*period + phase
	return uint32(made - int64(skew/time.Second)), uint32(made + int64(validity/time.Second))
}

// signMessage puts the signature behind every set of the answer, false if that
// is beyond the budget.
func (z *Zone) signMessage(m *dns.Msg, wait bool) bool {
	p := forExisting
	if len(m.Answer) == 0 {
		p = forMissing
	}
	for _, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
		signed, ok := z.signSection(*section, p, wait)
		if !ok {
			return false
		}
		*section = signed
	}
	return true
}

func (z *Zone) signSection(section []dns.RR, p purse, wait bool) ([]dns.RR, bool) {
	if len(section) == 0 {
		return section, true
	}
	out := make([]dns.RR, 0, 2*len(section))
	for len(section) > 0 {
		n := 1
		for n < len(section) && sameSet(section[0].Header(), section[n].Header()) {
			n++
		}
		out = append(out, section[:n]...)
		if t := section[0].Header().Rrtype; t != dns.TypeRRSIG && t != dns.TypeOPT {
			signatures, ok := z.signatures(section[:n], p, wait)
			if !ok {
				return nil, false
			}
			out = append(out, signatures...)
		}
		section = section[n:]
	}
	return out, true
}

func sameSet(a, b *dns.RR_Header) bool { return a.Rrtype == b.Rrtype && a.Name == b.Name }

// signatures returns the signatures over one set.
func (z *Zone) signatures(rrs []dns.RR, p purse, wait bool) (out []dns.RR, ok bool) {
	h := rrs[0].Header()
	var buf [maxNameOctets]byte
	owner, ok := wireName(&buf, h.Name)
	if !ok {
		return nil, false
	}
	keys := z.signing.data
	if h.Rrtype == dns.TypeDNSKEY || h.Rrtype == dns.TypeCDS || h.Rrtype == dns.TypeCDNSKEY {
		keys = z.signing.keys
	}
	inception, expiration := z.signing.times(owner, h.Rrtype)
	for _, k := range keys {
		rr := &dns.RRSIG{
			Hdr:         dns.RR_Header{Name: h.Name, Rrtype: dns.TypeRRSIG, Class: dns.ClassINET, Ttl: h.Ttl},
			TypeCovered: h.Rrtype, Algorithm: uint8(k.algorithm), Labels: uint8(labels(owner)), OrigTtl: h.Ttl,
			Inception: inception, Expiration: expiration, KeyTag: k.tag, SignerName: z.origin,
		}
		message, ok := z.message(rr, owner, rrs)
		if !ok {
			return nil, false
		}
		signature, ok := z.signing.signer.sign(k, message, p, wait)
		if !ok {
			return nil, false
		}
		rr.Signature = base64.StdEncoding.EncodeToString(signature[:])
		out = append(out, rr)
	}
	return out, true
}

func labels(wire []byte) (n int) {
	for off := 0; wire[off] != 0; off += 1 + int(wire[off]) {
		n++
	}
	return n
}

// message returns what is signed: the signature's own fields and the set in
// canonical form and order (RFC 4034 section 3.1.8.1 and 6).
func (z *Zone) message(rr *dns.RRSIG, owner []byte, rrs []dns.RR) ([]byte, bool) {
	b := make([]byte, 0, 512)
	b = binary.BigEndian.AppendUint16(b, rr.TypeCovered)
	b = append(b, rr.Algorithm, rr.Labels)
	b = binary.BigEndian.AppendUint32(b, rr.OrigTtl)
	b = binary.BigEndian.AppendUint32(b, rr.Expiration)
	b = binary.BigEndian.AppendUint32(b, rr.Inception)
	b = binary.BigEndian.AppendUint16(b, rr.KeyTag)
	b = append(b, z.wire...)
	datas := make([][]byte, len(rrs))
	for i, rr := range rrs {
		var ok bool
		if datas[i], ok = canonicalData(rr); !ok {
			return nil, false
		}
	}
	slices.SortFunc(datas, bytes.Compare)
	for _, data := range datas {
		b = append(b, owner...)
		b = binary.BigEndian.AppendUint16(b, rr.TypeCovered)
		b = binary.BigEndian.AppendUint16(b, dns.ClassINET)
		b = binary.BigEndian.AppendUint32(b, rr.OrigTtl)
		b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
		b = append(b, data...)
	}
	return b, true
}

// canonicalData packs a record's data with the names in it in lower case, in
// those types where that is so (RFC 4034 section 6.2, RFC 6840 section 5.1).
func canonicalData(rr dns.RR) ([]byte, bool) {
	const fixed = 11 // the root as owner, type, class, TTL, length
	switch rr := rr.(type) {
	case *dns.A:
		return rr.A.To4(), len(rr.A.To4()) == 4
	case *dns.AAAA:
		return rr.AAAA, len(rr.AAAA) == 16
	}
	c := dns.Copy(rr)
	c.Header().Name = "."
	switch c := c.(type) {
	case *dns.NS:
		c.Ns = dns.CanonicalName(c.Ns)
	case *dns.CNAME:
		c.Target = dns.CanonicalName(c.Target)
	case *dns.SOA:
		c.Ns, c.Mbox = dns.CanonicalName(c.Ns), dns.CanonicalName(c.Mbox)
	case *dns.PTR:
		c.Ptr = dns.CanonicalName(c.Ptr)
	case *dns.MX:
		c.Mx = dns.CanonicalName(c.Mx)
	case *dns.SRV:
		c.Target = dns.CanonicalName(c.Target)
	}
	b := make([]byte, dns.Len(c)+1)
	n, err := dns.PackRR(c, b, 0, nil, false)
	if err != nil || n < fixed {
		return nil, false
	}
	return b[fixed:n], true
}
