package registry

import (
	"hash/maphash"
	"iter"
	"maps"
)

// shards is the number of maps in a table. A change copies the table's shard list and one shard of a size/shards
// entries: with 100,000 entries some 200, which takes microseconds where copying one map of them takes milliseconds.
const shards = 512

// table is an immutable map that shares everything a change did not touch with the table it was made from. The zero
// value is empty. Keys are spread by a seeded hash: ids are chosen by strangers, who must not be able to put theirs
// all into one shard.
type table[K comparable, V any] struct {
	seed maphash.Seed
	maps []map[K]V // nil or shards of them; shared between tables, never written
	size int
}

func (t *table[K, V]) shard(key K) int {
	return int(maphash.Comparable(t.seed, key) % shards)
}

func (t *table[K, V]) get(key K) (V, bool) {
	if t.maps == nil {
		var zero V
		return zero, false
	}
	v, ok := t.maps[t.shard(key)][key]
	return v, ok
}

// all yields every entry in no particular order.
func (t *table[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for _, m := range t.maps {
			for k, v := range m {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// tableEdit collects changes to a table. Every shard is copied once, when first written.
type tableEdit[K comparable, V any] struct {
	table[K, V]
	own [shards]bool // shards that this edit may write
}

func (t *table[K, V]) edit() *tableEdit[K, V] {
	e := &tableEdit[K, V]{table: *t}
	e.maps = make([]map[K]V, shards)
	if t.maps == nil {
		e.seed = maphash.MakeSeed()
	}
	copy(e.maps, t.maps)
	return e
}

func (e *tableEdit[K, V]) writable(key K) map[K]V {
	i := e.shard(key)
	if !e.own[i] {
		e.own[i] = true
		if e.maps[i] == nil {
			e.maps[i] = make(map[K]V)
		} else {
			e.maps[i] = maps.Clone(e.maps[i])
		}
	}
	return e.maps[i]
}

func (e *tableEdit[K, V]) put(key K, value V) {
	m := e.writable(key)
	before := len(m)
	m[key] = value
	e.size += len(m) - before
}

func (e *tableEdit[K, V]) remove(key K) {
	if _, ok := e.get(key); ok {
		delete(e.writable(key), key)
		e.size--
	}
}

// done returns the changed table; the edit must not be used afterwards.
func (e *tableEdit[K, V]) done() table[K, V] { return e.table }
