package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"dstack.host/gateway/proxy/h1"
)

// conn is one client connection.
type conn struct {
	// Set by Serve.
	engine  *Engine
	cfg     *Config
	ctx     context.Context
	nc      net.Conn
	cork    Corker // nil when nc has none
	session Session
	addr    netip.AddrPort
	id      *h1.Identity

	// The reader's alone.
	in       *buffer // nil while nothing happens
	first    [512]byte
	readBy   time.Time
	dec      *hpack.Decoder
	head     headReader
	block    []byte // of a head in several frames
	blockFor frame  // its first frame
	launches []*stream
	scratch  []byte
	settled  bool // the first SETTINGS have come

	tasks   sync.WaitGroup // everything else that runs
	flusher func()
	field   func(name, value []byte) // appends to encoded; for Response.Fields

	mu      sync.Mutex // guards what follows, and the streams and apps of this connection
	streams map[uint32]*stream
	idle    []*app
	lastID  uint32
	left    [32]uint32 // streams that were reset lately, for whose frames the client need not be told anything
	leftAt  int

	out      []byte // for the client
	spare    []byte
	encoded  []byte // a header block in the making
	greeted  bool   // the first block was sent
	flushing bool
	writeBy  time.Time
	stuck    chan struct{} // not nil while the reader waits for room in out

	sendWindow    int64
	recvWindow    int64
	recvDebt      int // consumed, and not yet given back to the client
	initialWindow int64
	budgets       budgets

	timer     *time.Timer
	ticking   bool
	tick      int64
	settingBy int64 // when our SETTINGS must have been acknowledged; 0 when they were
	blockBy   int64 // when the head in the making must be complete; 0 without one
	farewell  farewell
	leaveBy   int64
	fatal     *connError // noticed by others than the reader, who ends the connection for it
	closed    bool
	why       error // the first reason why it was cut
}

// farewell is how far a graceful end has come.
type farewell uint8

const (
	staying   farewell = iota
	announced          // the client knows that it shall send no more; what is on its way is still served
	leaving            // what comes now is not served
)

// Corker is a connection below TLS that can hold back what is written to it until Uncork, which writes it at once.
type Corker interface {
	Cork()
	Uncork() error
}

// Serve serves the requests that arrive on nc until the connection ends, and closes nc. The end of ctx closes everything at once; see Config.Drain
// for the gentle way. It returns nil when the connection ended as it should and otherwise why not, when all goroutines it caused are gone.
func (e *Engine) Serve(ctx context.Context, nc net.Conn, client Client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &conn{
		engine: e, cfg: &e.cfg, ctx: ctx, nc: nc, session: client.Session, addr: client.Addr, id: h1.NewIdentity(client.Addr, e.cfg.ForwardedProto),
		streams: make(map[uint32]*stream), sendWindow: 65535, initialWindow: 65535, recvWindow: int64(e.cfg.ConnWindow), budgets: newBudgets(),
		settingBy: e.ticks(e.cfg.HeadTimeout),
	}
	c.cork = corkerOf(nc)
	c.dec = hpack.NewDecoder(4096, c.head.emit)
	c.head.limit, c.head.fields = e.cfg.HeadLimit, e.cfg.Fields
	c.flusher = c.flushAll
	c.field = func(name, value []byte) { c.encoded = appendField(c.encoded, name, value) }
	defer context.AfterFunc(ctx, func() { c.cut(ctx.Err()) })()
	err := c.serve()
	c.leave(err)
	c.cut(err)
	c.tasks.Wait()
	c.release()
	return c.verdict(err)
}

func corkerOf(nc net.Conn) Corker {
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
		k, _ := t.NetConn().(Corker)
		return k
	}
	return nil
}

// verdict is what Serve returns.
func (c *conn) verdict(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case errors.Is(err, io.EOF) && c.why == err:
		return nil
	case c.why != nil:
		return c.why
	}
	return err
}

// serve reads frames until the connection ends; io.EOF stands for an end that may be.
func (c *conn) serve() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	c.greet()
	defer context.AfterFunc(c.cfg.Drain, c.drain)()
	if err := c.preface(); err != nil {
		return err
	}
	for {
		f, n, broken := parseFrame(c.in.unread())
		if broken == nil && n > 0 {
			c.in.r += n
			broken = c.handle(&f)
		}
		if broken != nil {
			c.launch()
			return broken
		}
		if n > 0 {
			continue
		}
		c.launch()
		if err := c.fill(); err != nil {
			return err
		}
	}
}

// greet queues the server's preface.
func (c *conn) greet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takeOut()
	c.out = appendSettings(c.out,
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(c.cfg.MaxStreams)},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.cfg.StreamWindow)},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: uint32(c.cfg.HeadLimit)},
		http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1},
		http2.Setting{ID: settingNoPriorities, Val: 1})
	c.out = appendUpdate(c.out, 0, c.cfg.ConnWindow-65535)
	c.startTicking()
	c.flushSoon()
}

// preface reads the client's.
func (c *conn) preface() error {
	c.in = c.engine.buffers.Get().(*buffer)
	for len(c.in.unread()) < len(http2.ClientPreface) {
		if err := c.fill(); err != nil {
			return err
		}
		if n := min(len(c.in.unread()), len(http2.ClientPreface)); string(c.in.unread()[:n]) != http2.ClientPreface[:n] {
			return broken(http2.ErrCodeProtocol, "the connection does not begin with the preface")
		}
	}
	c.in.r += len(http2.ClientPreface)
	return nil
}

// fill reads more from the client. A connection on which nothing is going on holds no buffers while it waits.
func (c *conn) fill() error {
	for {
		busy, err := c.mayRead()
		if err != nil {
			return err
		}
		p := c.first[:]
		if busy || !c.in.empty() {
			p = c.in.free()
		} else {
			c.rest()
		}
		n, err := c.nc.Read(p)
		if n > 0 {
			if c.in == nil {
				c.in = c.engine.buffers.Get().(*buffer)
				c.in.w = copy(c.in.data[:], p[:n])
			} else {
				c.in.w += n
			}
			return nil
		}
		if c.in == nil {
			c.in = c.engine.buffers.Get().(*buffer)
		}
		if err == nil {
			err = io.ErrNoProgress
		}
		if !isTimeout(err) {
			return err
		}
	}
}

// mayRead sees to the deadline, waits until the client has taken what it was owed, and reports whether streams are open.
func (c *conn) mayRead() (busy bool, err error) {
	c.mu.Lock()
	for len(c.out) > outSize && !c.closed {
		c.stuck = make(chan struct{})
		c.flushSoon()
		stuck := c.stuck
		c.mu.Unlock()
		<-stuck
		c.mu.Lock()
	}
	c.flushSoon()
	defer c.mu.Unlock()
	busy = len(c.streams) > 0
	now := time.Now()
	switch {
	case c.fatal != nil:
		return false, c.fatal
	case c.closed, c.farewell == leaving && !busy:
		return false, io.EOF
	case !busy && !c.readBy.IsZero() && now.After(c.readBy):
		return false, io.EOF
	}
	if by := now.Add(c.cfg.IdleTimeout); c.readBy.IsZero() || busy && by.Sub(c.readBy) > c.cfg.IdleTimeout/8 {
		c.readBy = by
		return busy, c.nc.SetReadDeadline(by)
	}
	return busy, nil
}

// rest gives the buffer back.
func (c *conn) rest() {
	c.in.r, c.in.w = 0, 0
	c.engine.buffers.Put(c.in)
	c.in = nil
}

// release gives back what is left when all is over.
func (c *conn) release() {
	if c.in != nil {
		c.in.r, c.in.w = 0, 0
		c.engine.buffers.Put(c.in)
	}
	c.out = c.out[:0]
	c.giveOut()
}

// startTicking has the connection looked at in every period until nothing is going on.
func (c *conn) startTicking() {
	switch {
	case c.ticking || c.closed:
		return
	case c.timer == nil:
		c.timer = time.AfterFunc(c.engine.period, c.onTick)
	default:
		c.timer.Reset(c.engine.period)
	}
	c.ticking = true
}

func (c *conn) onTick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.tick++
	if perSecond := max(1, int64(time.Second/c.engine.period)); c.tick%perSecond == 0 {
		c.budgets.pass()
	}
	switch {
	case c.settingBy > 0 && c.tick > c.settingBy:
		c.quit(broken(http2.ErrCodeSettingsTimeout, "the client has not acknowledged the settings"))
		return
	case c.blockBy > 0 && c.tick > c.blockBy:
		c.quit(broken(http2.ErrCodeEnhanceYourCalm, "a head has not been completed in time"))
		return
	case c.farewell == announced && c.tick > c.leaveBy:
		c.depart()
	}
	c.expire()
	c.prune()
	if len(c.streams) == 0 && c.settingBy == 0 && c.blockBy == 0 && c.farewell != announced {
		c.ticking = false
		c.giveOut()
		return
	}
	c.timer.Reset(c.engine.period)
}

// drain begins the graceful end: after the announcement, requests that are on their way are served for as long as a round trip takes, or a second.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.farewell != staying || c.closed {
		return
	}
	c.farewell = announced
	c.leaveBy = c.tick + c.engine.ticks(time.Second)
	c.takeOut()
	c.out = appendGoAway(c.out, maxWindow, http2.ErrCodeNo, "")
	c.out = appendPing(c.out, false, farewellPing[:])
	c.startTicking()
	c.flushSoon()
}

var farewellPing = [8]byte{'f', 'a', 'r', 'e', 'w', 'e', 'l', 'l'}

// depart says which request is the last.
func (c *conn) depart() {
	c.farewell = leaving
	c.takeOut()
	c.out = appendGoAway(c.out, c.lastID, http2.ErrCodeNo, "")
	c.flushSoon()
	c.leaveIfDone()
}

// quit has the reader end the connection for an error.
func (c *conn) quit(e *connError) {
	if c.fatal == nil {
		c.fatal = e
	}
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// leaveIfDone wakes the reader to its end when nothing is left to do.
func (c *conn) leaveIfDone() {
	if c.farewell == leaving && len(c.streams) == 0 {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

const (
	lingerTime = time.Second
	lingerMost = 256 << 10 // bytes that are read only to be thrown away
)

// leave says goodbye, if there is somebody to say it to. What the client is still sending is read for a moment, so that the last words are not lost
// to a reset.
func (c *conn) leave(err error) {
	wrong, isWrong := errors.AsType[*connError](err)
	c.mu.Lock()
	if c.closed || !isWrong && !errors.Is(err, io.EOF) {
		c.mu.Unlock()
		return
	}
	c.takeOut()
	switch {
	case isWrong:
		c.killStreams(h1.ClientGone)
		c.out = appendGoAway(c.out, c.lastID, wrong.code, wrong.why)
	case c.farewell != leaving:
		c.out = appendGoAway(c.out, c.lastID, http2.ErrCodeNo, "")
	}
	c.farewell = leaving
	c.flush()
	_ = c.nc.SetWriteDeadline(time.Now().Add(lingerTime))
	for c.flushing && !c.closed {
		c.stuck = make(chan struct{})
		stuck := c.stuck
		c.mu.Unlock()
		<-stuck
		c.mu.Lock()
	}
	c.mu.Unlock()
	if w, ok := c.nc.(interface{ CloseWrite() error }); !isWrong || !ok || w.CloseWrite() != nil {
		return
	}
	by := time.Now().Add(lingerTime)
	for dropped := 0; dropped < lingerMost && c.nc.SetReadDeadline(by) == nil; {
		n, err := c.nc.Read(c.in.data[:])
		if n == 0 || err != nil {
			return
		}
		dropped += n
	}
}

// cut ends everything at once.
func (c *conn) cut(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cutLocked(why)
}

func (c *conn) cutLocked(why error) {
	if c.closed {
		return
	}
	c.closed, c.why = true, why
	c.killStreams(h1.ClientGone)
	for _, a := range c.idle {
		_ = a.nc.Close()
	}
	c.idle = nil
	if c.timer != nil {
		c.timer.Stop()
	}
	c.wakeReader()
	c.tasks.Add(1)
	go func() {
		defer c.tasks.Done()
		_ = c.nc.Close() // which, under TLS, may take its time to say goodbye
	}()
}

func (c *conn) wakeReader() {
	if c.stuck != nil {
		close(c.stuck)
		c.stuck = nil
	}
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}
