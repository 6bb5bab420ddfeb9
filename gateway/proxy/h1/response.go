package h1

import "bytes"

// response is a parsed response head of an app.
type response struct {
	lines   head
	status  int
	reason  []byte
	minor   int
	options options
	upgrade []byte // the Upgrade field's value
	length  int64  // -1 without Content-Length
	chunked bool
}

func (r *response) reset() {
	r.lines.reset()
	*r = response{lines: r.lines, options: options{named: r.options.named[:0]}, length: -1}
}

// interpret reads the complete head in r.lines.
func (r *response) interpret() error {
	if err := r.statusLine(r.lines.bytes(r.lines.start)); err != nil {
		return err
	}
	for i := range r.lines.fields {
		if err := r.readField(&r.lines.fields[i]); err != nil {
			return err
		}
	}
	if r.chunked && (r.length >= 0 || r.minor == 0) {
		return fault("Transfer-Encoding together with Content-Length, or in HTTP/1.0")
	}
	return nil
}

// statusLine reads "HTTP-version SP status-code SP [reason-phrase]" (RFC 9112 section 4); the second space may be missing with the phrase.
func (r *response) statusLine(line []byte) error {
	version, rest, _ := bytes.Cut(line, []byte{' '})
	minor, ok := parseVersion(version)
	if !ok || minor < 0 || len(rest) < 3 || len(rest) > 3 && rest[3] != ' ' {
		return fault("the status line is not a version, a status and a reason")
	}
	status, ok := parseLength(rest[:3])
	if !ok || status < 100 || status > 599 {
		return fault("the status is not a number from 100 to 599")
	}
	if len(rest) > 4 {
		r.reason = rest[4:]
		if !all(r.reason, isValue) {
			return fault("the reason has a control character")
		}
	}
	r.minor, r.status = minor, int(status)
	return nil
}

func (r *response) readField(f *field) error {
	v := r.lines.bytes(f.value)
	switch f.class {
	case contentLength:
		n, ok := parseLength(v)
		if !ok || r.length >= 0 {
			return fault("Content-Length is not a number, or is repeated")
		}
		r.length = n
	case transferEncoding:
		if !equalFold(v, "chunked") || r.chunked {
			return fault("Transfer-Encoding is not chunked alone")
		}
		r.chunked = true
	case connection:
		return r.options.read(&r.lines, f.value)
	case upgrade:
		r.upgrade = v
	}
	return nil
}

// body returns how the body is framed (RFC 9112 section 6.3); head says that the request was HEAD.
func (r *response) body(head bool) framing {
	switch {
	case head || r.status < 200 || r.status == 204 || r.status == 304:
		return noBody
	case r.chunked:
		return chunked
	case r.length >= 0:
		return sized
	}
	return toEOF
}

// persists reports whether the app keeps the connection open.
func (r *response) persists() bool { return r.minor == 1 && !r.options.close }
