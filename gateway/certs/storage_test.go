package certs_test

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"testing"

	"github.com/caddyserver/certmagic"
	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/certs"
)

// The contract is what certmagic's own storage does with the same calls.
func TestStorageDoesWhatFileStorageDoes(t *testing.T) {
	ours := certs.NewStorage(openStore(t, t.TempDir()))
	theirs := &certmagic.FileStorage{Path: t.TempDir()}

	type outcome struct {
		Value    string
		Keys     []string
		Info     certmagic.KeyInfo
		Found    bool
		NotExist bool
		Failed   bool
	}
	store := func(key, value string) func(certmagic.Storage) outcome {
		return func(s certmagic.Storage) outcome {
			return outcome{Failed: s.Store(t.Context(), key, []byte(value)) != nil}
		}
	}
	load := func(key string) func(certmagic.Storage) outcome {
		return func(s certmagic.Storage) outcome {
			v, err := s.Load(t.Context(), key)
			return outcome{Value: string(v), NotExist: errors.Is(err, fs.ErrNotExist), Failed: err != nil}
		}
	}
	list := func(prefix string, recursive bool) func(certmagic.Storage) outcome {
		return func(s certmagic.Storage) outcome {
			keys, err := s.List(t.Context(), prefix, recursive)
			slices.Sort(keys)
			return outcome{Keys: keys, NotExist: errors.Is(err, fs.ErrNotExist), Failed: err != nil}
		}
	}
	stat := func(key string) func(certmagic.Storage) outcome {
		return func(s certmagic.Storage) outcome {
			info, err := s.Stat(t.Context(), key)
			if !info.IsTerminal {
				info.Size = 0 // a directory's is the file system's affair
			}
			return outcome{Info: certmagic.KeyInfo{Key: info.Key, Size: info.Size, IsTerminal: info.IsTerminal},
				NotExist: errors.Is(err, fs.ErrNotExist), Failed: err != nil}
		}
	}
	exists := func(key string) func(certmagic.Storage) outcome {
		return func(s certmagic.Storage) outcome { return outcome{Found: s.Exists(t.Context(), key)} }
	}
	remove := func(key string) func(certmagic.Storage) outcome {
		return func(s certmagic.Storage) outcome { return outcome{Failed: s.Delete(t.Context(), key) != nil} }
	}

	for _, step := range []struct {
		name string
		do   func(certmagic.Storage) outcome
	}{
		{"load before anything", load("a/b")},
		{"list before anything", list("a", true)},
		{"stat before anything", stat("a")},
		{"delete before anything", remove("a/b")},
		{"store", store("a/b/c.crt", "one")},
		{"store beside", store("a/b/d.key", "two")},
		{"store deeper", store("a/b/e/f.json", "three")},
		{"store elsewhere", store("ab/c", "four")},
		{"store empty", store("a/empty", "")},
		{"load", load("a/b/c.crt")},
		{"load empty", load("a/empty")},
		{"overwrite", store("a/b/c.crt", "five")},
		{"load overwritten", load("a/b/c.crt")},
		{"load missing", load("a/b/x")},
		{"list children", list("a/b", false)},
		{"list descendants", list("a/b", true)},
		{"list top", list("a", false)},
		{"list top descendants", list("a", true)},
		{"a prefix is whole components", list("ab", true)},
		{"list missing", list("a/b/x", false)},
		{"stat file", stat("a/b/c.crt")},
		{"stat directory", stat("a/b")},
		{"stat missing", stat("a/b/x")},
		{"file exists", exists("a/b/c.crt")},
		{"directory exists", exists("a/b")},
		{"part of a component does not exist", exists("a/b/c")},
		{"delete file", remove("a/b/c.crt")},
		{"deleted file", load("a/b/c.crt")},
		{"neighbour stays", load("a/b/d.key")},
		{"delete directory", remove("a")},
		{"deleted directory", exists("a")},
		{"deleted descendant", load("a/b/e/f.json")},
		{"similar name stays", load("ab/c")},
		{"delete again", remove("a")},
	} {
		want, got := step.do(theirs), step.do(ours)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-FileStorage +ours)\n%s", step.name, diff)
		}
	}
}

func TestStorageRefusesUncleanKeys(t *testing.T) {
	s := certs.NewStorage(openStore(t, t.TempDir()))
	for _, key := range []string{"", ".", "/a", "a/", "a//b", "../a", "a/../../b", "a/./b", "\xff"} {
		if err := s.Store(t.Context(), key, []byte("x")); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Store(%q): %v", key, err)
		}
		if _, err := s.Load(t.Context(), key); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Load(%q): %v", key, err)
		}
		if err := s.Delete(t.Context(), key); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Delete(%q): %v", key, err)
		}
		if s.Exists(t.Context(), key) {
			t.Errorf("Exists(%q)", key)
		}
	}
}

func TestStorageDeletesManyKeysAtOnce(t *testing.T) {
	s := certs.NewStorage(openStore(t, t.TempDir()))
	for i := range 250 {
		if err := s.Store(t.Context(), "dir/"+string(rune('a'+i%26))+"/"+string(rune('a'+i/26)), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(t.Context(), "dir"); err != nil {
		t.Fatal(err)
	}
	if s.Exists(t.Context(), "dir") {
		t.Error("directory still exists")
	}
}

func TestStorageLock(t *testing.T) {
	shared := openStore(t, t.TempDir())
	one, other := certs.NewStorage(shared), certs.NewStorage(shared)

	if err := one.Lock(t.Context(), "issue_cert_*.dstack.example"); err != nil {
		t.Fatal(err)
	}
	if err := one.Lock(t.Context(), "another name"); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := one.Lock(ended, "issue_cert_*.dstack.example"); err == nil {
		t.Error("locked twice by one node")
	}

	got := make(chan error, 1)
	go func() { got <- other.Lock(t.Context(), "issue_cert_*.dstack.example") }()
	select {
	case err := <-got:
		t.Fatalf("locked by two nodes: %v", err)
	default:
	}
	// Work that was cancelled must still be able to give its lock back.
	if err := one.Unlock(ended, "issue_cert_*.dstack.example"); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if err := one.Unlock(t.Context(), "issue_cert_*.dstack.example"); err == nil {
		t.Error("unlocked what another node holds")
	}
	for s, name := range map[certmagic.Storage]string{other: "issue_cert_*.dstack.example", one: "another name"} {
		if err := s.Unlock(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
}
