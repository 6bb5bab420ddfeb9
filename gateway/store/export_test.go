package store

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// What somebody with access to etcd itself can do.

func (s *Store) RawGet(ctx context.Context, path string) ([]byte, error) {
	answer, err := s.client.Get(ctx, s.key(path))
	if err != nil || len(answer.Kvs) == 0 {
		return nil, err
	}
	return answer.Kvs[0].Value, nil
}

func (s *Store) RawPut(ctx context.Context, path string, value []byte) error {
	_, err := s.client.Put(ctx, s.key(path), string(value))
	return err
}

func (s *Store) RawDelete(ctx context.Context, path string) error {
	_, err := s.client.Delete(ctx, s.key(path))
	return err
}

// RawDump returns all keys and values of etcd, one after the other.
func (s *Store) RawDump(ctx context.Context) ([]byte, error) {
	answer, err := s.client.Get(ctx, "\x00", clientv3.WithFromKey())
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, kv := range answer.Kvs {
		out = append(append(out, kv.Key...), kv.Value...)
	}
	return out, nil
}

// Compact forgets the history up to a revision.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	_, err := s.client.Compact(ctx, revision, clientv3.WithCompactPhysical())
	return err
}

// Defragment does so whatever the size.
func (s *Store) Defragment(ctx context.Context) error {
	return s.embedded.defragment(ctx, s.client, func(int64, int64) bool { return true })
}

// StopEtcd takes the embedded etcd away underneath an open store.
func (s *Store) StopEtcd() { s.embedded.etcd.Server.Stop() }

var (
	NewZap      = newZap
	NeedsDefrag = needsDefrag
)

// Fatal makes etcd's logger want to end the process.
func Fatal(z *zap.Logger) { z.Fatal("fatal") }

// Versions is the memory of versions on its own.
type Versions struct{ v versions }

func (v *Versions) Note(path string, version uint64, revision int64) string {
	return []string{"current", "stale", "rolled back"}[v.v.note(path, version, revision)]
}

func (v *Versions) NoteDelete(path string, revision int64) { v.v.noteDelete(path, revision) }

func (v *Versions) Next(path string, stored uint64, revision int64) uint64 {
	return v.v.next(path, stored, revision)
}

func (v *Versions) Len() int { return len(v.v.paths) }

const MaxTombstones = maxTombstones

// Open opens a sealed value.
func Unseal(key Key, cluster, path string, sealed []byte) ([]byte, uint64, error) {
	s, err := newSealer(key, cluster)
	if err != nil {
		return nil, 0, err
	}
	return s.open(path, sealed)
}

func Seal(key Key, cluster, path string, version uint64, value []byte) []byte {
	s, err := newSealer(key, cluster)
	if err != nil {
		panic(err)
	}
	return s.seal(path, version, value)
}
