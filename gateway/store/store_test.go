package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dstack.host/gateway/store"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

// Nothing is ignored: neither etcd nor its client may leave a goroutine.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testKey = store.Key{1, 2, 3}

// open returns a store, on an embedded etcd unless change says otherwise, that is closed with the test.
func open(t *testing.T, change ...func(*store.Config)) *store.Store {
	t.Helper()
	c := store.Config{DataDir: t.TempDir(), Key: testKey, ClusterID: "test"}
	for _, f := range change {
		f(&c)
	}
	s, err := store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func in(dir string) func(*store.Config) { return func(c *store.Config) { c.DataDir = dir } }

func commit(t *testing.T, s *store.Store, ops ...store.Op) int64 {
	t.Helper()
	revision, err := s.Commit(t.Context(), nil, ops)
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func TestOpenNamesAllFaults(t *testing.T) {
	_, err := store.Open(t.Context(), store.Config{
		DataDir:   t.TempDir(),
		Endpoints: []string{"etcd.example:2379", "http://etcd.example:2379", "http://127.0.0.1", "https://etcd.example:2379"},
		Username:  "gateway", Password: "secret", Prefix: "gateway", Name: "a=b",
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"cluster key is all zero", "exclude each other", `prefix "gateway"`, `member name "a=b"`,
		`"etcd.example:2379"`, `"http://etcd.example:2379": a password needs https`, `"http://127.0.0.1": names no port`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), `"https://`) {
		t.Errorf("says too much:\n%v", err)
	}
	if _, err := store.Open(t.Context(), store.Config{Key: testKey, Username: "x"}); err == nil || !strings.Contains(err.Error(), "belong together") || !strings.Contains(err.Error(), "no data directory") {
		t.Errorf("error %v", err)
	}
}

func TestValuesComeBack(t *testing.T) {
	s := open(t)
	_, err := s.Get(t.Context(), "a/b")
	wantError(t, err, store.ErrNotFound)
	for _, value := range [][]byte{[]byte("one"), {}, make([]byte, store.MaxValue)} {
		revision := commit(t, s, store.Put("a/b", value))
		got, err := s.Get(t.Context(), "a/b")
		if err != nil {
			t.Fatal(err)
		}
		if got.Path != "a/b" || got.Revision != revision || !bytes.Equal(got.Value, value) {
			t.Errorf("%s at revision %d with %d bytes, want %d bytes at %d", got.Path, got.Revision, len(got.Value), len(value), revision)
		}
	}
	commit(t, s, store.Delete("a/b"))
	_, err = s.Get(t.Context(), "a/b")
	wantError(t, err, store.ErrNotFound)
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestListReadsAllPagesInOrder(t *testing.T) {
	s := open(t)
	const n = 1203 // more than two pages
	for from := 0; from < n; from += store.MaxOps {
		var ops []store.Op
		for i := from; i < min(n, from+store.MaxOps); i++ {
			ops = append(ops, store.Put(fmt.Sprintf("list/%05d", i), []byte{byte(i)}))
		}
		commit(t, s, ops...)
	}
	revision := commit(t, s, store.Put("lisp", nil), store.Put("lisu/1", nil))
	entries, at, err := s.List(t.Context(), "list/")
	if err != nil || at != revision || len(entries) != n {
		t.Fatalf("%d entries at revision %d, error %v; want %d at %d", len(entries), at, err, n, revision)
	}
	for i, e := range entries {
		if e.Path != fmt.Sprintf("list/%05d", i) || len(e.Value) != 1 || e.Value[0] != byte(i) {
			t.Fatalf("entry %d is %v", i, e)
		}
	}
	if entries, _, err := s.List(t.Context(), "nothing/"); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestCommitHoldsItsConditions(t *testing.T) {
	s := open(t)
	old := commit(t, s, store.Put("there", []byte("1")))
	now := commit(t, s, store.Put("there", []byte("2")))
	for name, c := range map[string]struct {
		conds []store.Cond
		want  error
	}{
		"no condition":                {nil, nil},
		"absent":                      {[]store.Cond{{Path: "absent"}}, nil},
		"unchanged":                   {[]store.Cond{{Path: "there", Revision: now}}, nil},
		"both":                        {[]store.Cond{{Path: "there", Revision: now}, {Path: "absent"}}, nil},
		"changed since":               {[]store.Cond{{Path: "there", Revision: old}}, store.ErrConflict},
		"must not exist":              {[]store.Cond{{Path: "there"}}, store.ErrConflict},
		"does not exist":              {[]store.Cond{{Path: "absent", Revision: now}}, store.ErrConflict},
		"one of two does not hold":    {[]store.Cond{{Path: "absent"}, {Path: "there", Revision: old}}, store.ErrConflict},
		"two conditions on one path":  {[]store.Cond{{Path: "there", Revision: now}, {Path: "there", Revision: old}}, store.ErrConflict},
		"revision out of this world":  {[]store.Cond{{Path: "there", Revision: 1 << 62}}, store.ErrConflict},
		"negative revision":           {[]store.Cond{{Path: "there", Revision: -1}}, store.ErrConflict},
		"condition on what is put":    {[]store.Cond{{Path: "put"}}, nil},
		"condition on what is gone":   {[]store.Cond{{Path: "gone"}}, nil},
		"condition on another prefix": {[]store.Cond{{Path: "the"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Commit(t.Context(), c.conds, []store.Op{store.Put("put", []byte(name)), store.Delete("gone")})
			wantError(t, err, c.want)
			got, err := s.Get(t.Context(), "put")
			if c.want == nil && (err != nil || string(got.Value) != name) || c.want != nil && string(got.Value) == name {
				t.Errorf("%q, error %v", got.Value, err)
			}
			commit(t, s, store.Delete("put"))
		})
	}
}

func TestCommitRefusesWhatIsTooMuch(t *testing.T) {
	s := open(t)
	many := make([]store.Op, store.MaxOps+1)
	for i := range many {
		many[i] = store.Put(fmt.Sprint(i), nil)
	}
	for name, c := range map[string]struct {
		conds []store.Cond
		ops   []store.Op
	}{
		"nothing":              {nil, nil},
		"too many operations":  {nil, many},
		"too many conditions":  {make([]store.Cond, store.MaxOps+1), many[:1]},
		"a path twice":         {nil, []store.Op{store.Put("a", nil), store.Delete("a")}},
		"no path":              {nil, []store.Op{store.Put("", nil)}},
		"long path":            {nil, []store.Op{store.Put(strings.Repeat("a", 1025), nil)}},
		"condition on no path": {[]store.Cond{{}}, many[:1]},
		"large value":          {nil, []store.Op{store.Put("a", make([]byte, store.MaxValue+1))}},
		"large in total":       {nil, []store.Op{store.Put("a", make([]byte, store.MaxValue)), store.Put("b", []byte{1})}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Commit(t.Context(), c.conds, c.ops)
			if err == nil || errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrUnavailable) {
				t.Errorf("error %v", err)
			}
		})
	}
	if _, err := s.Get(t.Context(), ""); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("get without path: %v", err)
	}
}

func TestConcurrentCommitsLoseNothing(t *testing.T) {
	s := open(t)
	const writers, turns = 8, 10
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < turns; {
				e, err := s.Get(t.Context(), "counter")
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					t.Error(err)
					return
				}
				value := append(append([]byte{}, e.Value...), 'x')
				_, err = s.Commit(t.Context(), []store.Cond{{Path: "counter", Revision: e.Revision}}, []store.Op{store.Put("counter", value)})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
		// Commits without condition on another path in between.
		wg.Go(func() {
			for range turns {
				if _, err := s.Commit(t.Context(), nil, []store.Op{store.Put("other", nil)}); err != nil && !errors.Is(err, store.ErrConflict) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if e, err := s.Get(t.Context(), "counter"); err != nil || len(e.Value) != writers*turns {
		t.Errorf("%d increments arrived, error %v; want %d", len(e.Value), err, writers*turns)
	}
}

func TestReopenedStoreHasItsValues(t *testing.T) {
	dir := t.TempDir()
	s := open(t, in(dir))
	revision := commit(t, s, store.Put("a", []byte("1")))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, in(dir)).Get(t.Context(), "a")
	if diff := cmp.Diff(store.Entry{Path: "a", Value: []byte("1"), Revision: revision}, got); err != nil || diff != "" {
		t.Errorf("error %v, (-want +got)\n%s", err, diff)
	}
}

func TestTwoStoresInOneProcess(t *testing.T) {
	a, b := open(t), open(t)
	commit(t, a, store.Put("a", nil))
	_, err := b.Get(t.Context(), "a")
	wantError(t, err, store.ErrNotFound)
}

func TestDataDirectoryIsUsedOnce(t *testing.T) {
	dir := t.TempDir()
	open(t, in(dir))
	_, err := store.Open(t.Context(), store.Config{DataDir: dir, Key: testKey})
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("error %v", err)
	}
}

func TestDataDirectoryIsPrivate(t *testing.T) {
	dir := t.TempDir()
	s := open(t, in(dir))
	info, err := os.Stat(filepath.Join(dir, "etcd"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("%v, error %v", info.Mode(), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "etcd"), 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), store.Config{DataDir: dir, Key: testKey}); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("error %v", err)
	}
}

func TestClosedStoreIsUnavailable(t *testing.T) {
	s := open(t)
	watching := make(chan error)
	first := make(chan struct{})
	go func() {
		watching <- s.Watch(context.Background(), "", func(store.Update) error { close(first); return nil })
	}()
	<-first
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-watching; err != nil {
		t.Errorf("watch: %v", err)
	}
	_, err := s.Get(t.Context(), "a")
	wantError(t, err, store.ErrUnavailable)
	_, _, err = s.List(t.Context(), "a")
	wantError(t, err, store.ErrUnavailable)
	_, err = s.Commit(t.Context(), nil, []store.Op{store.Put("a", nil)})
	wantError(t, err, store.ErrUnavailable)
	_, err = s.Lock(t.Context(), "a")
	wantError(t, err, store.ErrUnavailable)
	wantError(t, s.Watch(t.Context(), "", nil), store.ErrUnavailable)
}

func TestCancelledCallSaysSo(t *testing.T) {
	s := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Get(ctx, "a")
	wantError(t, err, context.Canceled)
}

func TestEmbeddedEtcdThatStopsIsUnavailable(t *testing.T) {
	s := open(t, func(c *store.Config) { c.Timeout = time.Second })
	commit(t, s, store.Put("a", nil))
	s.StopEtcd()
	start := time.Now()
	_, err := s.Get(t.Context(), "a")
	wantError(t, err, store.ErrUnavailable)
	_, err = s.Commit(t.Context(), nil, []store.Op{store.Put("a", nil)})
	wantError(t, err, store.ErrUnavailable)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestDefragmentKeepsValues(t *testing.T) {
	s := open(t)
	commit(t, s, store.Put("a", make([]byte, store.MaxValue)))
	revision := commit(t, s, store.Put("a", []byte("small")))
	if err := s.Compact(t.Context(), revision); err != nil {
		t.Fatal(err)
	}
	if err := s.Defragment(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Get(t.Context(), "a"); err != nil || string(e.Value) != "small" {
		t.Errorf("%q, %v", e.Value, err)
	}
}

func TestNeedsDefrag(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		size, used int64
		want       bool
	}{{0, 0, false}, {127 * mib, 1, false}, {128 * mib, 64 * mib, false}, {128 * mib, 63 * mib, true}, {4096 * mib, 4000 * mib, false}} {
		if got := store.NeedsDefrag(c.size, c.used); got != c.want {
			t.Errorf("size %d, used %d: %t", c.size, c.used, got)
		}
	}
}
