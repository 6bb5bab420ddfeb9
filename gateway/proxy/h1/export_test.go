package h1

import (
	"bytes"
	"net"
	"net/netip"
)

// ReadHead parses the request head that raw begins with. It returns its length, 0 when raw ends before the head does.
func ReadHead(raw []byte) (*Request, int, error) {
	r := new(Request)
	r.reset(netip.AddrPort{}, nil)
	done, err := r.lines.scan(raw, 32<<10, 128)
	if err != nil || !done {
		return r, 0, err
	}
	if e := r.interpret(); e != nil {
		return r, 0, e
	}
	return r, r.lines.end, nil
}

// RewriteHead returns the head that goes to the app.
func RewriteHead(r *Request, from netip.AddrPort) []byte {
	id := newIdentity(from, "https")
	return id.appendRequest(nil, r, -1)
}

// Body follows a chunked body that arrives in pieces of the given sizes (the last repeats). It returns what the relay makes of it, how
// much of raw the body is, and whether it is complete.
func Body(raw []byte, sizes ...int) (framed []byte, n int, done bool, err error) {
	var b body
	b.reset(chunked, 0)
	buf := newBuffer(bufferSize)
	for n < len(raw) && !b.ended {
		size := min(max(1, sizes[0]), bufferSize, len(raw)-n)
		if len(sizes) > 1 {
			sizes = sizes[1:]
		}
		buf.fill(raw[n : n+size])
		start, end, k, err := b.next(buf.unread())
		if err != nil {
			return framed, n, false, err
		}
		start, end = buf.r+start, buf.r+end
		buf.r += k
		after := bytes.Clone(buf.unread())
		p, err := assemble(nil, &buf, &b, start, end, chunked, 128)
		if err != nil {
			return framed, n, false, err
		}
		if !bytes.Equal(after, buf.unread()) {
			panic("framing a chunk spoilt what comes behind it")
		}
		framed = append(framed, p...)
		n += k
	}
	return framed, n, b.ended, nil
}

// Quiet reports whether the relay takes an idle connection to the app for usable.
func Quiet(c net.Conn) bool { return (&wire{Conn: c}).quiet() }
