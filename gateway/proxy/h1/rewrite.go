package h1

import (
	"net/netip"
	"strconv"
)

func appendField(out, name, value []byte) []byte {
	out = append(out, name...)
	out = append(out, ':', ' ')
	out = append(out, value...)
	return append(out, '\r', '\n')
}

func appendLength(out []byte, n int64) []byte {
	out = append(out, "Content-Length: "...)
	out = strconv.AppendInt(out, n, 10)
	return append(out, '\r', '\n')
}

const chunkedLine = "Transfer-Encoding: chunked\r\n"

// identity is what the forwarding fields say of one client connection.
type identity struct {
	fields    []byte // X-Forwarded-For, X-Real-Ip and X-Forwarded-Proto, whole lines
	forwarded []byte // the Forwarded line up to the host (RFC 7239)
}

func newIdentity(addr netip.AddrPort, proto string) identity {
	ip := addr.Addr().Unmap().WithZone("")
	text, node := "unknown", "unknown"
	if ip.IsValid() {
		text, node = ip.String(), ip.String()
	}
	if ip.Is6() {
		node = `"[` + text + `]"`
	}
	return identity{
		fields:    []byte("X-Forwarded-For: " + text + "\r\nX-Real-Ip: " + text + "\r\nX-Forwarded-Proto: " + proto + "\r\n"),
		forwarded: []byte("Forwarded: for=" + node + ";proto=" + proto + `;host="`),
	}
}

// appendRequest appends the head that goes to the app. The framing is that of r unless length is not negative, which then is the length
// of the whole body.
func (id *identity) appendRequest(out []byte, r *Request, length int64) []byte {
	out = append(out, r.Method...)
	out = append(out, ' ')
	out = append(out, r.Target...)
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, r.Authority...)
	out = append(out, '\r', '\n')
	for i := range r.lines.fields {
		f := &r.lines.fields[i]
		name, value := r.lines.bytes(f.name), r.lines.bytes(f.value)
		if f.class == ordinary && !r.options.names(&r.lines, name) || f.class == trailer && r.ContentLength < 0 && announces(value) {
			out = appendField(out, name, value)
		}
	}
	switch {
	case length > 0 || length == 0 && r.length:
		out = appendLength(out, length)
	case length < 0 && r.ContentLength < 0:
		out = append(out, chunkedLine...)
	case length < 0 && r.length:
		out = appendLength(out, r.ContentLength)
	}
	out = appendHop(out, r, length < 0)
	out = append(out, id.fields...)
	out = append(out, "X-Forwarded-Host: "...)
	out = append(out, r.Authority...)
	out = append(out, "\r\n"...)
	out = append(out, id.forwarded...)
	out = append(out, r.Authority...) // of octets that need no escape in a quoted-string
	out = append(out, "\"\r\nX-Request-Id: "...)
	out = append(out, r.ID[:]...)
	return append(out, "\r\n\r\n"...)
}

// appendHop appends the fields for this connection to the app alone.
func appendHop(out []byte, r *Request, streamed bool) []byte {
	if r.Expect && streamed {
		out = append(out, "Expect: 100-continue\r\n"...)
	}
	if r.trailers {
		out = append(out, "TE: trailers\r\n"...)
	}
	switch {
	case r.Upgrade != nil && r.trailers:
		out = append(out, "Connection: Upgrade, TE\r\n"...)
	case r.Upgrade != nil:
		out = append(out, "Connection: Upgrade\r\n"...)
	case r.trailers:
		out = append(out, "Connection: TE\r\n"...)
	}
	if r.Upgrade != nil {
		out = append(out, "Upgrade: "...)
		out = append(out, r.Upgrade...)
		out = append(out, '\r', '\n')
	}
	return out
}

// appendStatus appends a status line.
func appendStatus(out []byte, status int, reason []byte) []byte {
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, ' ')
	out = append(out, reason...)
	return append(out, '\r', '\n')
}

// appendResponse appends the head that goes to the client: to is how its body is framed there, closing announces that the connection ends
// with it.
func appendResponse(out []byte, r *response, to framing, closing bool) []byte {
	out = appendStatus(out, r.status, r.reason)
	for i := range r.lines.fields {
		f := &r.lines.fields[i]
		name, value := r.lines.bytes(f.name), r.lines.bytes(f.value)
		if passed(f.class, r.status, to, value) && !r.options.names(&r.lines, name) {
			out = appendField(out, name, value)
		}
	}
	switch {
	case to == chunked:
		out = append(out, chunkedLine...)
	case to == sized, to == noBody && r.length >= 0 && r.status >= 200 && r.status != 204:
		out = appendLength(out, r.length)
	}
	switch {
	case r.status == 101:
		out = append(out, "Connection: Upgrade\r\n"...)
	case closing && r.status >= 200:
		out = append(out, "Connection: close\r\n"...)
	}
	return append(out, '\r', '\n')
}

// passed reports whether a response field goes to the client as it is. What only a gateway may say in a request is the app's own in a
// response.
func passed(c class, status int, to framing, value []byte) bool {
	switch c {
	case ordinary, hostField, expect, trust, shadow:
		return true
	case upgrade:
		return status == 101 || status == 426
	case trailer:
		return to == chunked && announces(value)
	}
	return false
}
