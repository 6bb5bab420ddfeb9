package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// keyText is the length of a key in the text form of wg(8): 32 octets in standard base64 with padding.
const keyText = 44

const redacted = "(private key)"

// PublicKey is a Curve25519 public key, the identity of a peer. The zero value is no key.
type PublicKey [32]byte

// PrivateKey is a Curve25519 private key. Every way of printing, logging or marshalling it shows a fixed text or is an
// error; the octets are reached only by indexing. The zero value is no key.
type PrivateKey [32]byte

// fieldPrime is 2^255-19 in little-endian order, the modulus of the coordinates (RFC 7748 section 4.1).
var fieldPrime = func() (p [32]byte) {
	for i := range p {
		p[i] = 0xff
	}
	p[0], p[31] = 0xed, 0x7f
	return p
}()

// smallOrder are all canonical coordinates of points whose order divides the cofactor, on the curve and its twist: every private key takes
// them to zero. A table, because a multiplication on the curve for each registration would be a third of its cost.
var smallOrder = [...]PublicKey{
	{}, // order 2, and infinity
	{1},
	{0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
	{0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00},
	{0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57},
}

// NewPrivateKey returns a fresh random key, clamped as RFC 7748 section 5 says.
func NewPrivateKey() PrivateKey {
	var k PrivateKey
	rand.Read(k[:]) // never fails: crypto/rand ends the program instead
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// ParsePrivateKey reads the text form of wg(8). The error never repeats the text.
func ParsePrivateKey(s string) (PrivateKey, error) {
	raw, err := parseKey(s)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("private key: %w", err)
	}
	if raw == [32]byte{} {
		return PrivateKey{}, errors.New("private key: all zero")
	}
	return PrivateKey(raw), nil
}

// ParsePublicKey reads the text form of wg(8): 44 characters, standard base64 in its only canonical spelling. It
// refuses octets that are no canonical field element (two spellings would be one key, so a comparison of keys could be
// evaded) and the points of small order (RFC 7748 section 6.1: everybody knows the secret shared with them).
func ParsePublicKey(s string) (PublicKey, error) {
	raw, err := parseKey(s)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key: %w", err)
	}
	if err := PublicKey(raw).check(); err != nil {
		return PublicKey{}, fmt.Errorf("public key: %w", err)
	}
	return PublicKey(raw), nil
}

// parseKey decodes the text strictly. The length is checked first: the decoder skips line breaks.
func parseKey(s string) (raw [32]byte, err error) {
	if len(s) != keyText {
		return raw, fmt.Errorf("%d characters, want %d of standard base64", len(s), keyText)
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(raw) {
		return raw, errors.New("not 32 octets in canonical standard base64")
	}
	return [32]byte(b), nil
}

// check tells why k can't be the key of a peer.
func (k PublicKey) check() error {
	if !canonical(k) {
		return errors.New("not a canonical Curve25519 coordinate")
	}
	for _, p := range &smallOrder {
		if k == p {
			return errors.New("a point of small order")
		}
	}
	return nil
}

// canonical reports whether k, little-endian, is below the field's prime.
func canonical(k PublicKey) bool {
	for i := len(k) - 1; i >= 0; i-- {
		if k[i] != fieldPrime[i] {
			return k[i] < fieldPrime[i]
		}
	}
	return false
}

// String returns the text form of wg(8).
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText returns the text form of wg(8).
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText is [ParsePublicKey].
func (k *PublicKey) UnmarshalText(text []byte) (err error) {
	*k, err = ParsePublicKey(string(text))
	return err
}

// PublicKey returns the public half. The zero private key has the zero public key.
func (k PrivateKey) PublicKey() PublicKey {
	if k == (PrivateKey{}) {
		return PublicKey{}
	}
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return PublicKey{} // unreachable: any 32 octets are a private key
	}
	return PublicKey(private.PublicKey().Bytes())
}

// String does not show the key.
func (k PrivateKey) String() string { return redacted }

// GoString does not show the key.
func (k PrivateKey) GoString() string { return redacted }

// Format does not show the key, whatever the verb.
func (k PrivateKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue does not show the key.
func (k PrivateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText is an error: without it the JSON form of a struct would list the octets.
func (k PrivateKey) MarshalText() ([]byte, error) {
	return nil, errors.New("a private key has no text form")
}
