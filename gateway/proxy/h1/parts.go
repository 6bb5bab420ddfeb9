package h1

import (
	"net/http"
	"net/netip"
)

// What follows lends the relay's parsers and writers to HTTP/2, so that a request is held to the same rules and reaches the app in the same
// words whichever way it came. Nothing here is safe for concurrent use.

// Identity is what the forwarding fields say of one client connection.
type Identity struct{ id identity }

// NewIdentity names the client and the protocol, "https" or "http".
func NewIdentity(addr netip.AddrPort, proto string) *Identity {
	return &Identity{newIdentity(addr, proto)}
}

// Start makes r an empty request whose method, target, authority and fields are given to it one by one. They are copied.
func (r *Request) Start(addr netip.AddrPort) {
	buf := r.lines.buf[:0]
	r.reset(addr, nil)
	r.lines.buf = buf
}

// Add adds a field. The name must be a token in lower case and the value free of control characters and surrounding whitespace, as RFC 9113
// section 8.2.1 has it.
func (r *Request) Add(name, value string) error { return add(r, name, value) }

// AddBytes is Add with a value in octets.
func (r *Request) AddBytes(name string, value []byte) error { return add(r, name, value) }

func add[T string | []byte](r *Request, name string, value T) error {
	if !lowerToken(name) {
		return errName
	}
	if !cleanValue(value) {
		return errValue
	}
	f := field{name: put(r, name), value: put(r, value)}
	f.class = classify(r.lines.bytes(f.name))
	r.lines.fields = append(r.lines.fields, f)
	return nil
}

func put[T string | []byte](r *Request, s T) span {
	from := len(r.lines.buf)
	r.lines.buf = append(r.lines.buf, s...)
	return span{int32(from), int32(len(r.lines.buf))}
}

func lowerToken(s string) bool {
	for i := range len(s) {
		if octets[s[i]]&isToken == 0 || s[i] >= 'A' && s[i] <= 'Z' {
			return false
		}
	}
	return len(s) > 0
}

func cleanValue[T string | []byte](s T) bool {
	for i := range len(s) {
		if octets[s[i]]&isValue == 0 {
			return false
		}
	}
	return len(s) == 0 || !isBlank(s[0]) && !isBlank(s[len(s)-1])
}

// Complete reads what was added as Serve reads a head: the authority "" leaves it to a Host field, which otherwise must say the same. The
// message is framed by its version: a Content-Length only says how long the body must be, which is for the caller to check, and without one
// ContentLength is -1 when there is a body.
func (r *Request) Complete(method, target, authority string, body bool) *Error {
	m, t, a := put(r, method), put(r, target), put(r, authority)
	r.Method, r.Target, r.Minor = r.lines.bytes(m), r.lines.bytes(t), 1
	if len(r.Method) == 0 || !all(r.Method, isToken) || len(r.Target) == 0 || !all(r.Target, isTarget) {
		return malformed("the method is no token or the path is no path")
	}
	if e := checkMethod(r.Method); e != nil {
		return e
	}
	if target[0] != '/' && !(target == "*" && method == "OPTIONS") {
		return malformed("the path does not begin with a slash")
	}
	if e := r.readFields(); e != nil {
		return e
	}
	if authority != "" {
		if r.Authority != nil && !equalFold(r.Authority, r.lines.bytes(a)) {
			return malformed("Host differs from the authority")
		}
		r.Authority = r.lines.bytes(a)
	}
	if e := r.authority(); e != nil {
		return e
	}
	r.frame(body)
	return nil
}

// frame settles the body's length.
func (r *Request) frame(body bool) {
	switch {
	case !body:
		r.length, r.Expect = r.length || bodyExpected(r.Method), false
	case !r.length:
		r.ContentLength = -1
	case r.ContentLength == 0:
		r.Expect = false
	}
}

// bodyExpected reports whether a server may wonder at a request with this method and without a length (RFC 9110 section 8.6).
func bodyExpected(method []byte) bool {
	return string(method) == "POST" || string(method) == "PUT" || string(method) == "PATCH"
}

// Ask has the connection change to a protocol.
func (r *Request) Ask(protocol string) {
	r.Upgrade = r.lines.bytes(put(r, protocol))
}

// AppendTo appends the head that goes to the app. A length that is not negative is that of the whole body, which is there.
func (r *Request) AppendTo(out []byte, id *Identity, length int64) []byte {
	return id.id.appendRequest(out, r, length)
}

// Repeatable reports whether r may be sent again when the app closed before the first byte of its answer.
func (r *Request) Repeatable() bool { return r.repeatable() }

// Trailers appends the lines of a trailer section: those added fields that may be passed on in one.
func (r *Request) Trailers(out []byte) []byte {
	for i := range r.lines.fields {
		f := &r.lines.fields[i]
		if name := r.lines.bytes(f.name); trailerAllowed(name, f.class) {
			out = appendField(out, name, r.lines.bytes(f.value))
		}
	}
	return out
}

// Response is a response head of an app.
type Response struct{ r response }

// Start makes it an empty one.
func (p *Response) Start() { p.r.reset() }

// Scan reads the head that buf begins with, as far as it is there, and returns its length; 0 stands for an incomplete one. A next call must
// give the same bytes and more. What the head holds is valid as long as buf is.
func (p *Response) Scan(buf []byte, limit, fields int) (int, error) {
	done, err := p.r.lines.scan(buf, limit, fields)
	switch {
	case done:
		return p.r.lines.end, p.r.interpret()
	case err == nil && p.r.lines.begun(): // what speaks no HTTP may never end its head
		err = p.r.statusLine(p.r.lines.bytes(p.r.lines.start))
	}
	return 0, err
}

func (p *Response) Status() int { return p.r.status }

// Length is that of a Content-Length field, -1 without one.
func (p *Response) Length() int64 { return p.r.length }

// Persists reports whether the app keeps the connection open, provided that the body has an end of its own.
func (p *Response) Persists() bool { return p.r.persists() }

// Upgrades reports whether it is a 101 that changes to the protocol.
func (p *Response) Upgrades(protocol string) bool {
	return p.r.status == http.StatusSwitchingProtocols && p.r.options.upgrade && equalFold(p.r.upgrade, protocol)
}

// Field returns the value of the first field with that name (any case) and nil when there is none.
func (p *Response) Field(name string) []byte {
	for i := range p.r.lines.fields {
		if f := &p.r.lines.fields[i]; equalFold(p.r.lines.bytes(f.name), name) {
			return p.r.lines.bytes(f.value)
		}
	}
	return nil
}

// Fields yields the fields that are passed on in another version of HTTP, which frames messages by itself. The trailers flag says that a trailer section may follow.
func (p *Response) Fields(trailers bool, yield func(name, value []byte)) {
	to := sized
	if trailers {
		to = chunked
	}
	for i := range p.r.lines.fields {
		f := &p.r.lines.fields[i]
		name, value := p.r.lines.bytes(f.name), p.r.lines.bytes(f.value)
		if f.class != upgrade && passed(f.class, p.r.status, to, value) && !p.r.options.names(&p.r.lines, name) {
			yield(name, value)
		}
	}
}

// Content follows a body through the buffers that it arrives in.
type Content struct {
	b       body
	trailer head
}

// Response makes it the body of p in answer to a request whose method was HEAD or not.
func (b *Content) Response(p *Response, head bool) { b.b.reset(p.r.body(head), p.r.length) }

// None reports whether there is no body, not even an empty one.
func (b *Content) None() bool { return b.b.framing == noBody }

// Ended reports whether all of it has been consumed.
func (b *Content) Ended() bool { return b.b.ended }

// EndsWithConnection reports whether only the end of the connection ends it; End is to be called then.
func (b *Content) EndsWithConnection() bool { return b.b.framing == toEOF }

func (b *Content) End() { b.b.ended = true }

// Chunked reports whether a trailer section may follow.
func (b *Content) Chunked() bool { return b.b.framing == chunked }

// Next takes what it can of p, which is not empty: the payload is p[start:end], gathered there in place, n bytes are consumed.
func (b *Content) Next(p []byte) (start, end, n int, err error) { return b.b.next(p) }

// Trailers yields the fields of the trailer section that are passed on, once the body has ended.
func (b *Content) Trailers(fields int, yield func(name, value []byte)) error {
	c := &b.b.chunks
	if len(c.trailer) == 0 {
		return nil
	}
	b.trailer.reset()
	c.trailer = append(c.trailer, "\r\n"...)
	if done, err := b.trailer.scan(c.trailer, maxTrailerBytes+16, fields); err != nil || !done {
		return err
	}
	for i := range b.trailer.fields {
		f := &b.trailer.fields[i]
		if name := b.trailer.bytes(f.name); trailerAllowed(name, f.class) {
			yield(name, b.trailer.bytes(f.value))
		}
	}
	return nil
}

// ValidField reports whether a field of the gateway's own may be sent as it is: well-formed, and neither of one connection nor framing.
func ValidField(name, value string) bool {
	return classify([]byte(name)) == ordinary && validField(name, value)
}

// EqualFold compares ASCII text without regard to case.
func EqualFold(a []byte, b string) bool { return equalFold(a, b) }

// AppendChunk appends payload in the chunked coding; nothing for an empty one.
func AppendChunk(out, payload []byte) []byte { return appendChunk(out, payload) }
