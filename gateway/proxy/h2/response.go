package h2

import (
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"io"
	"net/http"

	"dstack.host/gateway/proxy/h1"
)

// maxInformational bounds the 1xx responses to one request.
const maxInformational = 16

// respond passes on the response to s. err is that of the first read.
func (a *app) respond(s *stream, err error) *h1.Error {
	for i := 0; ; i++ {
		if e := a.readHead(err); e != nil {
			return e
		}
		err = nil
		status := a.resp.Status()
		switch {
		case status == http.StatusSwitchingProtocols:
			if !a.accepts(&s.req) {
				return appFault(fault("the app changed to a protocol that nobody asked for"))
			}
			return a.pipe(s)
		case status >= 200:
			return a.final(s)
		case i == maxInformational:
			return appFault(fault("too many informational responses"))
		}
		if e := a.interim(s); e != nil {
			return e
		}
	}
}

// readHead reads one response head.
func (a *app) readHead(err error) *h1.Error {
	cfg := a.c.cfg
	a.resp.Start()
	for {
		some := a.in != nil && !a.in.empty()
		if some {
			n, err := a.resp.Scan(a.in.unread(), cfg.HeadLimit, cfg.Fields)
			if err != nil {
				return appFault(err)
			}
			if n > 0 {
				a.in.r += n
				return nil
			}
			if len(a.in.free()) == 0 {
				return a.readWideHead()
			}
		}
		if err != nil {
			return appError(err, !some)
		}
		err = a.read()
	}
}

// readWideHead goes on with a head that is longer than the buffer.
func (a *app) readWideHead() *h1.Error {
	cfg := a.c.cfg
	wide := append(make([]byte, 0, cfg.HeadLimit+inSize), a.in.unread()...)
	for {
		a.in.r, a.in.w = 0, 0
		if err := a.read(); err != nil {
			return appError(err, false)
		}
		before := len(wide)
		wide = append(wide, a.in.unread()...)
		n, err := a.resp.Scan(wide, cfg.HeadLimit, cfg.Fields)
		if err != nil {
			return appFault(err)
		}
		if n > 0 {
			a.in.r += n - before
			return nil
		}
	}
}

func appFault(why error) *h1.Error {
	return &h1.Error{Status: http.StatusBadGateway, Reason: h1.AppMalformed, Err: why}
}

// appError says what a failed read of a response means; none says that there was no byte of it.
func appError(err error, none bool) *h1.Error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	reason := h1.AppTruncated
	if none {
		reason = h1.AppClosed
	}
	return &h1.Error{Status: http.StatusBadGateway, Reason: reason, Err: err}
}

// interim passes on a 1xx response.
func (a *app) interim(s *stream) *h1.Error {
	c := a.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.retried = true // it has begun to answer: nothing may be repeated
	if s.dead {
		return errGone
	}
	if a.resp.Status() == http.StatusContinue && !s.req.Expect {
		return nil
	}
	c.startBlock()
	c.encoded = appendStatus(c.encoded, a.resp.Status())
	a.resp.Fields(false, c.field)
	c.putBlock(s, false)
	c.flush()
	return nil
}

// final passes on the final response whose head has been read.
func (a *app) final(s *stream) *h1.Error {
	c, b := a.c, &a.body
	b.Response(&a.resp, string(s.req.Method) == http.MethodHead)
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.dead {
		return errGone
	}
	s.begun = true
	s.outcome.Status = a.resp.Status()
	c.startBlock()
	c.encoded = appendStatus(c.encoded, a.resp.Status())
	a.resp.Fields(b.Chunked(), c.field)
	if n := a.resp.Length(); n >= 0 && !b.Chunked() && a.resp.Status() != http.StatusNoContent {
		c.encoded = appendLength(c.encoded, n)
	}
	c.putBlock(s, b.Ended())
	for !b.Ended() {
		if e := a.pass(s); e != nil {
			return e
		}
	}
	c.finish(s)
	return nil
}

// pass passes on what is there of the body, or reads more of it.
func (a *app) pass(s *stream) *h1.Error {
	c, b := a.c, &a.body
	if a.in == nil || a.in.empty() {
		c.flush()
		c.mu.Unlock()
		err := a.read()
		c.mu.Lock()
		switch {
		case err == nil:
		case s.dead:
			return errGone
		case errors.Is(err, io.EOF) && b.EndsWithConnection():
			b.End()
			return c.sendData(s, nil, true)
		default:
			return appError(err, false)
		}
		return nil
	}
	start, end, n, err := b.Next(a.in.unread())
	if err != nil {
		return appFault(err)
	}
	piece := a.in.unread()[start:end]
	a.in.r += n
	if !b.Ended() || !b.Chunked() {
		return c.sendData(s, piece, b.Ended())
	}
	return a.lastPiece(s, piece)
}

// lastPiece sends the last piece of a chunked body, and its trailer section.
func (a *app) lastPiece(s *stream, piece []byte) *h1.Error {
	c := a.c
	var trailers []byte
	if err := a.body.Trailers(c.cfg.Fields, func(name, value []byte) { trailers = appendField(trailers, name, value) }); err != nil {
		return appFault(err)
	}
	if e := c.sendData(s, piece, len(trailers) == 0); e != nil || len(trailers) == 0 {
		return e
	}
	if s.dead {
		return errGone
	}
	c.startBlock()
	c.encoded = append(c.encoded, trailers...)
	c.putBlock(s, true)
	return nil
}

// accepts reports whether the response changes to the protocol that r asked for (RFC 6455 section 4.1).
func (a *app) accepts(r *Request) bool {
	sum := sha1.Sum(append(append([]byte(nil), r.Field("sec-websocket-key")...), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return r.Protocol != "" && a.resp.Upgrades(r.Protocol) && string(a.resp.Field("Sec-WebSocket-Accept")) == base64.StdEncoding.EncodeToString(sum[:])
}

// pipe passes on bytes both ways once the app has changed protocols: the client hears of it as of any success (RFC 8441 section 5), the uploading half
// begins to move, this is the other.
func (a *app) pipe(s *stream) *h1.Error {
	c := a.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.dead {
		return errGone
	}
	s.begun, s.tunnel = true, true
	s.outcome.Status = http.StatusOK
	c.startBlock()
	c.encoded = appendStatus(c.encoded, http.StatusOK)
	a.resp.Fields(false, func(name, value []byte) {
		if !h1.EqualFold(name, "sec-websocket-accept") {
			c.field(name, value)
		}
	})
	c.putBlock(s, false)
	s.feed()
	for {
		if a.in != nil && !a.in.empty() {
			p := a.in.unread()
			if e := c.sendData(s, p, false); e != nil {
				return e
			}
			a.in.r = a.in.w
			continue
		}
		c.flush()
		c.mu.Unlock()
		err := a.read()
		c.mu.Lock()
		switch {
		case err == nil:
		case s.dead:
			return errGone
		case errors.Is(err, io.EOF):
			if e := c.sendData(s, nil, true); e != nil {
				return e
			}
			if s.remoteDone {
				c.finish(s)
				return nil
			}
			return a.halfClosed(s)
		default:
			return appError(err, false)
		}
	}
}

// halfClosed waits for the client to end its half as well.
func (a *app) halfClosed(s *stream) *h1.Error {
	a.c.flush()
	for !s.dead && s.uploading {
		s.await()
	}
	a.c.finish(s)
	return nil
}
