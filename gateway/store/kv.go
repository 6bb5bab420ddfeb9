package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Entry is one stored value.
type Entry struct {
	Path     string
	Value    []byte
	Revision int64 // of etcd, when this value was written
}

const (
	// valuesDir holds the sealed values below the prefix, locksDir the locks. They are apart so that every key below
	// the one is a sealed value.
	valuesDir = "values/"
	locksDir  = "locks/"

	pageSize = 500
	// attempts bounds how often something is tried again that others got in between.
	attempts = 4
)

func (s *Store) key(path string) string { return s.prefix + valuesDir + path }

func (s *Store) path(key []byte) string {
	return strings.TrimPrefix(string(key), s.prefix+valuesDir)
}

// Get returns the value at path, or ErrNotFound. A value that is not authentic is alarmed, and ErrTampered.
func (s *Store) Get(ctx context.Context, path string) (Entry, error) {
	if err := checkPath(path); err != nil {
		return Entry{}, err
	}
	for range attempts {
		var answer *clientv3.GetResponse
		err := s.call(ctx, func(ctx context.Context) (err error) {
			answer, err = s.client.Get(ctx, s.key(path))
			return err
		})
		switch {
		case err != nil:
			return Entry{}, fmt.Errorf("get %s: %w", path, err)
		case len(answer.Kvs) == 0:
			return Entry{}, fmt.Errorf("get %s: %w", path, ErrNotFound)
		}
		entry, verdict, err := s.unseal(answer.Kvs[0])
		switch {
		case err != nil:
			s.alarm(path, err)
			return Entry{}, fmt.Errorf("get %s: %w", path, err)
		case verdict == current:
			return entry, nil
		}
		// Another call or a watch may have seen a newer value while this answer was on its way. An answer to a question
		// that is asked after that must have it.
	}
	s.alarm(path, errRolledBack)
	return Entry{}, fmt.Errorf("get %s: %w", path, errRolledBack)
}

// unseal opens a value and compares it with what this process has seen at its path.
func (s *Store) unseal(kv *mvccpb.KeyValue) (Entry, verdict, error) {
	value, version, err := s.sealer.open(string(kv.Key), kv.Value)
	if err != nil {
		return Entry{}, 0, err
	}
	path := s.path(kv.Key)
	return Entry{Path: path, Value: value, Revision: kv.ModRevision}, s.versions.note(path, version, kv.ModRevision), nil
}

// List returns all entries whose path begins with prefix, in the order of their paths, as they were at one revision
// of etcd, which it returns too. Values that are not authentic are alarmed and left out.
func (s *Store) List(ctx context.Context, prefix string) ([]Entry, int64, error) {
	l, err := s.list(ctx, prefix)
	return l.entries, l.revision, err
}

type listing struct {
	entries  []Entry
	skipped  []string // paths of values that are not authentic
	revision int64
}

func (s *Store) list(ctx context.Context, prefix string) (listing, error) {
	var l listing
	var err error
	for range attempts {
		l, err = s.listPages(ctx, prefix)
		if !errors.Is(err, rpctypes.ErrCompacted) { // the revision of the first page, while reading the others
			break
		}
	}
	if err != nil {
		return listing{}, fmt.Errorf("list %s: %w", prefix, err)
	}
	return l, nil
}

func (s *Store) listPages(ctx context.Context, prefix string) (listing, error) {
	var l listing
	from := s.key(prefix)
	end := clientv3.GetPrefixRangeEnd(from)
	for {
		var page *clientv3.GetResponse
		err := s.call(ctx, func(ctx context.Context) (err error) {
			page, err = s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(l.revision))
			return err
		})
		if err != nil {
			return listing{}, err
		}
		if l.revision == 0 {
			l.revision = page.Header.Revision
		}
		for _, kv := range page.Kvs {
			if err := s.listOne(ctx, &l, kv); err != nil {
				return listing{}, err
			}
		}
		if !page.More || len(page.Kvs) == 0 {
			return l, nil
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}

// listOne adds one value. For one that is older than what this process has seen it asks again: either etcd then has a
// newer one, or the old one is all it has.
func (s *Store) listOne(ctx context.Context, l *listing, kv *mvccpb.KeyValue) error {
	path := s.path(kv.Key)
	entry, verdict, err := s.unseal(kv)
	if err != nil {
		s.alarm(path, err)
		l.skipped = append(l.skipped, path)
		return nil
	}
	if verdict == current {
		l.entries = append(l.entries, entry)
		return nil
	}
	entry, err = s.Get(ctx, path)
	switch {
	case err == nil:
		l.entries = append(l.entries, entry)
	case errors.Is(err, ErrTampered):
		l.skipped = append(l.skipped, path)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	return nil
}
