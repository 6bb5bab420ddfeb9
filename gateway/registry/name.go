package registry

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Kind says what the id of a [Name] is looked up as.
type Kind uint8

const (
	// KindID is an app id or an instance id; only the registry can tell which.
	KindID Kind = iota + 1
	// KindCompose is a compose hash: it reaches only instances that run exactly that code.
	KindCompose
)

// Name is a parsed host label. Names are comparable; two spellings of one label give the same Name.
type Name struct {
	ID          string // canonical: 40 lower-case hex digits, or 52 lower-case base32 characters
	Kind        Kind
	Port        uint16 // of the app, never 0
	Passthrough bool   // suffix s: the app terminates TLS itself
	HTTP2       bool   // suffix g: the app speaks HTTP/2
}

// Ports where a label names none (dstack 0.6 gateway/src/proxy.rs).
const (
	defaultPort            = 80
	defaultPassthroughPort = 443
)

// ParseLabel reads the leftmost label of a host name, <id>[-<port>][s|g].
//
// The id is an app or instance id (40 hex digits, with or without 0x) or a compose hash (52 base32 characters), in
// any case. The port is decimal, 1 to 65535, without sign and leading zeros; without one it is 443 for passthrough
// and else 80. The suffix may follow the port, the hyphen or the id itself: all ids have a fixed length, so it is
// never mistaken for a part of one. The grammar is that of dstack 0.6 gateway/src/proxy.rs, narrowed to these ids
// and to ports that exist.
func ParseLabel(label string) (Name, error) {
	id, rest, hyphen := strings.Cut(label, "-")
	if !hyphen {
		id, rest = splitID(label)
	}
	n, err := parseID(id)
	if err != nil {
		return Name{}, err
	}
	if hyphen && rest == "" {
		return Name{}, errors.New("nothing follows the hyphen; write <id>-<port>")
	}
	if err := n.parseRest(rest); err != nil {
		return Name{}, err
	}
	return n, nil
}

// CanonicalLabel returns the canonical id in a label, which is how the registry lists it, and false for a label that
// is no name of an app: "0xAB…-8080s" becomes "ab…".
func CanonicalLabel(label string) (string, bool) {
	n, err := ParseLabel(label)
	return n.ID, err == nil
}

// splitID cuts one trailing suffix letter from a label without hyphen, when what is left has the length of an id.
func splitID(label string) (id, rest string) {
	cut := len(label) - 1
	if cut < 1 || !isSuffix(label[cut]) {
		return label, ""
	}
	if n := len(trimHexPrefix(label[:cut])); n != hexLen && cut != base32Len {
		return label, ""
	}
	return label[:cut], label[cut:]
}

func isSuffix(c byte) bool {
	c |= 0x20
	return c == 's' || c == 'g'
}

func parseID(s string) (Name, error) {
	if len(s) == base32Len {
		if _, err := ParseComposeHash(s); err != nil {
			return Name{}, err
		}
		return Name{ID: strings.ToLower(s), Kind: KindCompose}, nil
	}
	digits := trimHexPrefix(s)
	switch len(digits) {
	case hexLen:
	case 2 * len(ComposeHash{}):
		return Name{}, errors.New("64 characters do not fit a host name; write a compose hash as 52 characters of base32")
	default:
		return Name{}, fmt.Errorf("%q is neither an id (40 hex digits) nor a compose hash (52 base32 characters)", clip(s))
	}
	if _, err := parseHex(digits); err != nil {
		return Name{}, err
	}
	return Name{ID: strings.ToLower(digits), Kind: KindID}, nil
}

// parseRest reads [<port>][s|g].
func (n *Name) parseRest(rest string) error {
	if last := len(rest) - 1; last >= 0 && isSuffix(rest[last]) {
		n.Passthrough = rest[last]|0x20 == 's'
		n.HTTP2 = !n.Passthrough
		rest = rest[:last]
		if last > 0 && isSuffix(rest[last-1]) {
			return errors.New("only one of the suffixes s and g is possible")
		}
	}
	if rest == "" {
		n.Port = defaultPort
		if n.Passthrough {
			n.Port = defaultPassthroughPort
		}
		return nil
	}
	port, err := parsePort(rest)
	n.Port = port
	return err
}

func parsePort(s string) (uint16, error) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, fmt.Errorf("%q is no port", clip(s))
		}
	}
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("port %s is not between 1 and 65535", clip(s))
	}
	if s[0] == '0' {
		return 0, fmt.Errorf("port %s has a leading zero", clip(s))
	}
	return uint16(port), nil
}

// clip keeps foreign text short in an error.
func clip(s string) string {
	const limit = 80
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}
