package store

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// A sealed value is
//
//	format (1 byte, 1) ‖ version (8 bytes, big endian) ‖ nonce (24 bytes) ‖ ciphertext and tag
//
// with XChaCha20-Poly1305, under a key derived from the cluster key by HKDF-SHA256 (RFC 5869). The nonce is random:
// 24 bytes are enough for that under one key for any number of writes. The associated data are the version, the
// cluster id and the path.
const (
	sealFormat = 1
	sealHeader = 1 + 8
	sealSize   = sealHeader + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
)

// sealer seals and opens values, and blinds path components. Safe for concurrent use.
type sealer struct {
	aead    cipher.AEAD
	blind   []byte
	cluster string
}

func newSealer(key Key, cluster string) (sealer, error) {
	derive := func(use string) []byte {
		out, err := hkdf.Key(sha256.New, key[:], nil, "dstack-gateway store "+use+" v1", 32)
		if err != nil {
			panic("store: hkdf: " + err.Error()) // only for an output of more than 255 hashes
		}
		return out
	}
	aead, err := chacha20poly1305.NewX(derive("seal"))
	return sealer{aead: aead, blind: derive("blind"), cluster: cluster}, err
}

func (s sealer) associated(version uint64, path string) []byte {
	ad := make([]byte, 0, 16+len(s.cluster)+len(path))
	ad = binary.BigEndian.AppendUint64(ad, version)
	ad = binary.BigEndian.AppendUint64(ad, uint64(len(s.cluster)))
	ad = append(ad, s.cluster...)
	return append(ad, path...)
}

// seal returns value sealed for this path and version.
func (s sealer) seal(path string, version uint64, value []byte) []byte {
	out := make([]byte, sealHeader+chacha20poly1305.NonceSizeX, sealSize+len(value))
	out[0] = sealFormat
	binary.BigEndian.PutUint64(out[1:], version)
	nonce := out[sealHeader:]
	rand.Read(nonce) // never fails
	return s.aead.Seal(out, nonce, value, s.associated(version, path))
}

// open returns the value and the version it was sealed with.
func (s sealer) open(path string, sealed []byte) (value []byte, version uint64, err error) {
	version, err = sealedVersion(sealed)
	if err != nil {
		return nil, 0, err
	}
	nonce, box := sealed[sealHeader:sealHeader+chacha20poly1305.NonceSizeX], sealed[sealHeader+chacha20poly1305.NonceSizeX:]
	value, err = s.aead.Open(nil, nonce, box, s.associated(version, path))
	if err != nil {
		return nil, 0, fmt.Errorf("%w: it does not open with the cluster key at this path", ErrTampered)
	}
	return value, version, nil
}

// sealedVersion reads the version without opening.
func sealedVersion(sealed []byte) (uint64, error) {
	switch {
	case len(sealed) < sealSize:
		return 0, fmt.Errorf("%w: %d bytes are too short", ErrTampered, len(sealed))
	case sealed[0] != sealFormat:
		return 0, fmt.Errorf("%w: unknown format %d", ErrTampered, sealed[0])
	}
	return binary.BigEndian.Uint64(sealed[1:]), nil
}

var blindEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Blind returns a path component of 32 characters that stands for id and discloses nothing of it to whoever has no
// cluster key. The kind keeps equal ids of different kinds apart.
func (s *Store) Blind(kind string, id []byte) string { return s.sealer.blinded(kind, id) }

func (s sealer) blinded(kind string, id []byte) string {
	mac := hmac.New(sha256.New, s.blind)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(kind))))
	mac.Write([]byte(kind))
	mac.Write(id)
	return blindEncoding.EncodeToString(mac.Sum(nil)[:20])
}

func checkPath(path string) error {
	if path == "" || len(path) > maxPath {
		return fmt.Errorf("store: a path has 1 to %d bytes, not %d", maxPath, len(path))
	}
	return nil
}
