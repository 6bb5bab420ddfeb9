package registry_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/registry"
)

// Whatever changes, applying the changed labels to those before gives those after.
func TestChangedLabelsLeadFromOneSnapshotToTheNext(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	before := new(registry.Snapshot)
	labels := map[string]bool{}
	for round := range 30 {
		var list []registry.Instance
		seen := map[byte]bool{}
		for range r.IntN(30) {
			n := byte(r.IntN(60))
			if seen[n] {
				continue
			}
			seen[n] = true
			// Few apps and hashes, and ids that are an app's and an instance's.
			list = append(list, registry.Instance{ID: registry.InstanceID{1, n}, App: registry.AppID{1, n % 7}, Compose: registry.ComposeHash{1, n % 5}})
		}
		after := registry.NewSnapshot(int64(round), list, nil)
		added, removed := after.ChangedLabels(before)
		for _, label := range removed {
			delete(labels, label)
		}
		for _, label := range added {
			labels[label] = true
		}
		want := map[string]bool{}
		for label := range after.Labels() {
			want[label] = true
		}
		if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(labels))); diff != "" {
			t.Fatalf("round %d (-want +got)\n%s", round, diff)
		}
		before = after
	}
}

func TestChangedLabelsLookOnlyAtWhatChanged(t *testing.T) {
	var list []registry.Instance
	for i := range 5000 {
		id := [20]byte{byte(i >> 8), byte(i), 1}
		list = append(list, registry.Instance{ID: registry.InstanceID(id), App: registry.AppID(id), Compose: registry.ComposeHash{byte(i)}})
	}
	before := registry.NewSnapshot(1, list, nil)
	if added, removed := before.ChangedLabels(before); len(added)+len(removed) > 0 {
		t.Errorf("nothing changed, and yet %v, %v", added, removed)
	}
	id := registry.InstanceID{0xff}
	after := before.With(2, []*registry.Instance{{ID: id, App: registry.AppID{0xfe}, Compose: registry.ComposeHash{0}}})
	added, removed := after.ChangedLabels(before)
	want := []string{registry.AppID{0xfe}.String(), id.String()}
	if diff := cmp.Diff(want, added); diff != "" || len(removed) > 0 {
		t.Errorf("removed %v, added (-want +got)\n%s", removed, diff)
	}
	allocs := testing.AllocsPerRun(100, func() { after.ChangedLabels(before) })
	if allocs > 50 {
		t.Errorf("%v allocations for one changed instance", allocs)
	}
}
