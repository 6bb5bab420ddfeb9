package h1

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// conn is one client connection. It is for the goroutine in Serve alone, except for what is marked otherwise.
type conn struct {
	relay   *Relay
	cfg     *Config
	session Session
	addr    netip.AddrPort
	id      identity
	client  wire // the reading half belongs to an upload while there is one
	served  int

	app     wire // its Conn is nil while there is none; the writing half belongs to an upload while there is one
	backend Backend
	reused  bool      // app has answered a request
	partial bool      // the last request may not have been written to app whole
	idle    time.Time // since when app has been idle

	watch *watch    // nil unless the app is slow
	x     *exchange // nil while idle
	first [512]byte // what an idle connection reads into

	phase atomic.Int32 // busy, waiting or draining; drain may change it

	mu     sync.Mutex // guards what follows
	closed bool       // by the end of the context
	held   net.Conn   // app.Conn, for closing it from outside
}

const (
	busy int32 = iota
	waiting
	draining
)

// quietFor is how long an app's connection may have been idle and be used again without a look at whether the app has closed it.
const quietFor = 250 * time.Millisecond

// Serve relays the requests that arrive on nc until the connection ends, and closes nc. The end of ctx closes everything at once; see
// Config.Drain for the gentle way. It returns nil when the connection ended between two requests or after an answer that ends it, and
// otherwise why it was cut short.
//
// Serve runs in the caller's goroutine. It starts a second one, which ends before Serve does, only while a request body that is too long to
// wait for, or of unknown length, is being sent on, while an app has been silent for more than a second, and for an upgraded connection.
func (r *Relay) Serve(ctx context.Context, nc net.Conn, client Client) error {
	c := &conn{
		relay: r, cfg: &r.cfg, session: client.Session, addr: client.Addr, client: wire{Conn: nc},
		id: newIdentity(client.Addr, r.cfg.ForwardedProto),
	}
	defer context.AfterFunc(ctx, c.kill)()
	defer context.AfterFunc(r.cfg.Drain, c.drain)()
	defer c.release()
	defer c.closeApp()
	defer nc.Close()
	for {
		again, err := c.serveOne(ctx)
		if !again || err != nil {
			return err
		}
	}
}

// kill closes both connections. It may be called from any goroutine.
func (c *conn) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.client.cut()
	if c.held != nil {
		_ = c.held.Close()
	}
}

// drain wakes an idle connection up, to its end. It may be called from any goroutine.
func (c *conn) drain() {
	if c.phase.Swap(draining) == waiting {
		_ = c.client.SetReadDeadline(time.Unix(1, 0))
	}
}

func (c *conn) draining() bool { return c.phase.Load() == draining }

// serveOne serves one request and reports whether another may follow.
func (c *conn) serveOne(ctx context.Context) (again bool, err error) {
	if err := c.await(); err != nil {
		return false, ended(err)
	}
	x := c.x
	x.req.reset(c.addr, c.backend)
	x.outcome = Outcome{}
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			again, err = false, fmt.Errorf("panic: %v", p)
			x.outcome.Reason = Internal
			c.client.cut()
			c.x = nil // an upload may still be using it
		}
		x.outcome.Duration = time.Since(start)
		c.session.Done(&x.req, x.outcome)
	}()
	if e := c.readHead(start); e != nil {
		return c.fail(e, true)
	}
	c.served++
	return c.dispatch(ctx)
}

// ended turns the error of an idle connection into what Serve returns.
func ended(err error) error {
	if err == io.EOF || isTimeout(err) {
		return nil
	}
	return &Error{Reason: ClientGone, Err: err}
}

// dispatch asks where the request goes and brings it there.
func (c *conn) dispatch(ctx context.Context) (bool, error) {
	r := &c.x.req
	switch {
	case r.ContentLength < 0:
		c.x.reqBody.reset(chunked, 0)
	default:
		c.x.reqBody.reset(sized, r.ContentLength)
	}
	backend, reply := c.session.Route(ctx, r)
	switch {
	case reply != nil && reply.Handler != nil:
		return c.handle(ctx, reply.Handler)
	case reply != nil:
		return c.answer(reply, false)
	case backend == nil:
		return c.fail(refuse(http.StatusInternalServerError, Internal, fault("no backend")), true)
	}
	c.x.outcome.Backend = backend
	return c.forward(ctx, backend)
}

// await waits for the first byte of the next request, holding no buffers meanwhile.
func (c *conn) await() error {
	if c.x != nil && c.x.pending() {
		return nil
	}
	c.release()
	timeout := c.cfg.IdleTimeout
	if c.served == 0 {
		timeout = c.cfg.HeadTimeout
	}
	if err := c.client.allowRead(timeout); err != nil {
		return err
	}
	if !c.phase.CompareAndSwap(busy, waiting) { // from here on drain moves the deadline
		return io.EOF
	}
	n, err := c.client.Read(c.first[:])
	c.phase.CompareAndSwap(waiting, busy)
	if n == 0 {
		if err == nil {
			err = io.ErrNoProgress
		}
		return err
	}
	c.x = c.relay.exchanges.Get().(*exchange)
	c.x.in.fill(c.first[:n])
	return nil
}

// release gives the buffers back.
func (c *conn) release() {
	if c.x != nil && c.x.clear() {
		c.relay.exchanges.Put(c.x)
	}
	c.x = nil
}

// readHead reads and interprets the request head. The first bytes of it are there.
func (c *conn) readHead(start time.Time) *Error {
	x := c.x
	for {
		done, err := x.req.lines.scan(x.in.unread(), c.cfg.HeadLimit, c.cfg.Fields)
		switch {
		case err == errStartLong:
			return refuse(http.StatusRequestURITooLong, TooLarge, err)
		case err == errHeadLong, err == errFieldCount:
			return refuse(http.StatusRequestHeaderFieldsTooLarge, TooLarge, err)
		case err != nil:
			return refuse(http.StatusBadRequest, Malformed, err)
		case done:
			x.in.r += x.req.lines.end
			return x.req.interpret()
		}
		if len(x.in.free()) == 0 {
			x.in.widen(c.cfg.HeadLimit)
		}
		n, err := c.client.readUntil(x.in.free(), start.Add(c.cfg.HeadTimeout))
		x.in.w += n
		if n == 0 {
			return clientError(err)
		}
	}
}

// clientError says what a failed read of a request means.
func clientError(err error) *Error {
	if isTimeout(err) {
		return refuse(http.StatusRequestTimeout, RequestTimeout, fault("the request did not arrive in time"))
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return &Error{Reason: ClientGone, Err: err}
}

// connect makes app a connection to b that is fit for a request.
func (c *conn) connect(ctx context.Context, b Backend) *Error {
	if c.app.Conn != nil {
		if c.backend == b && (time.Since(c.idle) < quietFor || c.app.quiet()) {
			return nil
		}
		c.closeApp()
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	nc, err := b.Dial(ctx)
	if err != nil {
		return &Error{Status: http.StatusBadGateway, Reason: DialFailed, Err: err}
	}
	c.app, c.backend, c.reused = wire{Conn: nc}, b, false
	c.x.up.clear()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = nc
	if c.closed {
		_ = nc.Close()
	}
	return nil
}

func (c *conn) closeApp() {
	if c.app.Conn == nil {
		return
	}
	_ = c.app.Close()
	c.app, c.backend = wire{}, nil
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = nil
}
