package join

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"dstack.host/tunnel"
)

// keyFile holds the WireGuard key in the text form of wg(8).
const keyFile = "wireguard.key"

// privateKey returns the WireGuard key that is kept in dir, made when there is none yet; without a dir, a fresh one that lives as
// long as the process. unlock lets another process have the key.
func privateKey(dir string) (key tunnel.PrivateKey, unlock func(), err error) {
	if dir == "" {
		return tunnel.NewPrivateKey(), func() {}, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return key, nil, err
	}
	if err := private(dir); err != nil {
		return key, nil, err
	}
	if unlock, err = lock(dir); err != nil {
		return key, nil, err
	}
	if key, err = keptKey(filepath.Join(dir, keyFile)); err != nil {
		unlock()
		return key, nil, err
	}
	return key, unlock, nil
}

// keptKey reads the key, or makes it.
func keptKey(file string) (tunnel.PrivateKey, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key := tunnel.NewPrivateKey()
		return key, writeSecret(file, base64.StdEncoding.EncodeToString(key[:])+"\n")
	}
	if err == nil {
		err = private(file)
	}
	if err != nil {
		return tunnel.PrivateKey{}, err
	}
	key, err := tunnel.ParsePrivateKey(strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		return key, fmt.Errorf("%s: %w; remove it to join with a new key", file, err)
	}
	return key, nil
}

// private refuses what others than the owner may read or write.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s can be used by others than its owner (mode %04o): chmod go= %s", path, mode, path)
	}
	return nil
}

// lock keeps a second process from the same key: the two would fight for one tunnel.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: another process uses it (%w)", dir, err)
	}
	return func() { _ = f.Close() }, nil
}

// writeSecret makes a file that is there in full or not at all, also after a power cut.
func writeSecret(file, text string) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
