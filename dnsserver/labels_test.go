package dnsserver_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/dnsserver"
)

// A set that was changed is the set that is made anew, and what it was made
// from stays as it was.
func TestLabelsChange(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	want := map[string]bool{}
	var l *dnsserver.Labels
	for round := range 60 {
		before := slices.Collect(l.All())
		var added, removed []string
		for range r.IntN(200) {
			label := fmt.Sprintf("%04x", r.IntN(1<<12))
			if r.IntN(3) == 0 || round > 40 {
				removed = append(removed, label)
			} else {
				added = append(added, label)
			}
		}
		for _, label := range removed {
			delete(want, label)
		}
		for _, label := range added {
			want[label] = true
		}
		next := l.With(added, removed)
		sorted := slices.Sorted(maps.Keys(want))
		if diff := cmp.Diff(sorted, slices.Collect(next.All())); diff != "" || next.Len() != len(sorted) {
			t.Fatalf("round %d: %d labels (-want +got)\n%s", round, next.Len(), diff)
		}
		if diff := cmp.Diff(before, slices.Collect(l.All())); diff != "" {
			t.Fatalf("round %d changed what was before (-want +got)\n%s", round, diff)
		}
		for label := range want {
			if !next.Contains(label) {
				t.Fatalf("%s is missing", label)
			}
		}
		if next.Contains("nothing") || next.Contains("") {
			t.Fatal("contains what was never added")
		}
		l = next
	}
	if diff := cmp.Diff(slices.Collect(l.All()), slices.Collect(dnsserver.NewLabels(maps.Keys(want)).All())); diff != "" {
		t.Errorf("made anew it is another (-changed +made)\n%s", diff)
	}
}
