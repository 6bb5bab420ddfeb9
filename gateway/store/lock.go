package store

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// lockTTL is how long a lock outlives a holder that dies or loses etcd.
const lockTTL = 15 * time.Second

// Lock waits until no other caller in the cluster holds the lock of this name, or ctx ends. The lock is held until
// unlock is called, which must happen; if this process loses etcd for more than 15 s, others may get it before.
// Waiters get it in no particular order.
func (s *Store) Lock(ctx context.Context, name string) (unlock func(context.Context) error, err error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.calls.Done()
	key := s.prefix + locksDir + s.Blind("lock", []byte(name))
	for {
		lease, holder, err := s.tryLock(ctx, key)
		switch {
		case err != nil:
			return nil, fmt.Errorf("lock %s: %w", name, err)
		case holder == 0:
			return s.hold(name, lease), nil
		}
		if err := s.awaitDelete(ctx, key, holder); err != nil {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
	}
}

// tryLock takes the lock, bound to a fresh lease, and otherwise returns the revision at which another holds it.
func (s *Store) tryLock(ctx context.Context, key string) (lease clientv3.LeaseID, holder int64, err error) {
	err = s.call(ctx, func(ctx context.Context) error {
		grant, err := s.client.Grant(ctx, int64(lockTTL/time.Second))
		if err != nil {
			return err
		}
		lease = grant.ID
		answer, err := s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, "", clientv3.WithLease(lease))).
			Commit()
		if err == nil && !answer.Succeeded {
			holder = answer.Header.Revision
		}
		return err
	})
	if lease != 0 && (err != nil || holder != 0) {
		s.revoke(ctx, lease)
	}
	return lease, holder, err
}

// awaitDelete waits for the key to go after a revision.
func (s *Store) awaitDelete(ctx context.Context, key string, after int64) error {
	scoped, cancel := s.scope(ctx)
	defer cancel()
	events := s.client.Watch(clientv3.WithRequireLeader(scoped), key, clientv3.WithRev(after+1), clientv3.WithFilterPut())
	for change := range events {
		if change.Err() != nil || len(change.Events) > 0 {
			break // whatever it is, the next attempt tells
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case scoped.Err() != nil:
		return fmt.Errorf("%w: the store is closed", ErrUnavailable)
	}
	return nil
}

// hold keeps the lease alive until the returned function is called or the store is closed.
func (s *Store) hold(name string, lease clientv3.LeaseID) func(context.Context) error {
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan struct{})
	s.calls.Go(func() {
		defer close(done)
		beats, err := s.client.KeepAlive(ctx, lease)
		if err != nil {
			return
		}
		for range beats {
		}
	})
	return func(ctx context.Context) error {
		cancel()
		<-done
		if err := s.revoke(ctx, lease); err != nil {
			return fmt.Errorf("unlock %s: %w", name, err)
		}
		return nil
	}
}

// revoke ends a lease, and with it the lock. If etcd does not answer, the lease runs out by itself.
func (s *Store) revoke(ctx context.Context, lease clientv3.LeaseID) error {
	return s.call(context.WithoutCancel(ctx), func(ctx context.Context) error {
		_, err := s.client.Revoke(ctx, lease)
		return err
	})
}
