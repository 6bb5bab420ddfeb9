package registry

import "reflect"

// ChangedLabels returns the labels, as Labels yields them, that s has and old does not, and the other way round. A label
// that both have may be among the added ones. Parts that the snapshots share are skipped, so that for a change of one instance among
// 100,000 it looks at some hundreds.
func (s *Snapshot) ChangedLabels(old *Snapshot) (added, removed []string) {
	put := func(label string) { added = append(added, label) }
	drop := func(label string) {
		if !s.hasLabel(label) {
			removed = append(removed, label)
		}
	}
	diff(&s.apps, &old.apps, put, drop)
	diff(&s.instances, &old.instances, put, drop)
	diff(&s.composes, &old.composes, put, drop)
	return added, removed
}

// hasLabel tells whether a label is listed, as that of whatever.
func (s *Snapshot) hasLabel(label string) bool {
	name, err := ParseLabel(label)
	return err == nil && len(s.Resolve(name)) > 0
}

// diff calls put for every key that only the new table has, and drop for every one that only the old one has.
func diff[K interface {
	comparable
	String() string
}, V any](next, old *table[K, V], put, drop func(label string)) {
	only := func(a, b *table[K, V], found func(label string)) {
		for i, m := range a.maps {
			if b.seed == a.seed && b.maps != nil && sameMap(m, b.maps[i]) {
				continue
			}
			for key := range m {
				if _, ok := b.get(key); !ok {
					found(key.String())
				}
			}
		}
	}
	only(next, old, put)
	only(old, next, drop)
}

// sameMap tells whether two variables hold one map: the shards of tables are never written once they are shared.
func sameMap[K comparable, V any](a, b map[K]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}
