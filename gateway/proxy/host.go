package proxy

import (
	"errors"
	"strconv"
	"strings"
)

// canonicalHost folds a DNS host name to lower case and checks it: labels of 1 to 63 letters, digits and inner hyphens, at most 253
// octets, no trailing dot (RFC 1123 section 2.1; RFC 6066 section 3 forbids the dot in SNI).
func canonicalHost(s string) (string, bool) {
	if s == "" || len(s) > 253 {
		return "", false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return "", false
		}
	}
	return strings.ToLower(s), true
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return true
}

var (
	errAuthority = errors.New("malformed authority")
	errForeign   = errors.New("authority is not served here")
)

// parseAuthority reads a Host or :authority value: a host name and an optional port of 1 to 65535, which is checked and then ignored (the
// listener may stand behind a forwarded port). errForeign means well-formed but nothing that could be served here: an address
// literal, a trailing dot, a label that DNS cannot hold.
func parseAuthority(s string) (host string, err error) {
	if s == "" || strings.ContainsFunc(s, notAuthority) {
		return "", errAuthority
	}
	host, port, found := s, "", false
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, port, found = s[:i], s[i+1:], true
	}
	if found && !validPort(port) {
		return "", errAuthority
	}
	host, ok := canonicalHost(host)
	if !ok {
		return "", errForeign
	}
	return host, nil
}

// notAuthority reports characters that no host or port contains (RFC 3986 section 3.2.2); user information ("@") is refused with them.
func notAuthority(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune("/\\?#@\"<>^`{|},", r)
}

func validPort(s string) bool {
	if s == "" || len(s) > 5 || s[0] == '0' {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}
