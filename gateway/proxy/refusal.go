package proxy

import (
	"errors"
	"io"
	"strconv"
	"time"
)

// TLS alert descriptions (RFC 8446 section 6.2).
const (
	alertDecodeError      = 50
	alertInternalError    = 80
	alertUnrecognizedName = 112
)

// refusal is how a connection is turned away before any TLS.
type refusal struct {
	alert byte  // 0: none
	plain bool  // the client speaks plain HTTP
	err   error // for the log
}

// refusalOf decides how to turn away a client whose ClientHello could not be read; raw is what it sent. Who was too slow, or speaks
// neither TLS nor HTTP, is told nothing.
func refusalOf(raw []byte, err error) *refusal {
	switch {
	case errors.Is(err, errNoServerName), errors.Is(err, errServerName):
		return &refusal{alert: alertUnrecognizedName, err: err}
	case errors.Is(err, errHelloSyntax), errors.Is(err, errHelloTooLarge):
		return &refusal{alert: alertDecodeError, err: err}
	case errors.Is(err, errNotTLS):
		return &refusal{plain: looksLikeHTTP(raw), err: err}
	}
	return &refusal{err: err}
}

// looksLikeHTTP reports whether raw begins, as far as it goes, like the request line of a common method.
func looksLikeHTTP(raw []byte) bool {
	for _, method := range []string{"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "PATCH ", "CONNECT ", "PRI * HTTP/2.0"} {
		n := min(len(raw), len(method))
		if n > 0 && string(raw[:n]) == method[:n] {
			return true
		}
	}
	return false
}

// plainAnswer is for clients that speak plain HTTP to this port.
var plainAnswer = func() string {
	const text = "This port speaks TLS only. Use https:// instead of http:// in the URL.\n"
	return "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: " + strconv.Itoa(len(text)) +
		"\r\nConnection: close\r\n\r\n" + text
}()

// turnAway says no and lets the client read it: an immediate close with bytes unread would reset the connection and take the answer along.
func (p *Proxy) turnAway(c *conn, r *refusal) {
	var out []byte
	switch {
	case r.plain:
		out = []byte(plainAnswer)
	case r.alert != 0:
		out = []byte{21, 3, 3, 0, 2, 2, r.alert} // a fatal alert record (RFC 8446 sections 5.1 and 6)
	default:
		return
	}
	c.SetDeadline(time.Now().Add(time.Second)) //nolint:errcheck // a dead connection fails the write
	if _, err := c.Conn.Write(out); err != nil {
		return
	}
	closeWrite(c.Conn)
	io.Copy(io.Discard, io.LimitReader(c.Conn, 64<<10)) //nolint:errcheck // whatever the client still says
}
