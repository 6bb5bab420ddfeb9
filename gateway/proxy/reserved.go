package proxy

import (
	"slices"
	"strings"
)

// AttestationPath is the path that belongs to the gateway on every name it serves; no request for it, however it is spelled, reaches
// an app.
const AttestationPath = "/.well-known/attestation"

// reservedPath reports whether some server or library could read path (the raw bytes before "?") as AttestationPath or as
// something below it, and returns a plain spelling. It errs on the side of the gateway: percent-encoding is undone as often as it
// was applied, backslashes count as slashes, empty and dot segments vanish, path parameters (";x") are dropped, case is ignored.
// Servers disagree about which of several ".." count, so with any of them the two segments in their order are enough.
func reservedPath(path string) (plain string, reserved bool) {
	if !mayBeReserved(path) {
		return "", false
	}
	segments, climbs := pathSegments(decodeFully(path))
	if climbs {
		return AttestationPath, reservedPair(segments)
	}
	rest, ok := belowReserved(segments)
	if !ok && len(segments) > 0 && isSlash(path[0]) && isSlash(path[1]) {
		rest, ok = belowReserved(segments[1:]) // "//host/path", read as a reference with an authority (RFC 3986 section 4.2)
	}
	if !ok {
		return "", false
	}
	return strings.Join(append([]string{AttestationPath}, rest...), "/"), true
}

func isSlash(c byte) bool { return c == '/' || c == '\\' }

// belowReserved returns what follows the reserved path.
func belowReserved(segments []string) (rest []string, ok bool) {
	if len(segments) < 2 || !strings.EqualFold(segments[0], ".well-known") || !strings.EqualFold(segments[1], "attestation") {
		return nil, false
	}
	return segments[2:], true
}

// reservedPair reports whether both segments of the reserved path occur in their order.
func reservedPair(segments []string) bool {
	first := slices.IndexFunc(segments, func(s string) bool { return strings.EqualFold(s, ".well-known") })
	return first >= 0 && slices.ContainsFunc(segments[first:], func(s string) bool { return strings.EqualFold(s, "attestation") })
}

// mayBeReserved is the quick exit for almost every request: a reserved spelling holds either a plain "att" or "ATT" mixture, or an
// escape, or a byte outside ASCII.
func mayBeReserved[T string | []byte](path T) bool {
	if len(path) < len(AttestationPath) {
		return false
	}
	for i := range len(path) {
		c := path[i]
		if c == '%' || c >= 0x80 || c == '\\' {
			return true
		}
		if c|0x20 == 'a' && i+2 < len(path) && path[i+1]|0x20 == 't' && path[i+2]|0x20 == 't' {
			return true
		}
	}
	return false
}

// maxDecodings bounds how many layers of percent-encoding are undone.
const maxDecodings = 8

// decodeFully undoes percent-encoding until nothing changes. Each round shortens the text, so the bound only limits work; what is
// still encoded after it is no path anybody decodes.
func decodeFully(s string) string {
	for range maxDecodings {
		decoded := decodeOnce(s)
		if len(decoded) == len(s) {
			break
		}
		s = decoded
	}
	return s
}

func decodeOnce(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			hi, lo := unhex(s[i+1]), unhex(s[i+2])
			if hi >= 0 && lo >= 0 {
				b = append(b, byte(hi<<4|lo))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}

// pathSegments splits a decoded path at slashes and backslashes and drops empty and dot segments; climbs reports a "..". A segment ends
// before path parameters, and before a NUL, "?" or "#", where C libraries and servers that decode before they split end it.
func pathSegments(path string) (segments []string, climbs bool) {
	for segment := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		if i := strings.IndexAny(segment, ";?#\x00"); i >= 0 {
			segment = segment[:i]
		}
		segment = strings.TrimFunc(segment, func(r rune) bool { return r <= ' ' || r == 0x7f })
		switch segment {
		case "", ".":
		case "..":
			climbs = true
		default:
			segments = append(segments, segment)
		}
	}
	return segments, climbs
}
