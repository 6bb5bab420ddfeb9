package dnsserver

import (
	"iter"
	"slices"
	"sort"
)

// chunkLabels is how many labels one chunk has at most; it is split in half
// when it grows beyond.
const chunkLabels = 512

// Labels is an immutable set of labels in canonical order (RFC 4034 section
// 6.1). A change shares everything that it did not touch with the set it was
// made from: with 300,000 labels it copies one chunk of 512 and the list of
// chunks. The nil *Labels is empty.
type Labels struct {
	chunks [][]string // sorted, none empty, never changed
	size   int
}

// NewLabels makes a set. Labels may come in any order and more than once.
func NewLabels(labels iter.Seq[string]) *Labels {
	all := slices.Compact(slices.Sorted(labels))
	l := &Labels{size: len(all)}
	for chunk := range slices.Chunk(all, chunkLabels/2) {
		l.chunks = append(l.chunks, slices.Clip(chunk))
	}
	return l
}

// Len is the number of labels.
func (l *Labels) Len() int {
	if l == nil {
		return 0
	}
	return l.size
}

// All yields the labels in order.
func (l *Labels) All() iter.Seq[string] {
	return func(yield func(string) bool) {
		if l == nil {
			return
		}
		for _, chunk := range l.chunks {
			for _, label := range chunk {
				if !yield(label) {
					return
				}
			}
		}
	}
}

// With returns the set with some labels added and others removed. One that is
// both added and removed is there.
func (l *Labels) With(added, removed []string) *Labels {
	next := &Labels{}
	if l != nil {
		next.chunks, next.size = slices.Clone(l.chunks), l.size
	}
	for _, label := range removed {
		next.remove(label)
	}
	for _, label := range added {
		next.add(label)
	}
	return next
}

// chunkOf is the index of the only chunk that a label can be in.
func (l *Labels) chunkOf(label string) int {
	return max(0, sort.Search(len(l.chunks), func(i int) bool { return l.chunks[i][0] > label })-1)
}

func (l *Labels) add(label string) {
	if len(l.chunks) == 0 {
		l.chunks, l.size = [][]string{{label}}, 1
		return
	}
	c := l.chunkOf(label)
	at, found := slices.BinarySearch(l.chunks[c], label)
	if found {
		return
	}
	l.size++
	grown := slices.Insert(slices.Clip(slices.Clone(l.chunks[c])), at, label)
	if len(grown) <= chunkLabels {
		l.chunks[c] = grown
		return
	}
	half := len(grown) / 2
	l.chunks[c] = slices.Clone(grown[:half])
	l.chunks = slices.Insert(l.chunks, c+1, slices.Clone(grown[half:]))
}

func (l *Labels) remove(label string) {
	if len(l.chunks) == 0 {
		return
	}
	c := l.chunkOf(label)
	at, found := slices.BinarySearch(l.chunks[c], label)
	if !found {
		return
	}
	l.size--
	if len(l.chunks[c]) == 1 {
		l.chunks = slices.Delete(l.chunks, c, c+1)
		return
	}
	l.chunks[c] = slices.Delete(slices.Clone(l.chunks[c]), at, at+1)
}

// Contains tells whether a label is there.
func (l *Labels) Contains(label string) bool {
	_, _, found := l.around(label)
	return found
}

// around returns the labels next to a label, empty where there are none, and
// whether the label is there itself.
func (l *Labels) around(label string) (before, after string, found bool) {
	if l.Len() == 0 {
		return "", "", false
	}
	c := l.chunkOf(label)
	chunk := l.chunks[c]
	at, found := slices.BinarySearch(chunk, label)
	switch {
	case at > 0:
		before = chunk[at-1]
	case c > 0:
		before = l.chunks[c-1][len(l.chunks[c-1])-1]
	}
	if found {
		at++
	}
	switch {
	case at < len(chunk):
		after = chunk[at]
	case c+1 < len(l.chunks):
		after = l.chunks[c+1][0]
	}
	return before, after, found
}

// changes yields the labels that are in exactly one of two sets, in order. It
// skips what they share, so it costs what they differ in.
func (l *Labels) changes(other *Labels) iter.Seq[string] {
	return func(yield func(string) bool) {
		a, b := l.flatten(other)
		for i, j := 0, 0; i < len(a) || j < len(b); {
			switch {
			case j == len(b) || i < len(a) && a[i] < b[j]:
				if !yield(a[i]) {
					return
				}
				i++
			case i == len(a) || b[j] < a[i]:
				if !yield(b[j]) {
					return
				}
				j++
			default:
				i, j = i+1, j+1
			}
		}
	}
}

// flatten returns the labels of the chunks that the sets don't share.
func (l *Labels) flatten(other *Labels) (a, b []string) {
	shared := map[*string]bool{}
	if l != nil {
		for _, chunk := range l.chunks {
			shared[&chunk[0]] = false
		}
	}
	if other != nil {
		for _, chunk := range other.chunks {
			if _, ok := shared[&chunk[0]]; ok {
				shared[&chunk[0]] = true
			} else {
				b = append(b, chunk...)
			}
		}
	}
	if l != nil {
		for _, chunk := range l.chunks {
			if !shared[&chunk[0]] {
				a = append(a, chunk...)
			}
		}
	}
	return a, b
}
