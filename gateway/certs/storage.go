package certs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"

	"dstack.host/gateway/store"
)

const (
	// storePrefix is where everything of this package lies in the store.
	storePrefix = "certs/"
	// unlockTimeout bounds the release of a lock, which must be tried even when the work was cancelled.
	unlockTimeout = 10 * time.Second
)

// vault is where certificates are kept: a certmagic.Storage that can also create.
type vault interface {
	certmagic.Storage
	// create puts value at key unless something is there, and returns what is there then.
	create(ctx context.Context, key string, value []byte) ([]byte, error)
	// watch calls changed with the key of every certificate file that is there and that is stored, until ctx ends.
	watch(ctx context.Context, changed func(key string)) error
}

// storage is a certmagic.Storage over the store: key "a/b" is the entry "certs/a/b". Directories exist as long as a key
// lies below them, and keys that are no clean relative path are refused. Safe for concurrent use.
type storage struct {
	store *store.Store

	mu    sync.Mutex            // guards locks
	locks map[string]*namedLock // by name; an entry stays once made, and there are few names
}

// namedLock is a lock within this process, and the lock in the store that its holder holds.
type namedLock struct {
	sem    chan struct{}               // holds one token while the lock is held
	unlock func(context.Context) error // owned by whoever holds the token
}

var _ vault = (*storage)(nil)

func newStorage(s *store.Store) *storage {
	return &storage{store: s, locks: make(map[string]*namedLock)}
}

// path maps a certmagic key to a path in the store.
func path(key string) (string, error) {
	if !fs.ValidPath(key) || key == "." {
		return "", fmt.Errorf("storage key %q: %w", key, fs.ErrInvalid)
	}
	return storePrefix + key, nil
}

// Store puts value at key, whatever is there.
func (s *storage) Store(ctx context.Context, key string, value []byte) error {
	p, err := path(key)
	if err != nil {
		return err
	}
	_, err = s.store.Commit(ctx, nil, []store.Op{store.Put(p, value)})
	return err
}

// create is atomic: of nodes that create at the same time one wins, and all return its value.
func (s *storage) create(ctx context.Context, key string, value []byte) ([]byte, error) {
	p, err := path(key)
	if err != nil {
		return nil, err
	}
	_, err = s.store.Commit(ctx, []store.Cond{{Path: p}}, []store.Op{store.Put(p, value)})
	if errors.Is(err, store.ErrConflict) {
		return s.Load(ctx, key)
	}
	return value, err
}

// watch survives etcd being away.
func (s *storage) watch(ctx context.Context, changed func(key string)) error {
	return s.store.Watch(ctx, storePrefix+"certificates/", func(u store.Update) error {
		for _, e := range u.Puts {
			changed(strings.TrimPrefix(e.Path, storePrefix))
		}
		return nil
	})
}

// Load returns the value at key, or an error that is fs.ErrNotExist.
func (s *storage) Load(ctx context.Context, key string) ([]byte, error) {
	p, err := path(key)
	if err != nil {
		return nil, err
	}
	e, err := s.store.Get(ctx, p)
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("storage key %q: %w", key, fs.ErrNotExist)
	}
	return e.Value, err
}

// Delete removes key and every key below it. A key that is not there is no error.
func (s *storage) Delete(ctx context.Context, key string) error {
	p, err := path(key)
	if err != nil {
		return err
	}
	entries, _, err := s.store.List(ctx, p+"/")
	if err != nil {
		return err
	}
	ops := []store.Op{store.Delete(p)}
	for _, e := range entries {
		ops = append(ops, store.Delete(e.Path))
	}
	for batch := range slices.Chunk(ops, store.MaxOps) {
		if _, err := s.store.Commit(ctx, nil, batch); err != nil {
			return err
		}
	}
	return nil
}

// Exists reports whether key is a file or a directory; false also when the store cannot tell.
func (s *storage) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return err == nil
}

// Stat describes key. Modified stays zero: the store keeps revisions, not times.
func (s *storage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	value, err := s.Load(ctx, key)
	if err == nil {
		return certmagic.KeyInfo{Key: key, Size: int64(len(value)), IsTerminal: true}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return certmagic.KeyInfo{}, err
	}
	if _, err := s.List(ctx, key, false); err != nil {
		return certmagic.KeyInfo{}, err
	}
	return certmagic.KeyInfo{Key: key}, nil
}

// List returns the keys below the directory prefix, sorted: its children, or with recursive all descendants,
// directories included in both cases, as certmagic.FileStorage does. The error is fs.ErrNotExist when there is none.
func (s *storage) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	p, err := path(prefix)
	if err != nil {
		return nil, err
	}
	entries, _, err := s.store.List(ctx, p+"/")
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("storage directory %q: %w", prefix, fs.ErrNotExist)
	}
	below := make([]string, 0, len(entries))
	for _, e := range entries {
		below = append(below, strings.TrimPrefix(e.Path, p+"/"))
	}
	return listing(prefix, below, recursive), nil
}

// listing returns the files and directories that below, paths relative to prefix, imply.
func listing(prefix string, below []string, recursive bool) []string {
	keys := make(map[string]struct{})
	for _, rel := range below {
		for i, r := range rel {
			if r != '/' {
				continue
			}
			keys[prefix+"/"+rel[:i]] = struct{}{}
			if !recursive {
				break
			}
		}
		if recursive || !strings.Contains(rel, "/") {
			keys[prefix+"/"+rel] = struct{}{}
		}
	}
	out := make([]string, 0, len(keys))
	for k := range keys {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// Lock waits for the named lock, first against others in this process, then in the store against other nodes.
func (s *storage) Lock(ctx context.Context, name string) error {
	l := s.lock(name)
	select {
	case l.sem <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	unlock, err := s.store.Lock(ctx, storePrefix+certmagic.StorageKeys.Safe(name))
	if err != nil {
		<-l.sem
		return fmt.Errorf("lock %q: %w", name, err)
	}
	l.unlock = unlock
	return nil
}

// Unlock releases the named lock, even when ctx has ended.
func (s *storage) Unlock(ctx context.Context, name string) error {
	l := s.lock(name)
	if len(l.sem) == 0 {
		return fmt.Errorf("lock %q is not held", name)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
	defer cancel()
	unlock := l.unlock
	l.unlock = nil
	defer func() { <-l.sem }()
	return unlock(ctx)
}

func (s *storage) lock(name string) *namedLock {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.locks[name]
	if !ok {
		l = &namedLock{sem: make(chan struct{}, 1)}
		s.locks[name] = l
	}
	return l
}
