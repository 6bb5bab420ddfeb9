package store_test

import (
	"testing"

	"dstack.host/gateway/store"
)

func openBench(b *testing.B) *store.Store {
	b.Helper()
	s, err := store.Open(b.Context(), store.Config{DataDir: b.TempDir(), Key: testKey})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	if _, err := s.Commit(b.Context(), nil, []store.Op{store.Put("a", nil)}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	return s
}

func BenchmarkCommit(b *testing.B) {
	s := openBench(b)
	for b.Loop() {
		if _, err := s.Commit(b.Context(), nil, []store.Op{store.Put("a", nil)}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	s := openBench(b)
	for b.Loop() {
		if _, err := s.Get(b.Context(), "a"); err != nil {
			b.Fatal(err)
		}
	}
}
