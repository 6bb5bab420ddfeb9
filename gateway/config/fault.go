package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Fault is one thing that is wrong with a configuration.
type Fault struct {
	File string // as given to Load; "" for a configuration that came from no file
	Line int    // 1-based; 0 when the key does not stand in the file
	Key  string // dotted, as "tunnel.listen"
	Text string // what is wrong, and what would be right
}

func (f Fault) String() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File + ":")
		if f.Line > 0 {
			fmt.Fprintf(&b, "%d:", f.Line)
		}
		b.WriteByte(' ')
	}
	if f.Key != "" {
		b.WriteString(f.Key + ": ")
	}
	b.WriteString(f.Text)
	return b.String()
}

// Faults is every fault of one configuration, in the order of the file. It is an error when it is not empty.
type Faults []Fault

func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, fault := range f {
		lines[i] = fault.String()
	}
	return strings.Join(lines, "\n")
}

func (f *Faults) add(key, format string, args ...any) {
	*f = append(*f, Fault{Key: key, Text: fmt.Sprintf(format, args...)})
}

// located gives every fault its file and line and sorts them; a key that is not in the file takes the line of the
// nearest table that is.
func (f Faults) located(file string, lines map[string]int) error {
	if len(f) == 0 {
		return nil
	}
	for i := range f {
		f[i].File = file
		for key := f[i].Key; f[i].Line == 0 && key != ""; key = parent(key) {
			f[i].Line = lines[key]
		}
	}
	slices.SortStableFunc(f, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
	return f
}

func parent(key string) string {
	i := strings.LastIndexByte(key, '.')
	return key[:max(i, 0)]
}
