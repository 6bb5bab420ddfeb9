package store_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"dstack.host/gateway/store"
)

func TestLoadKeyMakesAFileOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cluster.key")
	keys := make([]store.Key, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], err = store.LoadKey(file); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, key := range keys {
		if key != keys[0] || key == (store.Key{}) {
			t.Fatal("keys differ")
		}
	}
	raw, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(raw, keys[0][:]) {
		t.Errorf("file of %d bytes, error %v", len(raw), err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != fs.FileMode(0o600) {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, error %v", left, err)
	}
}

func TestLoadKeyRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		content []byte
		mode    fs.FileMode
		want    string
	}{
		"short":         {make([]byte, 31), 0o600, "31 bytes"},
		"line end":      {make([]byte, 33), 0o600, "33 bytes"},
		"hex":           {bytes.Repeat([]byte("ab"), 32), 0o600, "64 bytes"},
		"empty":         {nil, 0o600, "0 bytes"},
		"zero":          {make([]byte, 32), 0o600, "all zero"},
		"group reads":   {bytes.Repeat([]byte{1}, 32), 0o640, "chmod 600"},
		"others write":  {bytes.Repeat([]byte{1}, 32), 0o602, "chmod 600"},
		"a directory":   {nil, fs.ModeDir | 0o700, "not a regular file"},
		"no directory":  {nil, fs.ModeIrregular, "no such file"},
		"readable only": {bytes.Repeat([]byte{1}, 32), 0o400, ""},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "key")
			switch {
			case c.mode == fs.ModeIrregular:
				file = filepath.Join(file, "key")
			case c.mode.IsDir():
				if err := os.Mkdir(file, 0o700); err != nil {
					t.Fatal(err)
				}
			default:
				if err := os.WriteFile(file, c.content, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(file, c.mode); err != nil {
					t.Fatal(err)
				}
			}
			_, err := store.LoadKey(file)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestKeyDoesNotShow(t *testing.T) {
	key := store.Key(bytes.Repeat([]byte{0xab}, 32))
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", key)
	_, jsonErr := json.Marshal(store.Config{Key: key}.Key)
	for _, s := range []string{
		fmt.Sprint(key), fmt.Sprintf("%x %d %q %v %+v %#v", key, key, key, key, key, key),
		fmt.Sprintf("%+v %#v", store.Config{Key: key}, store.Config{Key: key}), log.String(),
	} {
		if strings.Contains(s, "abab") || strings.Contains(s, "171") || strings.Contains(s, "xab") {
			t.Errorf("shows %s", s)
		}
	}
	if jsonErr == nil {
		t.Error("has a JSON form")
	}
}
