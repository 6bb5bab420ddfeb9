package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"dstack.host/gateway/store"
	"github.com/google/go-cmp/cmp"
)

// alarms collects the paths that were alarmed.
type alarms struct {
	mu    sync.Mutex
	paths []string
}

func (a *alarms) note(path string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !errors.Is(err, store.ErrTampered) {
		path += ": " + err.Error()
	}
	a.paths = append(a.paths, path)
}

func (a *alarms) take() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	taken := a.paths
	a.paths = nil
	return taken
}

func raw(t *testing.T, s *store.Store, path string) []byte {
	t.Helper()
	v, err := s.RawGet(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(v)
}

func rawPut(t *testing.T, s *store.Store, path string, value []byte) {
	t.Helper()
	if err := s.RawPut(t.Context(), path, value); err != nil {
		t.Fatal(err)
	}
}

func TestEtcdSeesNoSecrets(t *testing.T) {
	s := open(t)
	id := []byte("instance-0123456789")
	commit(t, s, store.Put("x/"+s.Blind("instance", id), []byte("the private key")))
	dump, err := s.RawDump(t.Context())
	if err != nil || len(dump) == 0 {
		t.Fatal(len(dump), err)
	}
	for _, secret := range [][]byte{[]byte("private key"), id, []byte(fmt.Sprintf("%x", id))} {
		if bytes.Contains(dump, secret) {
			t.Errorf("etcd has %q", secret)
		}
	}
}

func TestBlindTellsKindsAndKeysApart(t *testing.T) {
	a := open(t)
	b := open(t, func(c *store.Config) { c.Key[31] = 9 })
	seen := map[string]bool{}
	for _, s := range []string{a.Blind("k", []byte("id")), a.Blind("ki", []byte("d")), a.Blind("", []byte("kid")), b.Blind("k", []byte("id"))} {
		if seen[s] || len(s) != 32 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") != "" {
			t.Errorf("%q", s)
		}
		seen[s] = true
	}
	if a.Blind("k", []byte("id")) != a.Blind("k", []byte("id")) {
		t.Error("not stable")
	}
}

// tampering is what somebody does to the value at "victim", which is "new" and was "old" before.
var tampering = map[string]func(t *testing.T, s *store.Store, old []byte){
	"flipped bit": func(t *testing.T, s *store.Store, _ []byte) {
		v := raw(t, s, "victim")
		v[len(v)-1] ^= 1
		rawPut(t, s, "victim", v)
	},
	"higher version": func(t *testing.T, s *store.Store, _ []byte) {
		v := raw(t, s, "victim")
		v[1] = 0x7f
		rawPut(t, s, "victim", v)
	},
	"all ones version": func(t *testing.T, s *store.Store, _ []byte) {
		v := raw(t, s, "victim")
		copy(v[1:], bytes.Repeat([]byte{0xff}, 8))
		rawPut(t, s, "victim", v)
	},
	"other format": func(t *testing.T, s *store.Store, _ []byte) {
		v := raw(t, s, "victim")
		v[0]++
		rawPut(t, s, "victim", v)
	},
	"truncated": func(t *testing.T, s *store.Store, _ []byte) { rawPut(t, s, "victim", raw(t, s, "victim")[:48]) },
	"empty":     func(t *testing.T, s *store.Store, _ []byte) { rawPut(t, s, "victim", nil) },
	"plain text": func(t *testing.T, s *store.Store, _ []byte) {
		rawPut(t, s, "victim", []byte(strings.Repeat("new ", 50)))
	},
	"from other path": func(t *testing.T, s *store.Store, _ []byte) { rawPut(t, s, "victim", raw(t, s, "other")) },
	"of other cluster": func(t *testing.T, s *store.Store, _ []byte) {
		rawPut(t, s, "victim", store.Seal(testKey, "tset", "/dstack-gateway/values/victim", 1<<40, []byte("forged")))
	},
	"under other key": func(t *testing.T, s *store.Store, _ []byte) {
		rawPut(t, s, "victim", store.Seal(store.Key{9}, "test", "/dstack-gateway/values/victim", 1<<40, []byte("forged")))
	},
	"rolled back":    func(t *testing.T, s *store.Store, old []byte) { rawPut(t, s, "victim", old) },
	"same once more": func(t *testing.T, s *store.Store, _ []byte) { rawPut(t, s, "victim", raw(t, s, "victim")) },
	"deleted and rolled back": func(t *testing.T, s *store.Store, old []byte) {
		if err := s.RawDelete(t.Context(), "victim"); err != nil {
			t.Fatal(err)
		}
		rawPut(t, s, "victim", old)
	},
}

func TestTamperedValuesAreRefusedAndRepaired(t *testing.T) {
	for name, tamper := range tampering {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var alarmed alarms
			s := open(t, func(c *store.Config) { c.Alarm = alarmed.note })
			commit(t, s, store.Put("victim", []byte("old")), store.Put("other", []byte("other")))
			old := raw(t, s, "victim")
			commit(t, s, store.Put("victim", []byte("new")))
			commit(t, s, store.Put("other", []byte("other"))) // has the highest version now
			tamper(t, s, old)

			_, err := s.Get(t.Context(), "victim")
			wantError(t, err, store.ErrTampered)
			entries, _, err := s.List(t.Context(), "")
			if err != nil || len(entries) != 1 || entries[0].Path != "other" {
				t.Errorf("list: %v, error %v", entries, err)
			}
			if paths := alarmed.take(); len(paths) < 2 || slices.ContainsFunc(paths, func(p string) bool { return p != "victim" }) {
				t.Errorf("alarms for %v", paths)
			}

			commit(t, s, store.Put("victim", []byte("repaired")))
			if e, err := s.Get(t.Context(), "victim"); err != nil || string(e.Value) != "repaired" {
				t.Errorf("after the repair: %q, error %v", e.Value, err)
			}
		})
	}
}

func TestWatchKeepsLastGoodValue(t *testing.T) {
	for name, tamper := range tampering {
		if strings.HasPrefix(name, "deleted") {
			continue // the watcher is told of the deletion
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var alarmed alarms
			s := open(t, func(c *store.Config) { c.Alarm = alarmed.note })
			commit(t, s, store.Put("victim", []byte("old")), store.Put("other", []byte("other")))
			old := raw(t, s, "victim")
			w := watch(t, s, "")
			w.until(t, map[string]string{"victim": "old", "other": "other"})
			commit(t, s, store.Put("victim", []byte("new")))
			w.until(t, map[string]string{"victim": "new", "other": "other"})
			tamper(t, s, old)
			commit(t, s, store.Put("other", []byte("later")))
			w.until(t, map[string]string{"victim": "new", "other": "later"})
			if diff := cmp.Diff([]string{"victim"}, alarmed.take()); diff != "" {
				t.Errorf("alarms (-want +got)\n%s", diff)
			}
			commit(t, s, store.Put("victim", []byte("repaired")))
			w.until(t, map[string]string{"victim": "repaired", "other": "later"})
		})
	}
}

func TestDeletedValueDoesNotComeBack(t *testing.T) {
	var alarmed alarms
	s := open(t, func(c *store.Config) { c.Alarm = alarmed.note })
	w := watch(t, s, "")
	commit(t, s, store.Put("victim", []byte("old")))
	old := raw(t, s, "victim")
	w.until(t, map[string]string{"victim": "old"})
	commit(t, s, store.Delete("victim"))
	w.until(t, map[string]string{})
	rawPut(t, s, "victim", old)
	_, err := s.Get(t.Context(), "victim")
	wantError(t, err, store.ErrTampered)
	commit(t, s, store.Put("other", nil))
	w.until(t, map[string]string{"other": ""})

	// Others may store something there again.
	commit(t, s, store.Put("victim", []byte("again")))
	w.until(t, map[string]string{"victim": "again", "other": ""})
}

func TestAnotherNodeAcceptsWhatFollowsADeletion(t *testing.T) {
	c := startCluster(t, "")
	a, b := c.open(t), c.open(t)
	w := watch(t, a, "")
	commit(t, a, store.Put("x", []byte("1")))
	commit(t, a, store.Put("x", []byte("2")))
	w.until(t, map[string]string{"x": "2"})
	commit(t, a, store.Delete("x"))
	w.until(t, map[string]string{})
	commit(t, b, store.Put("x", []byte("3"))) // b has never heard of x
	w.until(t, map[string]string{"x": "3"})
}

func TestVersionsOnlyGrow(t *testing.T) {
	type note struct {
		version  uint64 // 0: a deletion
		revision int64
		want     string
	}
	for name, notes := range map[string][]note{
		"newer":                     {{5, 10, "current"}, {6, 11, "current"}},
		"the same again":            {{5, 10, "current"}, {5, 10, "current"}},
		"older and late":            {{5, 10, "current"}, {6, 11, "current"}, {5, 10, "stale"}},
		"older as new":              {{6, 11, "current"}, {5, 12, "rolled back"}},
		"same version, other value": {{6, 11, "current"}, {6, 12, "rolled back"}},
		"older in the same place":   {{6, 11, "current"}, {5, 11, "rolled back"}},
		"after deletion":            {{6, 11, "current"}, {0, 12, ""}, {6, 13, "rolled back"}, {13, 14, "current"}},
		"late after deletion":       {{6, 11, "current"}, {0, 12, ""}, {6, 11, "stale"}},
		"late deletion":             {{6, 11, "current"}, {7, 13, "current"}, {0, 12, ""}, {7, 13, "current"}},
		"deletion of the unknown":   {{0, 12, ""}, {1, 11, "current"}},
		"deleted twice":             {{6, 11, "current"}, {0, 12, ""}, {0, 15, ""}, {6, 14, "stale"}, {6, 16, "rolled back"}},
	} {
		t.Run(name, func(t *testing.T) {
			var v store.Versions
			for i, n := range notes {
				if n.version == 0 {
					v.NoteDelete("x", n.revision)
					continue
				}
				if got := v.Note("x", n.version, n.revision); got != n.want {
					t.Errorf("note %d: %s, want %s", i, got, n.want)
				}
			}
		})
	}
}

func TestNextVersionIsAboveAllKnown(t *testing.T) {
	var v store.Versions
	v.Note("seen", 50, 40)
	v.Note("gone", 50, 40)
	v.NoteDelete("gone", 41)
	for _, c := range []struct {
		path     string
		stored   uint64
		revision int64
		want     uint64
	}{{"new", 0, 7, 8}, {"new", 9, 7, 10}, {"seen", 9, 7, 51}, {"gone", 0, 7, 51}, {"seen", 60, 70, 71}, {"new", 0, -1, 1}} {
		if got := v.Next(c.path, c.stored, c.revision); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

func TestMemoryOfDeletionsIsBounded(t *testing.T) {
	var v store.Versions
	for i := range store.MaxTombstones + 100 {
		path := fmt.Sprint(i)
		v.Note(path, 1, int64(2*i+1))
		v.NoteDelete(path, int64(2*i+2))
	}
	if v.Len() != store.MaxTombstones {
		t.Errorf("%d paths are remembered", v.Len())
	}
	if got := v.Note(fmt.Sprint(store.MaxTombstones+99), 1, 1<<40); got != "rolled back" {
		t.Errorf("the last deletion is forgotten: %s", got)
	}
}

func FuzzUnseal(f *testing.F) {
	good := store.Seal(testKey, "c", "p", 7, []byte("value"))
	f.Add(good, "p")
	f.Add(good[:20], "p")
	f.Add([]byte{}, "")
	f.Fuzz(func(t *testing.T, sealed []byte, path string) {
		value, version, err := store.Unseal(testKey, "c", path, sealed)
		if err == nil && (path != "p" || version != 7 || string(value) != "value") {
			t.Errorf("opened %x at %q", sealed, path)
		}
		if err != nil && !errors.Is(err, store.ErrTampered) {
			t.Error(err)
		}
	})
}

func BenchmarkSealAndUnseal(b *testing.B) {
	value := make([]byte, 1024)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := store.Unseal(testKey, "c", "p", store.Seal(testKey, "c", "p", 1, value)); err != nil {
			b.Fatal(err)
		}
	}
}
