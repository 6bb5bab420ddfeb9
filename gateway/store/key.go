package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// Key is the cluster key: whoever has it can read and forge everything in the store. Every way of
// printing, logging or marshalling it shows a fixed text or is an error.
type Key [32]byte

const redacted = "(cluster key)"

// String does not show the key.
func (Key) String() string { return redacted }

// Format does not show the key, whatever the verb.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue does not show the key.
func (Key) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText is an error: without it the JSON form of a struct would list the octets.
func (Key) MarshalText() ([]byte, error) { return nil, errors.New("a cluster key has no text form") }

// LoadKey reads the cluster key, 32 raw bytes, from a file that only its owner may access. An absent file is made
// with a fresh key and mode 0600, in an existing directory; of two processes that do so at once both get the same key.
func LoadKey(file string) (Key, error) {
	key, err := readKey(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := createKey(file); err != nil && !errors.Is(err, fs.ErrExist) {
		return Key{}, fmt.Errorf("cluster key: %w", err)
	}
	return readKey(file)
}

func readKey(file string) (Key, error) {
	f, err := os.Open(file)
	if err != nil {
		return Key{}, fmt.Errorf("cluster key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Key{}, fmt.Errorf("cluster key: %w", err)
	}
	var key Key
	switch {
	case !info.Mode().IsRegular():
		return Key{}, fmt.Errorf("cluster key %s: not a regular file", file)
	case info.Mode().Perm()&0o077 != 0:
		return Key{}, fmt.Errorf("cluster key %s: mode %#o lets others read it; chmod 600 it", file, info.Mode().Perm())
	case info.Size() != int64(len(key)):
		return Key{}, fmt.Errorf("cluster key %s: %d bytes instead of %d; it holds the raw key, without a line end", file, info.Size(), len(key))
	}
	if _, err := io.ReadFull(f, key[:]); err != nil {
		return Key{}, fmt.Errorf("cluster key %s: %w", file, err)
	}
	if key == (Key{}) {
		return Key{}, fmt.Errorf("cluster key %s: all zero", file)
	}
	return key, nil
}

// createKey writes the whole key to a temporary file and links it to its name, which fails when the name exists.
func createKey(file string) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	var key Key
	rand.Read(key[:]) // never fails
	_, err = tmp.Write(key[:])
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Link(tmp.Name(), file)
}
