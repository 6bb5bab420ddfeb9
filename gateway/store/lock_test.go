package store_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"dstack.host/gateway/store"
)

func TestLockExcludesOthers(t *testing.T) {
	c := startCluster(t, "http")
	nodes := []*store.Store{c.open(t), c.open(t)}
	var holders, turns int // only the lock keeps this from being a race
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for range 3 {
				unlock, err := nodes[i%2].Lock(t.Context(), "certificate")
				if err != nil {
					t.Error(err)
					return
				}
				if holders++; holders != 1 {
					t.Errorf("%d hold the lock", holders)
				}
				turns++
				holders--
				if err := unlock(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if turns != 18 {
		t.Errorf("%d turns", turns)
	}
}

func TestLocksOfOtherNamesAreFree(t *testing.T) {
	s := open(t)
	a, err := s.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Lock(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	for _, unlock := range []func(context.Context) error{a, b} {
		if err := unlock(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if entries, _, err := s.List(t.Context(), ""); err != nil || len(entries) != 0 {
		t.Errorf("locks are listed: %v, %v", entries, err)
	}
}

func TestWaitingForALockEndsWithItsContext(t *testing.T) {
	s := open(t)
	unlock, err := s.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = s.Lock(ctx, "a")
	wantError(t, err, context.DeadlineExceeded)
	if err := unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, err := s.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := again(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsLocks(t *testing.T) {
	c := startCluster(t, "http")
	a, b := c.open(t), c.open(t)
	unlock, err := a.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error)
	go func() {
		_, err := b.Lock(context.Background(), "a")
		waiting <- err
	}()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	wantError(t, <-waiting, store.ErrUnavailable)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	wantError(t, unlock(t.Context()), store.ErrUnavailable)
}
