package h2

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http2"

	"dstack.host/gateway/proxy/h1"
)

// handleLater lets h answer s in a goroutine of its own. limit bounds the request body; 0 does not.
func (c *conn) handleLater(s *stream, h http.Handler, limit int64) {
	tooLarge := &h1.Error{Status: http.StatusRequestEntityTooLarge, Reason: h1.TooLarge, Err: fault("the body is longer than this resource takes")}
	if limit > 0 && s.req.ContentLength > limit {
		c.answerLater(s, nil, tooLarge)
		return
	}
	ctx, cancel := context.WithCancelCause(c.ctx)
	c.mu.Lock()
	s.limit, s.cancel = limit, cancel
	s.refs++
	if s.dead {
		cancel(context.Canceled)
	}
	c.tasks.Add(1)
	c.mu.Unlock()
	go func() {
		defer c.tasks.Done()
		defer s.drop()
		defer c.rescue()
		defer cancel(nil)
		c.run(ctx, s, h)
	}()
}

// run has h answer, and settles what it leaves open.
func (c *conn) run(ctx context.Context, s *stream, h http.Handler) {
	r, err := c.httpRequest(ctx, s)
	if err != nil {
		c.fail(s, &h1.Error{Status: http.StatusBadRequest, Reason: h1.Malformed, Err: err})
		return
	}
	w := &responseWriter{s: s, own: s.dest.Reply != nil, header: make(http.Header), left: -1}
	if err := call(h, w, r); err != nil {
		c.fail(s, &h1.Error{Status: http.StatusInternalServerError, Reason: h1.Internal, Err: err})
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.muffle()
	if w.end() != nil {
		if s.outcome.Reason == "" {
			s.outcome.Reason = h1.ClientGone
		}
		c.reset(s, http2.ErrCodeInternal)
	} else {
		c.finish(s)
	}
	c.flush()
}

// call calls h and turns a panic into an error.
func call(h http.Handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("handler panicked: %v", p)
		}
	}()
	h.ServeHTTP(w, r)
	return nil
}

// httpRequest gives net/http the request as an app would receive it.
func (c *conn) httpRequest(ctx context.Context, s *stream) (*http.Request, error) {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(s.req.AppendTo(nil, c.id, -1))))
	if err != nil {
		return nil, err
	}
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0
	r.TransferEncoding, r.RemoteAddr = nil, c.addr.String()
	r.Header.Del("Connection")
	if s.req.ContentLength != 0 {
		r.Body = &requestBody{s: s, trailer: r.Trailer}
	}
	if t, ok := c.nc.(interface{ ConnectionState() tls.ConnectionState }); ok {
		state := t.ConnectionState()
		r.TLS = &state
	}
	return r.WithContext(ctx), nil
}

// requestBody reads a body as it comes.
type requestBody struct {
	s       *stream
	read    int64
	trailer http.Header // filled at the end, with those that were announced
}

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	s := b.s
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(s.body) == 0 && !s.remoteDone && !s.dead && !s.deaf {
		c.flush()
		if len(s.body) == 0 && !s.remoteDone && !s.dead && !s.deaf {
			s.starve()
		}
	}
	switch {
	case len(s.body) > 0:
		n := copy(p, s.body)
		s.body = s.body[:copy(s.body, s.body[n:])]
		s.credit -= n
		c.repay(s, n)
		if b.read += int64(n); s.limit > 0 && b.read > s.limit {
			return 0, &http.MaxBytesError{Limit: s.limit}
		}
		return n, nil
	case s.remoteDone && !s.deaf:
		b.fillTrailer()
		return 0, io.EOF
	}
	return 0, io.ErrUnexpectedEOF
}

func (b *requestBody) fillTrailer() {
	for line := range strings.Lines(string(b.s.trailers)) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), ": ")
		if name = http.CanonicalHeaderKey(name); b.trailer != nil {
			if _, announced := b.trailer[name]; announced {
				b.trailer[name] = append(b.trailer[name], value)
			}
		}
	}
}

// Close implements io.Closer.
func (b *requestBody) Close() error {
	b.s.c.mu.Lock()
	defer b.s.c.mu.Unlock()
	b.s.muffle()
	return nil
}

// responseWriter is what a handler writes to. It holds back up to one frame, so that short answers get a length and leave in one write.
type responseWriter struct {
	s        *stream
	own      bool // it speaks for the gateway, not for an app
	header   http.Header
	status   int
	begun    bool
	left     int64 // of a length that the handler has announced; -1 without one
	trailers []string
	held     []byte
}

// Header implements http.ResponseWriter.
func (w *responseWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter; a status below 200 is sent at once.
func (w *responseWriter) WriteHeader(status int) {
	switch {
	case w.status != 0, status == http.StatusSwitchingProtocols, status < 100, status > 599:
	case status >= 200:
		w.status = status
	default:
		c := w.s.c
		c.mu.Lock()
		defer c.mu.Unlock()
		if !w.s.dead {
			w.appendFields(status)
			c.putBlock(w.s, false)
			c.flush()
		}
	}
}

// Write implements http.ResponseWriter.
func (w *responseWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.status == http.StatusNoContent || w.status == http.StatusNotModified {
		return 0, http.ErrBodyNotAllowed
	}
	w.held = append(w.held, p...)
	if len(w.held) < maxFrame {
		return len(p), nil
	}
	return len(p), w.FlushError()
}

// Flush implements http.Flusher.
func (w *responseWriter) Flush() { _ = w.FlushError() }

// FlushError sends what is held back.
func (w *responseWriter) FlushError() error {
	w.WriteHeader(http.StatusOK)
	c := w.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := w.send(false); err != nil {
		return err
	}
	c.flush()
	return nil
}

func (w *responseWriter) end() error {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if err := w.send(true); err != nil {
		return err
	}
	if w.left > 0 && !w.headless() {
		return fault("the handler wrote less than it had announced")
	}
	return nil
}

// headless reports whether the response has no body whatever is written.
func (w *responseWriter) headless() bool {
	return string(w.s.req.Method) == http.MethodHead || w.status == http.StatusNoContent || w.status == http.StatusNotModified
}

// send sends what is held back; conn.mu is held.
func (w *responseWriter) send(end bool) error {
	s, c := w.s, w.s.c
	if s.dead {
		return errGone
	}
	payload := w.held
	if w.headless() {
		payload = nil
	}
	trailers := false
	if !w.begun {
		w.begin(end)
		trailers = end && w.hasTrailers()
		c.putBlock(s, end && len(payload) == 0 && !trailers)
		if end && len(payload) == 0 && !trailers {
			return nil
		}
	}
	trailers = end && w.hasTrailers()
	if w.left >= 0 {
		if w.left -= int64(len(payload)); w.left < 0 {
			return http.ErrContentLength
		}
	}
	if e := c.sendData(s, payload, end && !trailers); e != nil {
		return e
	}
	w.held = w.held[:0]
	if trailers {
		w.sendTrailers()
	}
	return nil
}

// begin makes the head.
func (w *responseWriter) begin(end bool) {
	s, c := w.s, w.s.c
	w.begun, s.begun = true, true
	s.outcome.Status = w.status
	for _, list := range w.header["Trailer"] {
		for name := range strings.SplitSeq(list, ",") {
			w.trailers = append(w.trailers, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	w.appendFields(w.status)
	if w.own {
		c.encoded = s.appendOwn(c.encoded)
	}
	length, err := strconv.ParseInt(w.header.Get("Content-Length"), 10, 64)
	switch {
	case err == nil && length >= 0 && w.status != http.StatusNoContent:
		w.left = length
		if w.headless() {
			w.left = -1
		}
		c.encoded = appendLength(c.encoded, length)
	case end && !w.headless() && !w.hasTrailers():
		c.encoded = appendLength(c.encoded, int64(len(w.held)))
	}
}

// appendFields makes a head of those fields that may be sent.
func (w *responseWriter) appendFields(status int) {
	c := w.s.c
	c.startBlock()
	c.encoded = appendStatus(c.encoded, status)
	for _, name := range slices.Sorted(maps.Keys(w.header)) {
		if strings.HasPrefix(name, http.TrailerPrefix) || slices.Contains(w.trailers, name) || w.own && (name == "Date" || name == "X-Request-Id") {
			continue
		}
		for _, v := range w.header[name] {
			if v = strings.TrimSpace(v); h1.ValidField(name, v) {
				c.encoded = appendField(c.encoded, []byte(name), []byte(v))
			}
		}
	}
}

// hasTrailers reports whether trailers are set.
func (w *responseWriter) hasTrailers() bool {
	for name := range w.header {
		if strings.HasPrefix(name, http.TrailerPrefix) || slices.Contains(w.trailers, name) {
			return true
		}
	}
	return false
}

func (w *responseWriter) sendTrailers() {
	c := w.s.c
	c.startBlock()
	for _, name := range slices.Sorted(maps.Keys(w.header)) {
		bare, prefixed := strings.CutPrefix(name, http.TrailerPrefix)
		if !prefixed && !slices.Contains(w.trailers, name) {
			continue
		}
		for _, v := range w.header[name] {
			if v = strings.TrimSpace(v); h1.ValidField(bare, v) {
				c.encoded = appendField(c.encoded, []byte(bare), []byte(v))
			}
		}
	}
	c.putBlock(w.s, true)
}
