package join_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dstack.host/gateway/join"
	"dstack.host/tunnel"
)

func TestTheKeyIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, unlock, err := join.PrivateKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := join.PrivateKey(dir); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second process: %v", err)
	}
	unlock()
	second, unlock, err := join.PrivateKey(dir)
	if err != nil || first != second {
		t.Errorf("another key after a restart, %v", err)
	}
	unlock()
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "wireguard.key"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", path, info.Mode(), err, want)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v %v, want one file", entries, err)
	}
	if third, _, err := join.PrivateKey(""); err != nil || third == first || third == (tunnel.PrivateKey{}) {
		t.Errorf("in memory: the same key, none, or %v", err)
	}
}

func TestStateThatIsNotSafeIsRefused(t *testing.T) {
	key := strings.Repeat("A", 42) + "E="
	for name, row := range map[string]struct {
		mode    os.FileMode
		text    string
		keyMode os.FileMode
		want    string
	}{
		"folder for all":  {0o755, "", 0, "chmod go="},
		"key for all":     {0o700, key, 0o644, "chmod go="},
		"an empty key":    {0o700, "", 0o600, "remove it"},
		"two keys":        {0o700, key + "\n" + key, 0o600, "remove it"},
		"key of zeros":    {0o700, strings.Repeat("A", 43) + "=", 0o600, "all zero"},
		"text for a key":  {0o700, strings.Repeat("!", 44), 0o600, "base64"},
		"a folder as key": {0o700, "dir", 0, "directory"},
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, "wireguard.key")
		var err error
		if row.text == "dir" {
			err = os.Mkdir(file, 0o700)
		} else if row.keyMode != 0 {
			err = os.WriteFile(file, []byte(row.text), row.keyMode)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, row.mode); err != nil {
			t.Fatal(err)
		}
		if _, _, err := join.PrivateKey(dir); err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
		if row.mode == 0o700 { // a refusal leaves no lock behind
			_ = os.RemoveAll(file)
			if _, unlock, err := join.PrivateKey(dir); err != nil {
				t.Errorf("%s, put right: %v", name, err)
			} else {
				unlock()
			}
		}
	}
}
