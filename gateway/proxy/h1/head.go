package h1

import "bytes"

// span is a piece of the buffer that a head was read into.
type span struct{ from, to int32 }

// field is one field line: where its name and its value (without surrounding whitespace) are, and what the name means to the relay.
type field struct {
	name, value span
	class       class
}

// head is a message head under a resumable scan: a start line and field lines as RFC 9112 section 2.1 spells them, nothing more lenient.
// It holds no reference that outlives the buffer given to scan last.
type head struct {
	buf    []byte
	next   int // where the first line not yet scanned starts
	start  span
	end    int // the first byte behind the head; 0 while it is incomplete
	fields []field
}

const (
	errBareLF     = fault("a line ends with LF alone")
	errFold       = fault("a field line starts with whitespace")
	errName       = fault("a field name is not a token followed by a colon")
	errValue      = fault("a field value has a control character")
	errStartLong  = fault("the start line is longer than the limit")
	errHeadLong   = fault("the head is longer than the limit")
	errFieldCount = fault("the head has more fields than the limit")
)

func (h *head) reset() { *h = head{fields: h.fields[:0]} }

func (h *head) bytes(s span) []byte { return h.buf[s.from:s.to] }

// begun reports whether the start line has been read.
func (h *head) begun() bool { return h.start.to > 0 }

// scan reads the lines that are new in buf, which must begin with what it held at the previous call, and reports whether the head is
// complete. An empty line before the start line is skipped once (RFC 9112 section 2.2).
func (h *head) scan(buf []byte, limit, fields int) (bool, error) {
	h.buf = buf
	for {
		n := bytes.IndexByte(buf[h.next:], '\n')
		if n < 0 && len(buf) < limit {
			return false, nil
		}
		if n < 0 || h.next+n >= limit {
			if !h.begun() {
				return false, errStartLong
			}
			return false, errHeadLong
		}
		if n == 0 || buf[h.next+n-1] != '\r' {
			return false, errBareLF
		}
		from, to := h.next, h.next+n-1
		h.next += n + 1
		switch {
		case !h.begun() && from == to && from == 0:
		case !h.begun():
			h.start = span{int32(from), int32(to)}
		case from == to:
			h.end = h.next
			return true, nil
		case len(h.fields) == fields:
			return false, errFieldCount
		default:
			f, err := parseField(buf, from, to)
			if err != nil {
				return false, err
			}
			h.fields = append(h.fields, f)
		}
	}
}

// parseField reads the field line buf[from:to] (RFC 9112 section 5).
func parseField(buf []byte, from, to int) (field, error) {
	c := from
	for c < to && octets[buf[c]]&isToken != 0 {
		c++
	}
	switch {
	case c == from && isBlank(buf[c]):
		return field{}, errFold
	case c == from || c == to || buf[c] != ':':
		return field{}, errName
	}
	v := c + 1
	for v < to && isBlank(buf[v]) {
		v++
	}
	for to > v && isBlank(buf[to-1]) {
		to--
	}
	for _, b := range buf[v:to] {
		if octets[b]&isValue == 0 {
			return field{}, errValue
		}
	}
	return field{name: span{int32(from), int32(c)}, value: span{int32(v), int32(to)}, class: classify(buf[from:c])}, nil
}

// What an octet may be part of.
const (
	isToken  = 1 << iota // tchar, RFC 9110 section 5.6.2
	isValue              // field-vchar, SP and HTAB, RFC 9110 section 5.5; obs-text included
	isTarget             // request target: visible ASCII without "#"
	isHost               // reg-name or IPv4 address as the gateway knows them: letters, digits, "-", ".", "_"
	isSlash              // "/"
)

var octets = func() (t [256]byte) {
	for c := range 256 {
		b := byte(c)
		alnum := b|0x20 >= 'a' && b|0x20 <= 'z' || isDigit(b)
		if alnum || bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), b) >= 0 {
			t[c] |= isToken
		}
		if b >= 0x20 && b != 0x7f || b == '\t' {
			t[c] |= isValue
		}
		if b > 0x20 && b < 0x7f && b != '#' {
			t[c] |= isTarget
		}
		if b == '/' {
			t[c] |= isSlash
		}
		if alnum || b == '-' || b == '.' || b == '_' {
			t[c] |= isHost
		}
	}
	return t
}()

func isBlank(b byte) bool { return b == ' ' || b == '\t' }

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

func all(p []byte, kind byte) bool {
	for _, b := range p {
		if octets[b]&kind == 0 {
			return false
		}
	}
	return true
}

// lower maps an ASCII capital to its small letter and leaves every other octet alone.
func lower(b byte) byte {
	if b >= 'A' && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}

func equalFold[T, U ~string | ~[]byte](a T, b U) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// nextElement cuts the first element off a comma-separated list (RFC 9110 section 5.6.1), without the whitespace around it.
func nextElement(list []byte) (element, rest []byte) {
	element = list
	if i := bytes.IndexByte(list, ','); i >= 0 {
		element, rest = list[:i], list[i+1:]
	}
	return trimBlank(element), rest
}

func trimBlank(p []byte) []byte {
	for len(p) > 0 && isBlank(p[0]) {
		p = p[1:]
	}
	for len(p) > 0 && isBlank(p[len(p)-1]) {
		p = p[:len(p)-1]
	}
	return p
}

// parseLength reads a Content-Length value: digits alone, at most 18, so that sums cannot overflow.
func parseLength(p []byte) (int64, bool) {
	if len(p) == 0 || len(p) > 18 {
		return 0, false
	}
	var n int64
	for _, b := range p {
		if !isDigit(b) {
			return 0, false
		}
		n = n*10 + int64(b-'0')
	}
	return n, true
}
