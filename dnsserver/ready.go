package dnsserver

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/miekg/dns"
)

// Sizes of the ready denials of a zone. Full of ordinary ones they take
// 65 MB. Places come in shards, made when they are first needed, so that a new
// zone costs none.
const (
	readyShards = 64
	readySets   = 256
	readyWays   = 4
	maxReady    = 1024 // octets of an authority section
)

// denials keeps the signed authority sections of a zone's denials, packed, by
// the block of names that they deny. A stranger's names never end, and blocks
// do: so this is for names that do not exist what [cache] is for those that do.
// It goes with its zone. Reading and writing take no lock.
type denials struct {
	seed   maphash.Seed
	named  [2][]byte // names in the SOA, as far as they are below the origin
	shards [readyShards]atomic.Pointer[readyShard]
}

type readyShard [readySets][readyWays]atomic.Pointer[ready]

// ready is the authority section that all names of one block share.
type ready struct {
	hash      uint64
	key       []byte
	authority []byte
	records   uint16
	pointers  []pointer
}

// pointer is a name's compression: where it stands in the section, and how many
// octets before the end of the question's name it points to.
type pointer struct{ at, back uint16 }

// newDenials makes the place for a zone's denials; nil if they have no blocks.
func (z *Zone) newDenials() *denials {
	if z.signing == nil || z.signing.denial != DenialBlock {
		return nil
	}
	d := &denials{seed: maphash.MakeSeed()}
	soa := z.negative.(*dns.SOA)
	for i, name := range []string{soa.Ns, soa.Mbox} {
		var buf [maxNameOctets]byte
		if wire, ok := wireName(&buf, name); ok {
			rel, _ := relative(wire, z.wire)
			d.named[i] = bytes.Clone(rel)
		}
	}
	return d
}

// denying is a denial that is wanted: of which zone, and what it depends on.
type denying struct {
	in   *denials // nil: there is none to look for or to keep
	hash uint64
	key  []byte
	// common is how many octets at the end of the question's name every name of
	// the block has.
	common int
}

// of finds what the denial of a query's name depends on, if the name does not
// exist and lies in a block with others.
func (d *denying) of(q *query, zones *Zones) {
	d.in = nil
	if zones == nil || q.edns.version != 0 || q.edns.flags&flagDO == 0 ||
		refuseQuestion(dns.Question{Qtype: q.qtype(), Qclass: q.qclass()}) != nil {
		return
	}
	z, rel := zones.find(q.name())
	if z == nil || z.denials == nil {
		return
	}
	if static, host := z.lookup(rel); static != nil || host != nil {
		return
	}
	encloser, label := z.closestEncloser(rel)
	s, shared := z.spanOf(encloser, label)
	if !shared || z.denials.names(rel[len(rel)-len(encloser)-1-len(label):]) {
		return
	}
	d.in, d.common = z.denials, len(encloser)+len(z.wire)
	d.key = append(d.key[:0], z.form(rel), byte(len(s.owner)), byte(len(s.next)))
	d.key = append(append(append(d.key, s.owner...), s.next...), encloser...)
	d.hash = maphash.Bytes(d.in.seed, d.key)
}

// names tells whether the SOA of an answer at or below a name could be
// compressed to that name, which others of its block don't have.
func (d *denials) names(rel []byte) bool {
	return bytes.HasSuffix(d.named[0], rel) || bytes.HasSuffix(d.named[1], rel)
}

// form tells answers apart by what they take from the name besides its block:
// the TTL, and whether there is anything to compress to.
func (z *Zone) form(rel []byte) (form byte) {
	if z.deniedFor(rel) == z.challenge {
		form = 1
	}
	for off := 0; off < len(rel); off += 1 + int(rel[off]) {
		if slices.ContainsFunc(rel[off+1:off+1+int(rel[off])], escaped) {
			return form | 2
		}
	}
	return form
}

// escaped tells whether an octet of a label is escaped in text.
func escaped(c byte) bool { return c <= ' ' || c > '~' || strings.IndexByte(`"'().;@\`, c) >= 0 }

func (d *denying) set() *[readyWays]atomic.Pointer[ready] {
	place := &d.in.shards[d.hash%readyShards]
	shard := place.Load()
	if shard == nil {
		place.CompareAndSwap(nil, new(readyShard))
		shard = place.Load()
	}
	return &shard[d.hash/readyShards%readySets]
}

func (d *denying) get() *ready {
	set := d.set()
	for i := range set {
		if kept := set[i].Load(); kept != nil && kept.hash == d.hash && bytes.Equal(kept.key, d.key) {
			return kept
		}
	}
	return nil
}

// put keeps the authority section of an answer that was just packed, in a free
// place or in any.
func (d *denying) put(q *query, p *packer) {
	end := q.question - typeAndClass
	kept := &ready{hash: d.hash, records: binary.BigEndian.Uint16(p.out[8:])}
	for _, at := range p.pointers {
		back := end - int(binary.BigEndian.Uint16(p.out[at:])&0x3fff)
		if back > d.common {
			return // can't happen: [denials.names] knows the names that are compressed
		}
		kept.pointers = append(kept.pointers, pointer{at: uint16(at - q.question), back: uint16(back)})
	}
	if len(p.out)-q.question > maxReady {
		return
	}
	kept.key, kept.authority = bytes.Clone(d.key), bytes.Clone(p.out[q.question:])
	set := d.set()
	victim := &set[d.hash>>32%readyWays]
	for i := range set {
		if set[i].Load() == nil {
			victim = &set[i]
			break
		}
	}
	victim.Store(kept)
}

// denial returns the answer to the query that was read if its denial is ready.
func (r *responder) denial(zones *Zones) *answer {
	q, d := &r.query, &r.denying
	if d.of(q, zones); d.in == nil {
		return nil
	}
	kept := d.get()
	if kept == nil {
		return nil
	}
	out := append(r.packer.out[:0], 0, 0, flagQR|flagAA, dns.RcodeNameError, 0, 1, 0, 0, byte(kept.records>>8), byte(kept.records), 0, 0)
	out = append(append(out, q.key()...), kept.authority...)
	for _, p := range kept.pointers {
		target := q.question - typeAndClass - int(p.back)
		binary.BigEndian.PutUint16(out[q.question+int(p.at):], 0xc000|uint16(target))
	}
	r.packer.out, r.answer = out, answer{body: out, ttl: uint32(q.edns.flags)}
	if r.fits(&r.answer) {
		return &r.answer
	}
	return r.truncate(&r.answer)
}

// keepDenial keeps an answer's denial for the names that share it.
func (r *responder) keepDenial(a *answer) {
	if r.denying.in != nil && a.rcode() == dns.RcodeNameError && a.body[2]&flagTC == 0 && len(a.options) == 0 {
		r.denying.put(&r.query, &r.packer)
	}
}
