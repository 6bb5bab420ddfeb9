package dnsserver

import (
	"bytes"
	"strings"
)

// A span is the part of the namespace below one name that a denial covers:
// everything after owner and before next. Both are names relative to where the
// span lies, in wire form; an empty owner is that place itself, and an empty
// next the end of the zone. They are names that nobody asks for: validators
// take both for existing ones.
type span struct{ owner, next []byte }

const (
	first = "\x00" // the least octet of a label
	last  = 0xff   // the greatest
)

// neighbours are the existing labels next to one that doesn't exist.
type neighbours struct {
	before, after string // empty: there is none
	// common is how many octets the label has in common with that one of them
	// that is a host's and has the most.
	common int
}

// add takes another set's neighbours in.
func (n *neighbours) add(before, after string) {
	if before > n.before {
		n.before = before
	}
	if after != "" && (n.after == "" || after < n.after) {
		n.after = after
	}
}

// blockOf returns the span around a label in which no existing label lies, and
// that tells as little as possible: it ends where the octet after the longest
// common prefix with the neighbours changes. So of the neighbours it tells that
// prefix and one octet, and all labels that differ from them there share one
// signature. An end of that block, or the beginning of an existing label, has a
// span of its own.
func blockOf(label string, n neighbours) (s span, shared bool) {
	d := max(commonPrefix(label, n.before), commonPrefix(label, n.after))
	prefix := label[:d]
	low, high := prefix+first, fill(prefix)
	if commonPrefix(label, n.before) == d && len(n.before) > d {
		low = fill(n.before[:d+1])
	}
	if commonPrefix(label, n.after) == d && len(n.after) > d {
		high = fill(prefix + string([]byte{preceding(n.after[d])}))
	}
	if d == len(label) || label <= low || label >= high {
		return exactly(label), false // an existing label begins with this one, or it is an end of the block
	}
	return span{owner: labelWire(low), next: labelWire(high)}, true
}

// exactly returns the span around one label and the names below it (RFC 4470
// section 4, RFC 4471).
func exactly(label string) span {
	next := label + first
	if len(next) > maxLabelOctets {
		next = following(label)
	}
	s := span{next: labelWire(next)}
	end := len(label) - 1
	c := label[end]
	switch lower := label[:end] + string([]byte{preceding(c)}); {
	case c > 0 && len(label) < maxLabelOctets:
		s.owner = labelWire(fill(lower))
	case c > 0: // no label fits between, but names below one do
		s.owner = append([]byte{1, last}, labelWire(lower)...)
	case end > 0:
		s.owner = append([]byte{1, last}, labelWire(label[:end])...)
	}
	return s
}

// fill returns the last label that begins with a prefix.
func fill(prefix string) string {
	return prefix + strings.Repeat("\xff", maxLabelOctets-len(prefix))
}

// following returns the first label after all that begin with a prefix, empty
// if there is none. Upper case never occurs: it would be compared as lower.
func following(prefix string) string {
	b := []byte(prefix)
	for len(b) > 0 && b[len(b)-1] == last {
		b = b[:len(b)-1]
	}
	if len(b) == 0 {
		return ""
	}
	b[len(b)-1]++
	if c := b[len(b)-1]; 'A' <= c && c <= 'Z' {
		b[len(b)-1] = 'Z' + 1
	}
	return string(b)
}

// preceding returns the octet before one; of 0 there is none.
func preceding(c byte) byte {
	if c == 'Z'+1 {
		return 'A' - 1
	}
	return c - 1
}

func commonPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// labelWire returns a name of one label, or of none for an empty one.
func labelWire(label string) []byte {
	if label == "" {
		return nil
	}
	return append([]byte{byte(len(label))}, label...)
}

// successor returns the first name after one, both in wire form with the root
// label (RFC 4471 section 3.1.2), for names that may be as long as names get.
func successor(name []byte) []byte {
	if len(name)+2 <= maxNameOctets {
		return append([]byte{1, 0}, name...)
	}
	label, rest := name[1:1+name[0]], name[1+name[0]:]
	if next := following(string(label)); next != "" {
		return append(labelWire(next), rest...)
	}
	return bytes.Clone(rest)
}
