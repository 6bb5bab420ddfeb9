package dnsserver

import (
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// nameOf returns a name relative to the origin in presentation form.
func (z *Zone) nameOf(rel []byte) string {
	name, _, err := dns.UnpackDomainName(append(slices.Clip(slices.Clone(rel)), z.wire...), 0)
	if err != nil {
		return z.origin // can't happen: the name fits, or was asked for
	}
	return name
}

// proveNoData adds the proof that a name exists and has no records of the type:
// its NSEC record, which ends at the first name that could follow.
func (z *Zone) proveNoData(m *dns.Msg, rel []byte, static, host *node) {
	m.Ns = append(slices.Clone(m.Ns), z.nsecAt(rel, static, host))
}

func (z *Zone) nsecAt(rel []byte, static, host *node) *dns.NSEC {
	return z.nsec(rel, z.successorOf(rel), typesOf(static, host))
}

func (z *Zone) successorOf(rel []byte) string {
	name, _, err := dns.UnpackDomainName(successor(append(slices.Clip(slices.Clone(rel)), z.wire...)), 0)
	if err != nil {
		return z.origin
	}
	return name
}

// typesOf returns the types of a name in a signed zone.
func typesOf(static, host *node) []uint16 {
	all := []uint16{dns.TypeRRSIG, dns.TypeNSEC}
	for _, n := range []*node{static, host} {
		if n == nil {
			continue
		}
		for _, set := range n.sets {
			all = append(all, set.rrtype)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// nsec makes an NSEC record, with the TTL of the negative answer that it is
// part of (RFC 9077).
func (z *Zone) nsec(rel []byte, next string, types []uint16) *dns.NSEC {
	return &dns.NSEC{
		Hdr:        dns.RR_Header{Name: z.nameOf(rel), Rrtype: dns.TypeNSEC, Class: dns.ClassINET, Ttl: z.deniedFor(rel).Header().Ttl},
		NextDomain: next, TypeBitMap: types,
	}
}

// proveNoName adds the proof that a name does not exist.
func (z *Zone) proveNoName(m *dns.Msg, rel []byte, compactOK bool) {
	ns := slices.Clone(m.Ns)
	if z.signing.denial == DenialCompact {
		m.Ns = append(ns, z.nsec(rel, z.successorOf(rel), []uint16{dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNXNAME}))
		if !compactOK {
			m.Rcode = dns.RcodeSuccess // RFC 9824 section 2; the code itself only to those who ask for it, section 5
		}
		return
	}
	encloser, label := z.closestEncloser(rel)
	name, wildcard := z.cover(encloser, label, ns), z.cover(encloser, "*", ns)
	m.Ns = append(ns, name)
	if wildcard.Hdr.Name != name.Hdr.Name {
		m.Ns = append(m.Ns, wildcard)
	}
}

// closestEncloser returns the longest existing name above one that does not
// exist, and the label below it that does not.
func (z *Zone) closestEncloser(rel []byte) (encloser []byte, label string) {
	for off := 0; off < len(rel); {
		next := off + 1 + int(rel[off])
		if static, host := z.lookup(rel[next:]); static != nil || host != nil || next == len(rel) {
			return rel[next:], string(rel[off+1 : next])
		}
		off = next
	}
	return nil, ""
}

// cover makes the NSEC record whose span has a label that does not exist below
// a name that does. ns holds the SOA of the answer.
func (z *Zone) cover(encloser []byte, label string, ns []dns.RR) *dns.NSEC {
	s, _ := z.spanOf(encloser, label)
	rr := &dns.NSEC{
		Hdr:        dns.RR_Header{Name: z.nameOf(slices.Concat(s.owner, encloser)), Rrtype: dns.TypeNSEC, Class: dns.ClassINET, Ttl: ns[0].Header().Ttl},
		NextDomain: z.origin, TypeBitMap: []uint16{dns.TypeRRSIG, dns.TypeNSEC},
	}
	if len(s.owner) == 0 {
		rr.TypeBitMap = typesOf(z.lookup(encloser))
	}
	if len(s.next) > 0 {
		rr.NextDomain = z.nameOf(slices.Concat(s.next, encloser))
	} else if len(encloser) > 0 { // after all below the encloser
		rr.NextDomain = z.after(encloser)
	}
	return rr
}

// spanOf returns the span that denies a label that does not exist below a name
// that does, and whether it is a block, which other labels share.
func (z *Zone) spanOf(encloser []byte, label string) (s span, shared bool) {
	n := z.around(encloser, label)
	if n.common > z.signing.hostDepth {
		return exactly(label), false
	}
	return blockOf(label, n)
}

// after returns a name after all that are below an existing name, and before
// the next that exists beside it.
func (z *Zone) after(rel []byte) string {
	label := string(rel[1 : 1+rel[0]])
	if next := label + first; len(next) <= maxLabelOctets {
		return z.nameOf(append(labelWire(next), rel[1+rel[0]:]...))
	}
	return z.nameOf(append(labelWire(following(label)), rel[1+rel[0]:]...))
}

// around returns the neighbours of a label that does not exist below a name
// that does.
func (z *Zone) around(encloser []byte, label string) (n neighbours) {
	n.add(aroundIn(z.children[string(encloser)], label))
	if len(encloser) > 0 {
		n.add(aroundIn(z.childrenOfHost(encloser), label))
		return n
	}
	z.aroundHosts(&n, label)
	return n
}

// aroundHosts takes in the hosts, each under its canonical label and under
// those with a prefix before it. All other forms of a label begin with one of these.
func (z *Zone) aroundHosts(n *neighbours, label string) {
	if z.labels.Len() == 0 {
		return
	}
	host := func(prefix, rest string) {
		before, after, _ := z.labels.around(rest)
		n.common = max(n.common, commonPrefix(rest, before), commonPrefix(rest, after))
		if before != "" {
			before = prefix + before
		}
		if after != "" {
			after = prefix + after
		}
		n.add(before, after)
	}
	host("", label)
	for _, prefix := range z.prefixes {
		if rest, ok := strings.CutPrefix(label, prefix); ok {
			host(prefix, rest)
		} else if prefix < label {
			n.add(prefix, "")
		} else {
			n.add("", prefix)
		}
	}
}

// aroundIn returns the labels of a sorted list next to one.
func aroundIn(sorted []string, label string) (before, after string) {
	at, found := slices.BinarySearch(sorted, label)
	if at > 0 {
		before = sorted[at-1]
	}
	if found {
		at++
	}
	if at < len(sorted) {
		after = sorted[at]
	}
	return before, after
}

// childrenOfHost returns the labels that there are below a name that is a
// host's or below one, sorted.
func (z *Zone) childrenOfHost(rel []byte) []string {
	if z.hosts == nil {
		return nil
	}
	below, last := cutLast(rel)
	label, ok := hostLabel(last)
	if !ok {
		return nil
	}
	canonical, ok := z.hostOf(label)
	if !ok {
		return nil
	}
	var list []string
	if z.isPassthrough == nil || !z.isPassthrough(label) {
		list = z.childrenBelow[string(below)]
	}
	if len(below) == 0 && z.facts(canonical) != nil {
		list = append(slices.Clone(list), factsWire[1:])
		slices.Sort(list)
	}
	return list
}

// childrenOf lists, for every name of a tree, the labels below it, sorted.
func childrenOf(nodes map[string]*node) map[string][]string {
	children := map[string][]string{}
	for key := range nodes {
		if key == "" {
			continue
		}
		end := 1 + int(key[0])
		children[key[end:]] = append(children[key[end:]], key[1:end])
	}
	for key := range children {
		slices.Sort(children[key])
	}
	return children
}

// hostDepth is how many octets of a host's label blocks may tell: with hosts
// in hexadecimal, as many as a random name has in common with one of them, and
// two more. Names that have more in common are denied one by one: they are
// rare unless somebody knows the host, and nobody learns the rest of a label.
func hostDepth(hosts int) int {
	depth := 2
	for n := 1; n < hosts; n *= 16 {
		depth++
	}
	return depth
}
