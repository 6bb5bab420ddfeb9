package h2

import (
	"context"
	"net/http"

	"golang.org/x/net/http2"

	"dstack.host/gateway/proxy/h1"
)

// route asks where s goes. What needs no waiting is left until all that has arrived is read: with luck the body is there too.
func (c *conn) route(s *stream) {
	d := c.session.Route(c.ctx, &s.req)
	s.dest = d
	switch {
	case d.Stream != nil:
		c.handleLater(s, d.Stream, 0)
	case d.Reply != nil && d.Reply.Handler != nil:
		c.handleLater(s, d.Reply.Handler, int64(c.cfg.HandlerBody))
	case d.Reply != nil:
		c.answerLater(s, d.Reply, nil)
	case d.Backend == nil:
		c.answerLater(s, nil, &h1.Error{Status: http.StatusInternalServerError, Reason: h1.Internal, Err: fault("no backend")})
	default:
		s.outcome.Backend = d.Backend
		c.mu.Lock()
		s.refs++
		c.mu.Unlock()
		c.launches = append(c.launches, s)
	}
}

// launch sends off the requests that have been read.
func (c *conn) launch() {
	for i, s := range c.launches {
		c.launches[i] = nil
		c.depute(s)
	}
	c.launches = c.launches[:0]
}

// depute gives s, with the caller's reference, to an idle connection to its app, or to a goroutine that makes one. A request that is complete
// is written here, as far as that takes no waiting.
func (c *conn) depute(s *stream) {
	c.mu.Lock()
	a := (*app)(nil)
	if !s.dead && !c.closed {
		a = c.takeIdle(s.dest.Backend)
	}
	if a == nil {
		c.dial(s)
		c.mu.Unlock()
		return
	}
	a.stream, s.app, s.uploading = s, a, true
	if !s.remoteDone || len(s.body) > maxFrame || s.req.Protocol != "" || a.raw == nil {
		s.refs++
		c.tasks.Add(1)
		c.mu.Unlock()
		go c.upload(s, a, nil)
		return
	}
	s.refs++
	s.instant = true
	credit := s.credit
	s.credit = 0
	c.scratch = s.next(c.scratch[:0])
	c.mu.Unlock()
	n, err := a.tryWrite(c.scratch)
	c.mu.Lock()
	c.repay(s, credit)
	s.instant = false
	s.nudge()
	if err == nil && n < len(c.scratch) {
		rest := append([]byte(nil), c.scratch[n:]...)
		c.tasks.Add(1)
		c.mu.Unlock()
		go c.upload(s, a, rest)
		return
	}
	s.uploading = false
	s.sent = err == nil
	if err != nil && n == 0 && s.app == a && a.stream == s && !s.retried { // nothing has reached the app
		c.replace(s, a, append([]byte(nil), c.scratch...))
	}
	c.mu.Unlock()
	s.drop()
}

// dial starts the goroutine that connects to the app of s, whose reference it takes over.
func (c *conn) dial(s *stream) {
	if s.dead || c.closed {
		c.unref(s)
		return
	}
	ctx, cancel := context.WithCancelCause(c.ctx)
	s.cancel = cancel
	c.tasks.Add(1)
	go c.connect(ctx, s)
}

// replace takes s from a, which has failed it, and gives it to a new connection. The request was all in p, or if that is nil in a head.
func (c *conn) replace(s *stream, a *app, p []byte) {
	a.stream, s.app, s.retried = nil, nil, true
	_ = a.nc.Close()
	if s.again = p; p == nil {
		s.headSent, s.lastSent, s.sent = false, false, false
	}
	c.dial(s)
}

// connect makes a connection to the app of s and reads from it for as long as it lasts.
func (c *conn) connect(ctx context.Context, s *stream) {
	defer c.tasks.Done()
	defer c.rescue()
	within, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	nc, err := s.dest.Backend.Dial(within)
	cancel()
	c.mu.Lock()
	s.cancel(nil)
	s.cancel = nil
	if s.dead || c.closed {
		c.mu.Unlock()
		if nc != nil {
			_ = nc.Close()
		}
		s.drop()
		return
	}
	if err != nil {
		c.mu.Unlock()
		c.fail(s, &h1.Error{Status: http.StatusBadGateway, Reason: h1.DialFailed, Err: err})
		s.drop()
		return
	}
	a := newApp(c, nc, s.dest.Backend)
	a.stream, s.app, s.uploading = s, a, true
	s.refs++
	c.tasks.Add(1)
	here := s.remoteDone && len(s.body) == 0 && s.again == nil
	again := s.again
	c.mu.Unlock()
	if here {
		c.upload(s, a, nil)
	} else {
		go c.upload(s, a, again)
	}
	a.run()
}

// rescue keeps a mistake in what serves one connection from ending all others.
func (c *conn) rescue() {
	if p := recover(); p != nil {
		c.cut(panicked(p))
	}
}

// fail answers a request that could not be served, or breaks its stream off where an answer has begun.
func (c *conn) fail(s *stream, e *h1.Error) {
	c.mu.Lock()
	if s.outcome.Reason == "" {
		s.outcome.Reason = e.Reason
	}
	if s.dead {
		c.mu.Unlock()
		return
	}
	if s.begun || e.Status == 0 {
		c.reset(s, http2.ErrCodeInternal)
		c.flush()
		c.mu.Unlock()
		return
	}
	s.begun = true
	c.mu.Unlock()
	reply := c.session.Fail(&s.req, e)
	if reply == nil {
		reply = plain(e)
	}
	c.answer(s, reply)
}
