package store

import (
	"container/list"
	"fmt"
	"sync"
)

// maxTombstones bounds what is remembered of deleted paths; the oldest is forgotten first. Whoever can write to etcd
// and waits for that many deletions can bring a deleted value back.
const maxTombstones = 1 << 16

// seen is the newest state of a path that this process knows.
type seen struct {
	version  uint64 // in the seal of the value, or of the last one before the deletion
	revision int64  // of etcd, when that state came to be
	grave    *list.Element
}

// versions remembers the newest version of every path, to notice when an older one is brought back. The zero value is
// ready; it is safe for concurrent use.
type versions struct {
	mu     sync.Mutex
	paths  map[string]seen
	graves list.List // deleted paths, oldest first
}

type verdict int

const (
	current    verdict = iota // as new as anything seen
	stale                     // older, and etcd says so: the news are on their way
	rolledBack                // older, and etcd presents it as new
)

// note judges a value that opened, and remembers it when it is the newest.
func (v *versions) note(path string, version uint64, revision int64) verdict {
	v.mu.Lock()
	defer v.mu.Unlock()
	last, known := v.paths[path]
	switch {
	case !known || version > last.version:
		v.set(path, seen{version: version, revision: revision})
		return current
	case version == last.version && revision == last.revision && last.grave == nil:
		return current
	case revision < last.revision:
		return stale
	}
	return rolledBack
}

// noteDelete remembers that a path was deleted in this revision.
func (v *versions) noteDelete(path string, revision int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	last, known := v.paths[path]
	if !known || revision <= last.revision {
		return
	}
	v.set(path, seen{version: last.version, revision: revision, grave: v.graves.PushBack(path)})
	for v.graves.Len() > maxTombstones {
		oldest := v.graves.Front()
		delete(v.paths, oldest.Value.(string))
		v.graves.Remove(oldest)
	}
}

// set replaces what is remembered of a path; the caller holds mu.
func (v *versions) set(path string, s seen) {
	if v.paths == nil {
		v.paths = make(map[string]seen)
	}
	if old := v.paths[path].grave; old != nil {
		v.graves.Remove(old)
	}
	v.paths[path] = s
}

// next returns the version for the next value of a path, when stored is the version there now (0: none) and revision
// the one of etcd that was read at. Revisions grow with every change, deletions included, and all nodes agree on
// them: a version above the revision is therefore above every earlier version of the path, also of one that was
// deleted meanwhile, without anybody remembering those.
func (v *versions) next(path string, stored uint64, revision int64) uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return max(stored, v.paths[path].version, uint64(max(revision, 0))) + 1
}

var errRolledBack = fmt.Errorf("%w: this node has seen a newer one", ErrTampered)
