package h2

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"dstack.host/gateway/proxy/h1"
)

// app is a connection to an app. One goroutine reads from it, all its life; who writes to it owns stream.uploading.
type app struct {
	c       *conn
	nc      net.Conn
	raw     syscall.RawConn // nil where nc is no plain TCP connection
	backend h1.Backend

	stream *stream // guarded by conn.mu; nil while idle
	since  int64   // tick at which it became idle; guarded by conn.mu

	// The reading goroutine's.
	in     *buffer // nil while there is nothing to read
	first  [512]byte
	resp   h1.Response
	body   h1.Content
	used   bool // it has answered a request
	readFn func(fd uintptr) bool
	n      int
	err    error

	// The writer's.
	writeFn func(fd uintptr) bool
	pending []byte
	wrote   int
	werr    error
}

func newApp(c *conn, nc net.Conn, b h1.Backend) *app {
	a := &app{c: c, nc: nc, backend: b}
	if tcp, ok := nc.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			a.raw = raw
		}
	}
	a.readFn, a.writeFn = a.readOnce, a.writeOnce
	return a
}

// read reads into the buffer. On a TCP connection that has nothing to say no buffer is held meanwhile.
func (a *app) read() error {
	if a.raw == nil {
		return a.readPlain()
	}
	if err := a.raw.Read(a.readFn); err != nil {
		return err
	}
	return a.err
}

func (a *app) readOnce(fd uintptr) bool {
	fresh := a.in == nil
	if fresh {
		a.in = a.c.engine.buffers.Get().(*buffer)
	}
	for {
		a.n, a.err = syscall.Read(int(fd), a.in.free())
		if a.err != syscall.EINTR {
			break
		}
	}
	switch {
	case a.err == syscall.EAGAIN:
		if fresh {
			a.release()
		}
		return false
	case a.err != nil:
		a.n = 0
	case a.n == 0:
		a.err = io.EOF
	}
	a.in.w += max(a.n, 0)
	return true
}

func (a *app) readPlain() error {
	if a.in != nil {
		n, err := a.nc.Read(a.in.free())
		a.in.w += n
		if n > 0 {
			return nil
		}
		return err
	}
	n, err := a.nc.Read(a.first[:])
	if n > 0 {
		a.in = a.c.engine.buffers.Get().(*buffer)
		a.in.w = copy(a.in.data[:], a.first[:n])
		return nil
	}
	return err
}

func (a *app) release() {
	if a.in != nil {
		a.in.r, a.in.w = 0, 0
		a.c.engine.buffers.Put(a.in)
		a.in = nil
	}
}

// tryWrite writes as much of p as can be written without waiting.
func (a *app) tryWrite(p []byte) (int, error) {
	a.pending, a.wrote, a.werr = p, 0, nil
	err := a.raw.Write(a.writeFn)
	a.pending = nil
	if err == nil {
		err = a.werr
	}
	return a.wrote, err
}

func (a *app) writeOnce(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), a.pending)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
		case err != nil:
			a.werr = err
		default:
			a.wrote = n
		}
		return true
	}
}

// takeIdle finds an idle connection to b.
func (c *conn) takeIdle(b h1.Backend) *app {
	for i := len(c.idle) - 1; i >= 0; i-- {
		if a := c.idle[i]; a.backend == b {
			c.removeIdle(i)
			return a
		}
	}
	return nil
}

func (c *conn) removeIdle(i int) {
	last := len(c.idle) - 1
	copy(c.idle[i:], c.idle[i+1:])
	c.idle[last] = nil
	c.idle = c.idle[:last]
}

// prune closes connections that have been idle for too long.
func (c *conn) prune() {
	limit := c.engine.ticks(c.cfg.IdleTimeout)
	for len(c.idle) > 0 && c.tick-c.idle[0].since > limit {
		_ = c.idle[0].nc.Close()
		c.removeIdle(0)
	}
}

// run reads responses until the connection is of no more use.
func (a *app) run() {
	c := a.c
	defer a.release()
	defer a.nc.Close()
	for {
		err := a.read()
		c.mu.Lock()
		s := a.stream
		if s == nil { // idle: the app has closed, or says something that nobody asked for
			for i, other := range c.idle {
				if other == a {
					c.removeIdle(i)
					break
				}
			}
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		if !a.serve(s, err) {
			return
		}
	}
}

// serve passes on the response to s, of which a first read has brought something or err, and reports whether the connection may be used again. The
// reference to s ends here.
func (a *app) serve(s *stream, err error) bool {
	c := a.c
	e := a.respond(s, err)
	if e != nil {
		return a.failed(s, e)
	}
	c.mu.Lock()
	for s.instant { // the reader is between having written and saying so
		s.await()
	}
	keep := s.sent && !s.uploading && !c.closed && c.farewell != leaving && len(c.idle) < c.cfg.MaxStreams &&
		a.resp.Persists() && !a.body.EndsWithConnection() && (a.in == nil || a.in.empty()) && s.req.Protocol == ""
	a.stream, s.app = nil, nil
	if keep {
		a.used = true
		a.release()
		a.since = c.tick
		c.idle = append(c.idle, a)
	} else {
		_ = a.nc.Close()
	}
	c.flush()
	c.mu.Unlock()
	s.drop()
	return keep
}

// failed settles what becomes of s after e.
func (a *app) failed(s *stream, e *h1.Error) bool {
	c := a.c
	c.mu.Lock()
	for s.instant {
		s.await()
	}
	if a.stream != s { // it has been given to another connection
		c.mu.Unlock()
		return false
	}
	if e.Reason == h1.AppClosed && a.used && s.mayRepeat() {
		c.replace(s, a, nil)
		c.mu.Unlock()
		return false
	}
	a.stream, s.app = nil, nil
	_ = a.nc.Close()
	timedOut := s.timedOut
	c.mu.Unlock()
	if timedOut {
		e = &h1.Error{Status: http.StatusGatewayTimeout, Reason: h1.AppTimeout, Err: ErrTimeout}
	}
	if e != errGone {
		c.fail(s, e)
	}
	s.drop()
	return false
}

// mayRepeat reports whether a request that was sent on a connection which the app then closed without a word may be sent again (RFC 9112
// section 9.3.1).
func (s *stream) mayRepeat() bool {
	return s.remoteDone && s.sent && !s.retried && !s.begun && !s.dead && !s.timedOut && s.req.Protocol == "" && s.req.Repeatable()
}

// upload writes the request to the app: what is left of an earlier attempt, or the head, then the body as it comes. It owns s.uploading and a
// reference.
func (c *conn) upload(s *stream, a *app, rest []byte) {
	defer c.tasks.Done()
	defer s.drop()
	defer c.rescue()
	var err error
	if rest != nil {
		err = a.writeAll(rest, c.cfg.WriteTimeout)
	}
	out := make([]byte, 0, 4<<10)
	c.mu.Lock()
	for err == nil && !s.dead && s.app == a && !s.sentAll() {
		if !s.ready() {
			c.flush()
			if !s.ready() && !s.dead && s.app == a {
				s.starve()
			}
			continue
		}
		credit := s.credit
		s.credit = 0
		out = s.next(out[:0])
		c.mu.Unlock()
		err = a.writeAll(out, c.cfg.WriteTimeout)
		c.mu.Lock()
		c.repay(s, credit)
		s.touch()
	}
	s.sent = err == nil && s.sentAll()
	s.uploading = false
	if err != nil { // the app may have answered early; the rest of the body is for nobody
		s.muffle()
	}
	if s.req.Protocol != "" && s.sent && s.app == a {
		a.closeWrite()
	}
	s.nudge()
	c.flush()
	c.mu.Unlock()
}

func (a *app) writeAll(p []byte, timeout time.Duration) error {
	_ = a.nc.SetWriteDeadline(time.Now().Add(timeout))
	_, err := a.nc.Write(p)
	_ = a.nc.SetWriteDeadline(time.Time{})
	return err
}

func (a *app) closeWrite() {
	if w, ok := a.nc.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
		return
	}
	_ = a.nc.Close()
}

// muffle drops the body that is there and all that comes.
func (s *stream) muffle() {
	s.c.repay(s, s.credit)
	s.credit, s.body, s.deaf = 0, s.body[:0], true
}

// sentAll reports whether next would have nothing more to give, ever.
func (s *stream) sentAll() bool { return s.headSent && s.lastSent }

// ready reports whether next has something to give.
func (s *stream) ready() bool {
	if !s.headSent {
		return true
	}
	if s.req.Protocol != "" && !s.tunnel {
		return false
	}
	return len(s.body) > 0 || s.remoteDone && !s.lastSent
}

// next appends what the app is to be sent now, and takes it out of s.
func (s *stream) next(out []byte) []byte {
	if !s.headSent {
		s.headSent = true
		length := int64(-1)
		if s.remoteDone && s.req.Protocol == "" && s.req.ContentLength < 0 && len(s.trailers) == 0 {
			length = int64(len(s.body))
			s.sized = true
		}
		out = s.req.AppendTo(out, s.c.id, length)
		if s.req.Protocol != "" {
			return out
		}
	}
	chunked := s.req.ContentLength < 0 && !s.sized && s.req.Protocol == ""
	if chunked {
		out = h1.AppendChunk(out, s.body)
	} else {
		out = append(out, s.body...)
	}
	s.body = s.body[:0]
	if s.remoteDone && !s.lastSent {
		s.lastSent = true
		if chunked {
			out = append(out, "0\r\n"...)
			out = append(out, s.trailers...)
			out = append(out, "\r\n"...)
		}
	}
	return out
}

func panicked(p any) error { return fmt.Errorf("panic: %v", p) }
