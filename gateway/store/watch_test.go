package store_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"dstack.host/gateway/store"
	"github.com/google/go-cmp/cmp"
)

// watching is a watcher that keeps the state it was told.
type watching struct {
	states chan map[string]string // after every update
	resets chan struct{}
}

// watch watches until the end of the test.
func watch(t *testing.T, s *store.Store, prefix string) *watching {
	t.Helper()
	w := &watching{make(chan map[string]string, 1000), make(chan struct{}, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	state := map[string]string{}
	var revision int64
	go func() {
		done <- s.Watch(ctx, prefix, func(u store.Update) error {
			if u.Revision <= revision && !u.Reset {
				t.Errorf("revision %d after %d", u.Revision, revision)
			}
			revision = u.Revision
			state = next(state, u)
			if u.Reset {
				w.resets <- struct{}{}
			}
			w.states <- state
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	return w
}

func next(state map[string]string, u store.Update) map[string]string {
	state = maps.Clone(state)
	if u.Reset {
		kept := map[string]string{}
		for _, path := range u.Skipped {
			if v, ok := state[path]; ok {
				kept[path] = v
			}
		}
		state = kept
	}
	for _, path := range u.Deletes {
		delete(state, path)
	}
	for _, e := range u.Puts {
		state[e.Path] = string(e.Value)
	}
	return state
}

// until waits for a state.
func (w *watching) until(t *testing.T, want map[string]string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	var last map[string]string
	for {
		select {
		case last = <-w.states:
			if maps.Equal(last, want) {
				return
			}
		case <-deadline:
			t.Fatalf("the watch does not get there (-want +got)\n%s", cmp.Diff(want, last))
		}
	}
}

func TestWatchBeginsWithEverythingAndFollows(t *testing.T) {
	s := open(t)
	commit(t, s, store.Put("a/1", []byte("1")), store.Put("a/2", []byte("2")), store.Put("b/1", []byte("x")))
	w := watch(t, s, "a/")
	w.until(t, map[string]string{"a/1": "1", "a/2": "2"})
	commit(t, s, store.Put("a/3", []byte("3")), store.Delete("a/1"), store.Put("b/1", []byte("y")))
	w.until(t, map[string]string{"a/2": "2", "a/3": "3"})
	for i := range 50 {
		commit(t, s, store.Put("a/3", fmt.Append(nil, i)))
	}
	commit(t, s, store.Delete("a/2"), store.Put("a/1", []byte("back")))
	w.until(t, map[string]string{"a/1": "back", "a/3": "49"})
}

func TestWatchOfNothingBeginsToo(t *testing.T) {
	s := open(t)
	watch(t, s, "a/").until(t, map[string]string{})
}

func TestWatchReturnsTheErrorOfItsCaller(t *testing.T) {
	s := open(t)
	own := errors.New("own")
	wantError(t, s.Watch(t.Context(), "", func(store.Update) error { return own }), own)
	turn := 0
	wantError(t, s.Watch(t.Context(), "", func(store.Update) error {
		if turn++; turn == 2 {
			return own
		}
		_, err := s.Commit(t.Context(), nil, []store.Op{store.Put("a", nil)}) // calling back is allowed
		return err
	}), own)
}

func TestWatchStartsOverAfterCompaction(t *testing.T) {
	s := open(t)
	commit(t, s, store.Put("a", []byte("1")), store.Put("b", []byte("1")), store.Put("c", []byte("1")))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var resets int
	var last store.Update
	err := s.Watch(ctx, "", func(u store.Update) error {
		if !u.Reset {
			return nil
		}
		if resets++; resets == 2 {
			last = u
			cancel()
			return nil
		}
		// While the watcher is busy, what it would read next is compacted away.
		commit(t, s, store.Delete("a"))
		commit(t, s, store.Put("b", []byte("2")))
		v := raw(t, s, "c")
		v[10] ^= 1
		rawPut(t, s, "c", v)
		return s.Compact(ctx, commit(t, s, store.Put("d", nil)))
	})
	if err != nil {
		t.Fatal(err)
	}
	got := next(map[string]string{"a": "1", "b": "1", "c": "1"}, last)
	if diff := cmp.Diff(map[string]string{"b": "2", "c": "1", "d": ""}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
