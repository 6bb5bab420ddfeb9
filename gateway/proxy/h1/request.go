package h1

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"net/netip"
)

// maxMethod is the length from which a method is one that nobody implements (RFC 9112 section 3).
const maxMethod = 32

// reset makes r the request of a client that has not said anything yet.
func (r *Request) reset(addr netip.AddrPort, current Backend) {
	r.lines.reset()
	*r = Request{Addr: addr, Current: current, lines: r.lines, options: options{named: r.options.named[:0]}}
	putHex(r.ID[:16], rand.Uint64()) // ChaCha8, seeded by the system
	putHex(r.ID[16:], rand.Uint64())
}

func putHex(dst []byte, v uint64) {
	for i := range dst {
		dst[i] = "0123456789abcdef"[v>>60]
		v <<= 4
	}
}

// interpret reads the complete head in r.lines.
func (r *Request) interpret() *Error {
	if e := r.requestLine(r.lines.bytes(r.lines.start)); e != nil {
		return e
	}
	if e := r.readFields(); e != nil {
		return e
	}
	if e := r.authority(); e != nil {
		return e
	}
	if r.Minor == 0 {
		r.Close, r.Expect = true, false
	}
	if r.Minor == 0 || r.ContentLength != 0 {
		r.Upgrade = nil
	}
	if r.ContentLength == 0 {
		r.Expect = false
	}
	return nil
}

// requestLine reads "method SP request-target SP HTTP-version" (RFC 9112 section 3).
func (r *Request) requestLine(line []byte) *Error {
	method, rest, ok1 := bytes.Cut(line, []byte{' '})
	target, version, ok2 := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 || len(method) == 0 || !all(method, isToken) || len(target) == 0 || !all(target, isTarget) {
		return malformed("the request line is not a method, a target and a version")
	}
	minor, ok := parseVersion(version)
	if !ok {
		return malformed("the version is not of the form HTTP/1.1")
	}
	if minor < 0 {
		return refuse(http.StatusHTTPVersionNotSupported, VersionUnsupported, fault("the version is neither HTTP/1.1 nor HTTP/1.0"))
	}
	if e := checkMethod(method); e != nil {
		return e
	}
	r.Method, r.Target, r.Minor = method, target, minor
	return nil
}

// checkMethod refuses tokens that are longer than any method, and CONNECT: this is no forward proxy.
func checkMethod(method []byte) *Error {
	if len(method) > maxMethod || string(method) == "CONNECT" {
		return refuse(http.StatusNotImplemented, MethodUnsupported, fault("CONNECT and methods longer than any known are not served"))
	}
	return nil
}

// parseVersion returns the minor version, -1 for one that is well-formed but neither 1.1 nor 1.0.
func parseVersion(p []byte) (minor int, ok bool) {
	if len(p) != 8 || string(p[:5]) != "HTTP/" || !isDigit(p[5]) || p[6] != '.' || !isDigit(p[7]) {
		return 0, false
	}
	switch string(p[5:]) {
	case "1.1":
		return 1, true
	case "1.0":
		return 0, true
	}
	return -1, true
}

// readFields reads what frames the message and what belongs to this connection.
func (r *Request) readFields() *Error {
	var seen [shadow + 1]bool
	for i := range r.lines.fields {
		f := &r.lines.fields[i]
		v := r.lines.bytes(f.value)
		if seen[f.class] {
			switch f.class {
			case hostField, contentLength, transferEncoding, expect:
				return malformed("a field that may occur once is repeated")
			case upgrade:
				r.Upgrade = nil
				continue
			}
		}
		seen[f.class] = true
		if e := r.readField(f, v); e != nil {
			return e
		}
	}
	if seen[transferEncoding] && (r.length || r.Minor == 0) {
		return malformed("Transfer-Encoding together with Content-Length, or in HTTP/1.0")
	}
	if !r.upgrades() {
		r.Upgrade = nil
	}
	return nil
}

func (r *Request) readField(f *field, v []byte) *Error {
	switch f.class {
	case hostField:
		r.Authority = v
	case contentLength:
		n, ok := parseLength(v)
		if !ok {
			return malformed("Content-Length is not a number")
		}
		r.ContentLength, r.length = n, true
	case transferEncoding:
		if !equalFold(v, "chunked") {
			return refuse(http.StatusNotImplemented, CodingUnsupported, fault("Transfer-Encoding is not chunked alone"))
		}
		r.ContentLength = -1
	case connection:
		if err := r.options.read(&r.lines, f.value); err != nil {
			return refuse(http.StatusBadRequest, Malformed, err)
		}
		r.Close = r.options.close
	case upgrade:
		r.Upgrade = v
	case expect:
		if !equalFold(v, "100-continue") {
			return refuse(http.StatusExpectationFailed, ExpectationFailed, fault("Expect is not 100-continue"))
		}
		r.Expect = true
	case te:
		for v != nil {
			var element []byte
			element, v = nextElement(v)
			r.trailers = r.trailers || equalFold(element, "trailers")
		}
	}
	return nil
}

// upgrades reports whether the Upgrade field counts: Connection must name it, and the protocol must not be another HTTP or TLS, behind
// which requests would pass that nobody here has looked at.
func (r *Request) upgrades() bool {
	if !r.options.upgrade || len(r.Upgrade) == 0 {
		return false
	}
	for list := r.Upgrade; list != nil; {
		var element []byte
		element, list = nextElement(list)
		name, _, _ := bytes.Cut(element, []byte{'/'})
		if !all(element, isToken|isSlash) || len(name) == 0 || equalFold(name, "h2c") || equalFold(name, "h2") ||
			equalFold(name, "http") || equalFold(name, "tls") {
			return false
		}
	}
	return true
}

// authority settles the target's form (RFC 9112 section 3.2) and reads the Host field.
func (r *Request) authority() *Error {
	host, port, ok := splitAuthority(r.Authority)
	if !ok {
		return malformed("Host is missing or is not a host name and port")
	}
	r.Host, r.Port = host, port
	if e := r.originForm(); e != nil {
		return e
	}
	r.Path = r.Target
	if i := bytes.IndexByte(r.Target, '?'); i >= 0 {
		r.Path = r.Target[:i]
	}
	if !validEscapes(r.Path) {
		return malformed("the path has a bad percent-encoding")
	}
	return nil
}

// originForm reduces a target in absolute form, whose authority must be that of Host, to origin form.
func (r *Request) originForm() *Error {
	t := r.Target
	options := string(r.Method) == "OPTIONS"
	if t[0] == '/' || len(t) == 1 && t[0] == '*' && options {
		return nil
	}
	rest, ok := cutScheme(t)
	if !ok {
		return malformed("the target is in none of the forms that its method allows")
	}
	end := bytes.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	if !equalFold(rest[:end], r.Authority) {
		return malformed("the target names another authority than Host")
	}
	switch rest = rest[end:]; {
	case len(rest) == 0 && options:
		r.Target = asterisk
	case len(rest) == 0:
		r.Target = slash
	case rest[0] == '?': // an empty path is "/": there is room for it where the authority was
		at := len(t) - len(rest) - 1
		t[at] = '/'
		r.Target = t[at:]
	default:
		r.Target = rest
	}
	return nil
}

var (
	asterisk = []byte("*")
	slash    = []byte("/")
)

func cutScheme(t []byte) ([]byte, bool) {
	for _, scheme := range [...]string{"https://", "http://"} {
		if len(t) > len(scheme) && equalFold(t[:len(scheme)], scheme) {
			return t[len(scheme):], true
		}
	}
	return nil, false
}

// splitAuthority reads host [":" port]. It knows the hosts that a gateway can have: names of letters, digits, "-", "." and "_", IPv4
// addresses, and IPv6 addresses in brackets without a zone.
func splitAuthority(p []byte) (host []byte, port uint16, ok bool) {
	host = p
	if len(p) > 0 && p[0] == '[' {
		end := bytes.IndexByte(p, ']')
		if end < 0 || !validIPv6(p[1:end]) {
			return nil, 0, false
		}
		host = p[:end+1]
	} else if i := bytes.IndexByte(p, ':'); i >= 0 {
		host = p[:i]
	}
	if len(host) == 0 || len(host) > 255 || host[0] != '[' && !all(host, isHost) {
		return nil, 0, false
	}
	if len(host) == len(p) {
		return host, 0, true
	}
	port, ok = parsePort(p[len(host):])
	return host, port, ok
}

func validIPv6(p []byte) bool {
	if len(p) > 45 {
		return false
	}
	a, err := netip.ParseAddr(string(p))
	return err == nil && a.Is6() && a.Zone() == ""
}

// parsePort reads ":" and a port from 1 to 65535 without leading zeros.
func parsePort(p []byte) (uint16, bool) {
	if p[0] != ':' || len(p) < 2 || len(p) > 6 || p[1] == '0' {
		return 0, false
	}
	n := 0
	for _, b := range p[1:] {
		if !isDigit(b) {
			return 0, false
		}
		n = n*10 + int(b-'0')
	}
	return uint16(n), n <= 65535
}

// validEscapes reports whether every "%" in a path is followed by two hexadecimal digits.
func validEscapes(p []byte) bool {
	for i := bytes.IndexByte(p, '%'); i >= 0; {
		if len(p) < i+3 || hexValue(p[i+1]) < 0 || hexValue(p[i+2]) < 0 {
			return false
		}
		p = p[i+3:]
		i = bytes.IndexByte(p, '%')
	}
	return true
}

func hexValue(b byte) int {
	switch b = lower(b); {
	case isDigit(b):
		return int(b - '0')
	case b >= 'a' && b <= 'f':
		return int(b-'a') + 10
	}
	return -1
}
