package registry

import (
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
)

// AppID names an app: 20 bytes, written as 40 lower-case hex digits. It is the address of the app's contract, or
// the first 20 bytes of its compose hash where no contract governs it.
type AppID [20]byte

// InstanceID names one confidential VM of an app: 20 bytes, written as 40 lower-case hex digits.
type InstanceID [20]byte

// ComposeHash is the SHA-256 of an app-compose.json, the measured code of an app. It is written as 52 characters of
// unpadded lower-case base32 (RFC 4648 section 6), because the 64 hex digits do not fit the 63 octets of a DNS label
// (RFC 1035 section 2.3.4).
type ComposeHash [32]byte

const (
	hexLen    = 40 // an AppID or InstanceID in hex
	base32Len = 52 // a ComposeHash in base32: 260 bits, the last 4 of them zero
)

var composeEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String returns 40 lower-case hex digits.
func (id AppID) String() string { return hex.EncodeToString(id[:]) }

// String returns 40 lower-case hex digits.
func (id InstanceID) String() string { return hex.EncodeToString(id[:]) }

// String returns 52 lower-case base32 characters.
func (h ComposeHash) String() string { return composeEncoding.EncodeToString(h[:]) }

// MarshalText returns the form of String.
func (id AppID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// MarshalText returns the form of String.
func (id InstanceID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// MarshalText returns the form of String.
func (h ComposeHash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what [ParseAppID] reads.
func (id *AppID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseAppID(string(text))
	return err
}

// UnmarshalText reads what [ParseInstanceID] reads.
func (id *InstanceID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseInstanceID(string(text))
	return err
}

// UnmarshalText reads what [ParseComposeHash] reads.
func (h *ComposeHash) UnmarshalText(text []byte) (err error) {
	*h, err = ParseComposeHash(string(text))
	return err
}

// ParseAppID reads 40 hex digits in any case, with or without 0x in front.
func ParseAppID(s string) (AppID, error) {
	raw, err := parseHex(s)
	return AppID(raw), err
}

// ParseInstanceID reads 40 hex digits in any case, with or without 0x in front.
func ParseInstanceID(s string) (InstanceID, error) {
	raw, err := parseHex(s)
	return InstanceID(raw), err
}

// ParseComposeHash reads 52 characters of unpadded base32 in any case whose four surplus bits are zero, so that a
// hash has one spelling apart from its case.
func ParseComposeHash(s string) (ComposeHash, error) {
	var h ComposeHash
	if len(s) != base32Len {
		return h, fmt.Errorf("a compose hash is %d base32 characters, not %d", base32Len, len(s))
	}
	// Not encoding/base32: it skips line breaks, ignores surplus bits and allocates.
	var bits uint16
	held, n := 0, 0
	for i := range len(s) {
		digit, ok := base32Digit(s[i])
		if !ok {
			return ComposeHash{}, errors.New("a compose hash has only the characters a-z and 2-7")
		}
		bits, held = bits<<5|uint16(digit), held+5
		if held >= 8 {
			held -= 8
			h[n] = byte(bits >> held)
			bits, n = bits&(1<<held-1), n+1
		}
	}
	if bits != 0 {
		return ComposeHash{}, errors.New("a compose hash in base32 ends with a or q: its last four bits are zero")
	}
	return h, nil
}

func base32Digit(c byte) (byte, bool) {
	switch {
	case 'a' <= c && c <= 'z':
		return c - 'a', true
	case 'A' <= c && c <= 'Z':
		return c - 'A', true
	case '2' <= c && c <= '7':
		return c - '2' + 26, true
	}
	return 0, false
}

func parseHex(s string) ([20]byte, error) {
	var id [20]byte
	s = trimHexPrefix(s)
	if len(s) != hexLen {
		return id, fmt.Errorf("an id is %d hex digits, not %d characters", hexLen, len(s))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return [20]byte{}, errors.New("an id has only hex digits")
	}
	return id, nil
}

func trimHexPrefix(s string) string {
	if len(s) >= 2 && s[0] == '0' && s[1]|0x20 == 'x' {
		return s[2:]
	}
	return s
}
