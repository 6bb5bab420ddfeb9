package h1

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// handle lets h answer the request.
func (c *conn) handle(ctx context.Context, h http.Handler) (bool, error) {
	x := c.x
	payload, e := c.wholeBody()
	if e != nil {
		return c.fail(e, true)
	}
	req, err := c.httpRequest(ctx, payload)
	if err != nil {
		return c.fail(refuse(http.StatusBadRequest, Malformed, err), true)
	}
	w := &responseWriter{c: c, header: make(http.Header), head: string(x.req.Method) == http.MethodHead, last: c.closing()}
	if err := run(h, w, req); err != nil {
		e := refuse(http.StatusInternalServerError, Internal, err)
		if !w.begun {
			return c.fail(e, true)
		}
		x.outcome.Reason = Internal
		c.client.cut()
		return false, e
	}
	if err := w.finish(); err != nil {
		x.outcome.Reason = ClientGone
		c.client.cut()
		return false, &Error{Reason: ClientGone, Err: err}
	}
	return !w.last, nil
}

// run calls h and turns a panic into an error.
func run(h http.Handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("handler panicked: %v", p)
		}
	}()
	h.ServeHTTP(w, r)
	return nil
}

// wholeBody reads the request body for a handler.
func (c *conn) wholeBody() ([]byte, *Error) {
	x := c.x
	tooLarge := refuse(http.StatusRequestEntityTooLarge, TooLarge, fault("the body is longer than this resource takes"))
	if x.req.ContentLength > int64(c.cfg.HandlerBody) {
		return nil, tooLarge
	}
	if x.req.Expect && x.in.empty() {
		if _, err := c.client.write([]byte("HTTP/1.1 100 Continue\r\n\r\n"), c.cfg.WriteTimeout); err != nil {
			return nil, &Error{Reason: ClientGone, Err: err}
		}
	}
	var payload []byte
	for !x.reqBody.ended {
		piece, e := c.moreRequest()
		if e != nil {
			return nil, e
		}
		if payload = append(payload, piece...); len(payload) > c.cfg.HandlerBody {
			return nil, tooLarge
		}
	}
	return payload, nil
}

// httpRequest gives net/http the request as an app would receive it, with the body in one piece.
func (c *conn) httpRequest(ctx context.Context, payload []byte) (*http.Request, error) {
	raw := c.id.appendRequest(nil, &c.x.req, int64(len(payload)))
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(append(raw, payload...))))
	if err != nil {
		return nil, err
	}
	req.RemoteAddr = c.addr.String()
	if t, ok := c.client.Conn.(interface{ ConnectionState() tls.ConnectionState }); ok {
		state := t.ConnectionState()
		req.TLS = &state
	}
	return req.WithContext(ctx), nil
}

// responseWriter is what a handler of the gateway writes to. It holds back up to one buffer, so that short answers get a length and leave
// in one write.
type responseWriter struct {
	c      *conn
	header http.Header
	head   bool // the request was HEAD
	last   bool // the connection ends with this response
	status int
	begun  bool
	to     framing
	left   int64 // of a sized body
	held   []byte
	err    error
}

func (w *responseWriter) Header() http.Header { return w.header }

func (w *responseWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 && status <= 599 {
		w.status = status
	}
}

func (w *responseWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.bodiless() {
		return 0, http.ErrBodyNotAllowed
	}
	w.held = append(w.held, p...)
	if len(w.held) >= bufferSize {
		w.err = w.FlushError()
	}
	return len(p), w.err
}

func (w *responseWriter) bodiless() bool {
	return w.status == http.StatusNoContent || w.status == http.StatusNotModified
}

// Flush implements http.Flusher.
func (w *responseWriter) Flush() { _ = w.FlushError() }

// FlushError sends what is held back. An answer that is flushed before its end goes in chunks, unless the handler has set a length.
func (w *responseWriter) FlushError() error {
	if w.err == nil {
		w.WriteHeader(http.StatusOK)
		w.err = w.send(false)
	}
	return w.err
}

func (w *responseWriter) finish() error {
	if w.err == nil {
		w.WriteHeader(http.StatusOK)
		w.err = w.send(true)
	}
	if w.err == nil && w.to == sized && w.left > 0 && !w.head {
		w.err = fault("the handler wrote less than it had announced")
	}
	return w.err
}

func (w *responseWriter) send(end bool) error {
	var out []byte
	if !w.begun {
		out = w.appendHead(end)
	}
	payload := w.held
	w.held = w.held[:0]
	switch {
	case w.head || w.to == noBody:
		payload = nil
	case w.to == sized && int64(len(payload)) > w.left:
		return http.ErrContentLength
	}
	w.left -= int64(len(payload))
	w.c.x.outcome.Sent += int64(len(payload))
	if w.to == chunked && !w.head {
		out = appendChunk(out, payload)
		if end {
			out = append(out, lastChunk...)
		}
	} else {
		out = append(out, payload...)
	}
	if len(out) == 0 {
		return nil
	}
	_, err := w.c.client.write(out, w.c.cfg.WriteTimeout)
	return err
}

func (w *responseWriter) appendHead(end bool) []byte {
	w.begun = true
	length, err := strconv.ParseInt(w.header.Get("Content-Length"), 10, 64)
	switch {
	case w.bodiless():
		w.to = noBody
	case err == nil && length >= 0 && (w.head || !end):
		w.to, w.left = sized, length
	case end:
		w.to, w.left = sized, int64(len(w.held))
	case w.c.x.req.Minor == 0:
		w.to, w.last = toEOF, true
	default:
		w.to = chunked
	}
	w.c.x.outcome.Status = w.status
	out := appendStatus(nil, w.status, []byte(http.StatusText(w.status)))
	for _, name := range slices.Sorted(maps.Keys(w.header)) {
		for _, v := range w.header[name] {
			v = strings.TrimSpace(v)
			if validField(name, v) && classify([]byte(name)) == ordinary && name != "Date" {
				out = appendField(out, []byte(name), []byte(v))
			}
		}
	}
	out = w.c.appendOwn(out, w.last)
	switch w.to {
	case sized:
		out = appendLength(out, w.left)
	case chunked:
		out = append(out, chunkedLine...)
	}
	return append(out, '\r', '\n')
}
