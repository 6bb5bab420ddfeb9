package ratls

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// Hex is bytes whose text form is hex: written in lower case without a prefix, read in either case.
type Hex []byte

// MarshalText renders lower-case hex; nil renders as "".
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode([]byte{}, h), nil }

// UnmarshalText reads hex of even length.
func (h *Hex) UnmarshalText(text []byte) error {
	raw, err := hex.AppendDecode([]byte{}, text)
	if err != nil {
		return fmt.Errorf("not hex: %w", err)
	}
	*h = raw
	return nil
}

// Base64 is bytes whose text form is standard base64 with padding.
type Base64 []byte

// MarshalText renders base64; nil renders as "", which JSON's own form of a nil slice (null) is not.
func (b Base64) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode([]byte{}, b), nil
}

// UnmarshalText reads base64 in its one canonical form: no line breaks, no bits left over.
func (b *Base64) UnmarshalText(text []byte) error {
	raw, err := base64.StdEncoding.Strict().AppendDecode([]byte{}, text)
	if err != nil {
		return fmt.Errorf("not base64: %w", err)
	}
	if base64.StdEncoding.EncodedLen(len(raw)) != len(text) {
		return fmt.Errorf("not base64: line breaks in it")
	}
	*b = raw
	return nil
}

// Digest is a SHA-256 in lower-case hex, the only form that it is read in.
type Digest [sha256.Size]byte

// MarshalText renders lower-case hex.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads 64 digits of lower-case hex.
func (d *Digest) UnmarshalText(text []byte) error {
	raw, err := lowerHex(string(text), len(d))
	if err != nil {
		return err
	}
	copy(d[:], raw)
	return nil
}

// String renders lower-case hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// lowerHex reads exactly size bytes of lower-case hex.
func lowerHex(text string, size int) ([]byte, error) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != size || hex.EncodeToString(raw) != text {
		return nil, fmt.Errorf("%q is not %d digits of lower-case hex", shorten(text), hex.EncodedLen(size))
	}
	return raw, nil
}

// marshal writes v as compact JSON that keeps <, > and & as they are.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
