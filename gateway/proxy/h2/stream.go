package h2

import (
	"context"
	"time"

	"golang.org/x/net/http2"

	"dstack.host/gateway/proxy/h1"
)

// stream is one request and its response. Whoever uses one outside of conn.mu holds a reference; all fields are guarded by conn.mu unless said
// otherwise.
type stream struct {
	c    *conn // set when it begins, as are the following
	id   uint32
	req  Request // written by the reader before anybody else has the stream
	from time.Time
	dest Destination

	refs       int
	open       bool // in conn.streams
	dead       bool // nothing more is to be sent to the client
	begun      bool // the final response has begun
	remoteDone bool // the client has sent everything
	touched    int64

	sendWindow int64
	recvWindow int64
	recvDebt   int
	left       int64 // of a body with a length; -1 without one

	body     []byte // received and not taken
	credit   int    // window that the body takes
	trailers []byte // lines for the app
	deaf     bool   // nobody wants more of the body: it is dropped
	limit    int64  // bytes of body after which it is too long; 0 for none

	app       *app
	headSent  bool // taken for sending, as the next two
	lastSent  bool
	sized     bool // a body of unknown length has turned out to be there whole
	sent      bool // the app has got the whole request
	tunnel    bool // the app has changed to the protocol that CONNECT asked for
	uploading bool // somebody is writing to the app
	instant   bool // it is the reader, who is done in no time
	again     []byte
	retried   bool
	timedOut  bool
	cancel    context.CancelCauseFunc // ends a dial or a handler

	waiting bool          // for wake
	wake    chan struct{} // the response may go on
	hungry  bool          // for more
	more    chan struct{} // the body goes on

	outcome h1.Outcome // Received guarded by conn.mu, the rest by who answers
}

// begin makes a stream for a new request. It is not open yet, and has one reference.
func (c *conn) begin(id uint32, end bool) *stream {
	s := c.engine.streams.Get().(*stream)
	*s = stream{
		c: c, id: id, req: s.req, from: time.Now(), refs: 1, remoteDone: end, left: -1,
		body: s.body[:0], trailers: s.trailers[:0], wake: s.wake, more: s.more,
	}
	s.req.Note, s.req.Protocol = "", ""
	s.req.Start(c.addr)
	return s
}

// enter opens s.
func (c *conn) enter(s *stream) {
	s.sendWindow, s.recvWindow, s.touched = c.initialWindow, int64(c.cfg.StreamWindow), c.tick
	s.open = true
	s.refs++
	c.streams[s.id] = s
	c.startTicking()
}

// drop gives a reference back, and ends s with the last.
func (s *stream) drop() {
	c := s.c
	c.mu.Lock()
	s.refs--
	last := s.refs == 0
	c.mu.Unlock()
	if last {
		s.end()
	}
}

func (s *stream) end() {
	c := s.c
	s.outcome.Duration = time.Since(s.from)
	c.session.Done(&s.req, s.outcome)
	drain(s.wake)
	drain(s.more)
	s.dest, s.app, s.cancel, s.outcome.Backend, s.c = Destination{}, nil, nil, nil, nil
	if cap(s.body) > 64<<10 {
		s.body = nil
	}
	c.engine.streams.Put(s)
}

func drain(ch chan struct{}) {
	select {
	case <-ch:
	default:
	}
}

// close takes s, of which the caller has a reference, off the connection. What it holds of the connection's window is given back.
func (c *conn) close(s *stream) {
	s.dead = true
	if !s.open {
		return
	}
	s.open = false
	s.refs--
	delete(c.streams, s.id)
	c.repay(nil, s.credit)
	s.credit, s.body = 0, s.body[:0]
	s.deaf = true
	s.nudge()
	s.feed()
	c.leaveIfDone()
}

// reset ends s in both directions and whatever is done for it.
func (c *conn) reset(s *stream, code http2.ErrCode) {
	if s.open && !c.closed {
		c.takeOut()
		c.out = appendReset(c.out, s.id, code)
		c.remember(s.id)
	}
	c.kill(s)
}

// kill ends whatever is done for s without telling the client.
func (c *conn) kill(s *stream) {
	c.close(s)
	if s.app != nil {
		_ = s.app.nc.Close()
	}
	if s.cancel != nil {
		s.cancel(context.Canceled)
	}
}

func (c *conn) killStreams(reason h1.Reason) {
	for _, s := range c.streams {
		if s.outcome.Reason == "" {
			s.outcome.Reason = reason
		}
		s.refs++
		c.kill(s)
		c.unref(s)
	}
}

// unref is drop for whoever holds conn.mu; an end, which calls out, is left to a goroutine.
func (c *conn) unref(s *stream) {
	if s.refs--; s.refs > 0 {
		return
	}
	c.tasks.Add(1)
	go func() {
		defer c.tasks.Done()
		s.end()
	}()
}

// finish ends the response. A client that is still sending is told that the rest is not needed (RFC 9113 section 8.1).
func (c *conn) finish(s *stream) {
	c.budgets.resets.earn(1)
	if s.open && !s.remoteDone {
		c.out = appendReset(c.out, s.id, http2.ErrCodeNo)
		c.remember(s.id)
	}
	c.close(s)
}

// remember notes that frames may still come for a stream that the client has not ended.
func (c *conn) remember(id uint32) {
	c.left[c.leftAt%len(c.left)] = id
	c.leftAt++
}

func (c *conn) remembered(id uint32) bool {
	for _, x := range c.left {
		if x == id {
			return true
		}
	}
	return false
}

// nudge wakes whoever waits to go on with the response.
func (s *stream) nudge() {
	if s.waiting {
		s.waiting = false
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// feed wakes whoever waits for the body.
func (s *stream) feed() {
	if s.hungry {
		s.hungry = false
		select {
		case s.more <- struct{}{}:
		default:
		}
	}
}

// await waits for nudge; conn.mu is released meanwhile.
func (s *stream) await() {
	s.waiting = true
	s.c.mu.Unlock()
	<-s.wake
	s.c.mu.Lock()
}

// starve waits for feed likewise.
func (s *stream) starve() {
	s.hungry = true
	s.c.mu.Unlock()
	<-s.more
	s.c.mu.Lock()
}

// touch says that something has moved.
func (s *stream) touch() { s.touched = s.c.tick }

// expire ends the requests on which nothing has moved for too long.
func (c *conn) expire() {
	limit := c.engine.ticks(c.cfg.StreamTimeout)
	for _, s := range c.streams {
		if c.tick-s.touched <= limit {
			continue
		}
		s.refs++
		switch {
		case s.begun || s.timedOut:
			if s.outcome.Reason == "" {
				s.outcome.Reason = h1.AppTimeout
			}
			c.reset(s, http2.ErrCodeCancel)
			c.flushSoon()
		case s.app != nil: // its reader answers
			s.timedOut = true
			s.touch()
			_ = s.app.nc.Close()
		default:
			s.timedOut = true
			s.touch()
			if s.cancel != nil {
				s.cancel(ErrTimeout)
			}
		}
		c.unref(s)
	}
}
