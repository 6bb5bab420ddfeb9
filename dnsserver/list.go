package dnsserver

import (
	"iter"
	"slices"

	"github.com/miekg/dns"
)

// sets yields everything that the zone lists, set by set in canonical order,
// each with its signatures; in a signed zone each name ends with its NSEC
// record, and these are one chain (RFC 4034 section 4). Hosts are listed under
// their canonical labels. It is made as it is asked for, ends where a
// signature can't be made, and tells so by a set without records.
func (z *Zone) sets() iter.Seq[[]dns.RR] {
	return func(yield func([]dns.RR) bool) {
		var before string
		for rel := range z.listed() {
			if rel != "" && !z.setsAt(before, rel, yield) {
				return
			}
			before = rel
		}
		z.setsAt(before, "", yield)
	}
}

// setsAt yields the sets of one name. The next follows it in the chain.
func (z *Zone) setsAt(rel, next string, yield func([]dns.RR) bool) bool {
	static, host := z.lookup([]byte(rel))
	owner := z.nameOf([]byte(rel))
	for _, n := range []*node{static, host} {
		if n == nil {
			continue
		}
		for _, set := range n.sets {
			if n == host && static.set(set.rrtype) != nil {
				continue // as in answers, what is said of the name alone comes first
			}
			rrs := make([]dns.RR, len(set.rrs))
			for i, rr := range set.rrs {
				rrs[i] = withOwner(rr, owner)
			}
			if !yield(z.withSignatures(rrs)) {
				return false
			}
		}
	}
	if z.signing == nil {
		return true
	}
	nsec := z.nsec([]byte(rel), z.nameOf([]byte(next)), typesOf(static, host))
	return yield(z.withSignatures([]dns.RR{nsec}))
}

func (z *Zone) withSignatures(rrs []dns.RR) []dns.RR {
	if z.signing == nil {
		return rrs
	}
	signatures, ok := z.signatures(rrs, forTransfer, true)
	if !ok {
		return nil
	}
	return append(rrs, signatures...)
}

// listed yields the names with records, relative to the origin, in canonical
// order: a name, then all below it (RFC 4034 section 6.1). The origin is first.
func (z *Zone) listed() iter.Seq[string] {
	return func(yield func(string) bool) {
		if !yield("") {
			return
		}
		for label := range merge(slices.Values(z.children[""]), z.labels.All()) {
			if !z.listedAt(string(labelWire(label)), yield) {
				return
			}
		}
	}
}

func (z *Zone) listedAt(rel string, yield func(string) bool) bool {
	static, host := z.lookup([]byte(rel))
	if (hasSets(static) || hasSets(host)) && !yield(rel) {
		return false
	}
	for label := range merge(slices.Values(z.children[rel]), slices.Values(z.childrenOfHost([]byte(rel)))) {
		if !z.listedAt(string(labelWire(label))+rel, yield) {
			return false
		}
	}
	return true
}

func hasSets(n *node) bool { return n != nil && len(n.sets) > 0 }

// merge yields what two sorted sequences have, in order, once.
func merge(a, b iter.Seq[string]) iter.Seq[string] {
	return func(yield func(string) bool) {
		next, stop := iter.Pull(b)
		defer stop()
		second, more := next()
		for first := range a {
			for ; more && second < first; second, more = next() {
				if !yield(second) {
					return
				}
			}
			if more && second == first {
				second, more = next()
			}
			if !yield(first) {
				return
			}
		}
		for ; more; second, more = next() {
			if !yield(second) {
				return
			}
		}
	}
}
