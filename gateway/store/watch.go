package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Update is a step of a watch.
type Update struct {
	// Reset says that Puts is everything there is, and replaces what was known.
	Reset bool
	// Puts are new and changed entries, at most one for a path.
	Puts []Entry
	// Deletes are paths where nothing is any more.
	Deletes []string
	// Skipped are, in a Reset, paths of values that are not authentic. Keep what was known of them.
	Skipped []string
	// Revision of etcd that the watcher has reached with this update.
	Revision int64
}

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// Watch calls update with everything whose path begins with prefix, and then with every change to it, in their order,
// until ctx or the store ends, which is no error, or update returns an error, which Watch returns. The calls are made
// one after the other, from this goroutine.
//
// Watch survives etcd being away: it goes on from where it was, and starts over with a Reset only where etcd has
// compacted the changes away. Values that are not authentic are alarmed and never reach update; one that replaces a
// good value leaves the watcher with the good one.
func (s *Store) Watch(ctx context.Context, prefix string, update func(Update) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.calls.Done()
	ctx, cancel := s.scope(ctx)
	defer cancel()
	w := &watcher{store: s, prefix: prefix, update: update}
	for {
		progress := w.next
		err := w.follow(ctx)
		var own *updateError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &own):
			return own.err
		case errors.Is(err, rpctypes.ErrCompacted):
			s.log.Warn("watch starts over", "prefix", prefix, "error", err)
			w.next = 0
			continue
		}
		if w.next != progress {
			w.backoff = 0
		}
		s.log.Warn("watch was interrupted", "prefix", prefix, "error", err)
		if !w.pause(ctx) {
			return nil
		}
	}
}

// updateError is what update returned, apart from what etcd did.
type updateError struct{ err error }

func (e *updateError) Error() string { return e.err.Error() }

type watcher struct {
	store   *Store
	prefix  string
	update  func(Update) error
	next    int64 // revision to go on from; 0: begin with everything
	backoff time.Duration
}

// pause waits, longer every time, and reports whether to go on.
func (w *watcher) pause(ctx context.Context) bool {
	w.backoff = min(max(2*w.backoff, minBackoff), maxBackoff)
	timer := time.NewTimer(w.backoff/2 + rand.N(w.backoff))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// follow delivers updates until something fails, and always returns an error.
func (w *watcher) follow(ctx context.Context) error {
	if w.next == 0 {
		l, err := w.store.list(ctx, w.prefix)
		if err != nil {
			return err
		}
		if err := w.deliver(Update{Reset: true, Puts: l.entries, Skipped: l.skipped, Revision: l.revision}); err != nil {
			return err
		}
	}
	// The channel ends with its context, which must therefore end with this function.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	changes := w.store.client.Watch(ctx, w.store.key(w.prefix), clientv3.WithPrefix(), clientv3.WithRev(w.next))
	for change := range changes {
		if err := change.Err(); err != nil {
			return err
		}
		if len(change.Events) == 0 {
			continue
		}
		if err := w.deliver(w.store.changes(change.Events)); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: watch ended", ErrUnavailable)
}

func (w *watcher) deliver(u Update) error {
	if err := w.update(u); err != nil {
		return &updateError{err}
	}
	w.next = u.Revision + 1
	return nil
}

// changes makes one update of the events of one message. etcd never splits the events of one revision.
func (s *Store) changes(events []*clientv3.Event) Update {
	u := Update{Revision: events[len(events)-1].Kv.ModRevision}
	last := make(map[string]int, len(events)) // the event that counts for a path
	for i, e := range events {
		last[string(e.Kv.Key)] = i
	}
	for i, e := range events {
		switch path := s.path(e.Kv.Key); {
		case e.Type == clientv3.EventTypeDelete:
			s.versions.noteDelete(path, e.Kv.ModRevision)
			if last[string(e.Kv.Key)] == i {
				u.Deletes = append(u.Deletes, path)
			}
		default:
			entry, ok := s.changed(e)
			if ok && last[string(e.Kv.Key)] == i {
				u.Puts = append(u.Puts, entry)
			}
		}
	}
	return u
}

// changed opens a value that etcd announces. One that is merely behind what this process has read elsewhere is left
// out: the newer one follows.
func (s *Store) changed(e *clientv3.Event) (Entry, bool) {
	entry, verdict, err := s.unseal(e.Kv)
	if err == nil && verdict == rolledBack {
		err = errRolledBack
	}
	if err != nil {
		s.alarm(s.path(e.Kv.Key), err)
		return Entry{}, false
	}
	return entry, verdict == current
}
