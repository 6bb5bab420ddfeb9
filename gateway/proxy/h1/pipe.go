package h1

import (
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// pipe passes on a response of 101 (Switching Protocols), and after it bytes both ways, until both sides have ended their direction, one
// of them fails, or nothing has moved for Config.PipeTimeout.
func (c *conn) pipe() error {
	x := c.x
	x.outcome.Status = http.StatusSwitchingProtocols
	out := append(appendResponse(x.out[:0], &x.resp, noBody, false), x.up.unread()...)
	x.outcome.Sent += int64(len(x.up.unread()))
	if _, err := c.client.write(out, c.cfg.WriteTimeout); err != nil {
		return c.pipeEnd(err)
	}
	x.outcome.Received += int64(len(x.in.unread()))
	if !x.in.empty() {
		if _, err := c.app.write(x.in.unread(), c.cfg.WriteTimeout); err != nil {
			return c.pipeEnd(err)
		}
	}
	var moved atomic.Int64
	moved.Store(time.Now().UnixNano())
	up := flow{up: true, from: &c.client, to: &c.app, buf: x.room(), count: &x.outcome.Received}
	down := flow{from: &c.app, to: &c.client, buf: &x.up, count: &x.outcome.Sent}
	done := make(chan error, 1)
	go func() { done <- c.flow(&up, &moved) }()
	err := c.flow(&down, &moved)
	if other := <-done; err == nil {
		err = other
	}
	x.spill.clear()
	return c.pipeEnd(err)
}

func (c *conn) pipeEnd(err error) error {
	c.closeApp()
	if err == nil {
		return nil
	}
	c.x.outcome.Reason = ClientGone
	c.client.cut()
	return &Error{Reason: ClientGone, Err: err}
}

// errDeaf says that the app has closed. What it wrote before may still be on its way, so the other direction tells when all is over.
const errDeaf = fault("the app reads no more")

// flow is one direction of a pipe.
type flow struct {
	up       bool // towards the app
	from, to *wire
	buf      *buffer
	count    *int64
}

// flow copies one direction to its end. A failure ends both directions, as does an end that cannot be passed on by half.
func (c *conn) flow(f *flow, moved *atomic.Int64) error {
	err := f.copy(c.cfg, moved)
	switch {
	case err == io.EOF && f.to.closeWrite(), err == errDeaf:
		return nil
	case err == io.EOF:
		_ = c.client.Close()
		err = nil
	default:
		c.client.cut()
	}
	_ = c.app.Close()
	return err
}

func (f *flow) copy(cfg *Config, moved *atomic.Int64) error {
	f.buf.clear()
	p := f.buf.free()
	for {
		n, err := f.from.read(p, cfg.PipeTimeout)
		if n > 0 {
			moved.Store(time.Now().UnixNano())
			*f.count += int64(n)
			if _, err := f.to.write(p[:n], cfg.WriteTimeout); err != nil {
				if f.up && !isTimeout(err) {
					return errDeaf
				}
				return err
			}
		}
		if err == nil || isTimeout(err) && time.Since(time.Unix(0, moved.Load())) < cfg.PipeTimeout*7/8 {
			continue
		}
		return err
	}
}
