package store

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Cond is a condition of a commit: the entry at Path has this revision, or, with 0, does not exist.
type Cond struct {
	Path     string
	Revision int64
}

// Op is one change: make one with [Put] or [Delete].
type Op struct {
	path  string
	value []byte
	del   bool
}

// Put stores value at path. The value is read when the operation is committed.
func Put(path string, value []byte) Op { return Op{path: path, value: value} }

// Delete removes what is at path, if anything.
func Delete(path string) Op { return Op{path: path, del: true} }

// Commit makes all changes at once if all conditions hold, and returns the revision of etcd that has them. If a
// condition does not hold, it changes nothing and returns ErrConflict with the revision at which it did not.
func (s *Store) Commit(ctx context.Context, conds []Cond, ops []Op) (int64, error) {
	if err := checkCommit(conds, ops); err != nil {
		return 0, err
	}
	var revision int64
	for range attempts {
		var result outcome
		err := s.call(ctx, func(ctx context.Context) (err error) {
			revision, result, err = s.tryCommit(ctx, conds, ops)
			return err
		})
		switch {
		case err != nil:
			return 0, fmt.Errorf("commit: %w", err)
		case result == committed:
			return revision, nil
		case result == refused:
			return revision, fmt.Errorf("commit: %w", ErrConflict)
		}
	}
	return revision, fmt.Errorf("commit: %w", ErrConflict)
}

func checkCommit(conds []Cond, ops []Op) error {
	var faults []error
	if len(ops) == 0 || len(ops) > MaxOps || len(conds) > MaxOps {
		faults = append(faults, fmt.Errorf("store: a commit has 1 to %d operations and up to %d conditions, not %d and %d", MaxOps, MaxOps, len(ops), len(conds)))
	}
	for _, c := range conds {
		faults = append(faults, checkPath(c.Path))
	}
	paths := make(map[string]bool, len(ops))
	size := 0
	for _, op := range ops {
		size += len(op.value)
		faults = append(faults, checkPath(op.path))
		if paths[op.path] {
			faults = append(faults, fmt.Errorf("store: two operations on %s in one commit", op.path))
		}
		paths[op.path] = true
	}
	if size > MaxValue {
		faults = append(faults, fmt.Errorf("store: %d bytes in one commit are more than %d", size, MaxValue))
	}
	return errors.Join(faults...)
}

type outcome int

const (
	overtaken outcome = iota // a path changed between the reading and the writing
	refused                  // a condition does not hold
	committed
)

// tryCommit reads what is there, checks the conditions, and writes if nothing has changed since. The reading is
// needed for the versions of the new values, also where there are no conditions.
func (s *Store) tryCommit(ctx context.Context, conds []Cond, ops []Op) (int64, outcome, error) {
	found, revision, err := s.read(ctx, conds, ops)
	if err != nil {
		return 0, 0, err
	}
	for _, c := range conds {
		if found[c.Path].GetModRevision() != c.Revision {
			return revision, refused, nil
		}
	}
	versions := make([]uint64, len(ops))
	changes := make([]clientv3.Op, len(ops))
	for i, op := range ops {
		if op.del {
			changes[i] = clientv3.OpDelete(s.key(op.path))
			continue
		}
		versions[i] = s.versions.next(op.path, s.storedVersion(found[op.path]), revision)
		changes[i] = clientv3.OpPut(s.key(op.path), string(s.sealer.seal(s.key(op.path), versions[i], op.value)))
	}
	unchanged := make([]clientv3.Cmp, 0, len(found))
	for path, kv := range found {
		unchanged = append(unchanged, clientv3.Compare(clientv3.ModRevision(s.key(path)), "=", kv.GetModRevision()))
	}
	answer, err := s.client.Txn(ctx).If(unchanged...).Then(changes...).Commit()
	switch {
	case err != nil:
		return 0, 0, err
	case !answer.Succeeded:
		return answer.Header.Revision, overtaken, nil
	}
	for i, op := range ops {
		if op.del {
			s.versions.noteDelete(op.path, answer.Header.Revision)
		} else {
			s.versions.note(op.path, versions[i], answer.Header.Revision)
		}
	}
	return answer.Header.Revision, committed, nil
}

// read returns what is at the paths of the conditions and of the values to be put, at one revision. A path with
// nothing has a nil entry. Only for paths that are put the value is there.
func (s *Store) read(ctx context.Context, conds []Cond, ops []Op) (map[string]*mvccpb.KeyValue, int64, error) {
	found := make(map[string]*mvccpb.KeyValue)
	var gets []clientv3.Op
	for _, op := range ops {
		if !op.del {
			found[op.path] = nil
			gets = append(gets, clientv3.OpGet(s.key(op.path)))
		}
	}
	for _, c := range conds {
		if _, ok := found[c.Path]; !ok {
			found[c.Path] = nil
			gets = append(gets, clientv3.OpGet(s.key(c.Path), clientv3.WithKeysOnly()))
		}
	}
	if len(gets) == 0 {
		return found, 0, nil
	}
	answer, err := s.client.Txn(ctx).Then(gets...).Commit()
	if err != nil {
		return nil, 0, err
	}
	for _, r := range answer.Responses {
		for _, kv := range r.GetResponseRange().GetKvs() {
			found[s.path(kv.Key)] = kv
		}
	}
	return found, answer.Header.Revision, nil
}

// storedVersion returns the version of a value, 0 for none and for one that does not open: it is about to be
// overwritten, and what it says of itself counts for nothing.
func (s *Store) storedVersion(kv *mvccpb.KeyValue) uint64 {
	if kv == nil {
		return 0
	}
	_, version, err := s.sealer.open(string(kv.Key), kv.Value)
	if err != nil {
		return 0
	}
	return version
}
