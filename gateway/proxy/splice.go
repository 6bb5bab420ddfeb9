package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"dstack.host/gateway/registry"
)

// passthrough hands the connection to the app as it is, ClientHello first. Where that is impossible the client gets a TLS alert: the
// gateway has no business in answering for the app with a certificate of its own.
func (p *Proxy) passthrough(ctx context.Context, c *conn, name registry.Name) {
	start := time.Now()
	app, f := p.dialPassthrough(ctx, c, name)
	if f != nil {
		alert := byte(alertInternalError)
		if f.reason == UnknownApp {
			alert = alertUnrecognizedName
		}
		p.log.Debug("passthrough refused", "client", c.client, "id", name.ID, "port", name.Port, "reason", f.reason, "err", f.err)
		p.turnAway(c, &refusal{alert: alert})
		return
	}
	defer app.Close()
	received, sent, err := splice(ctx, c.Conn, app, p.cfg.IdleTimeout)
	p.log.Debug("passthrough", "client", c.client, "id", name.ID, "port", name.Port, "received", received, "sent", sent,
		"duration", time.Since(start), "err", err)
}

// dialPassthrough connects to the app and writes it the ClientHello.
func (p *Proxy) dialPassthrough(ctx context.Context, c *conn, name registry.Name) (net.Conn, *failure) {
	b, f := c.backend(p.cfg.Registry(), name)
	if f != nil {
		return nil, f
	}
	app, err := b.Dial(ctx)
	if err != nil {
		return nil, asFailure(err)
	}
	app.SetWriteDeadline(time.Now().Add(p.cfg.DialTimeout)) //nolint:errcheck // a dead connection fails the write
	if _, err := app.Write(c.replay); err != nil {
		app.Close()
		return nil, fail(AppClosed, err)
	}
	c.replay = nil
	return app, nil
}

var errIdle = errors.New("no byte either way for too long")

// spliceSlice is how many bytes one copy moves at most before it looks at the clock.
const spliceSlice = 1 << 20

const spliceBuffer = 32 << 10

var spliceBuffers = sync.Pool{New: func() any { return new([spliceBuffer]byte) }}

// splice copies both ways until both have ended, ctx is done, or no byte has moved for idle. An end of one direction is passed on as a
// half-close. Both connections are closed at the end, except after a clean end of both directions, where that is the caller's. Between two
// TCP connections the kernel moves the bytes (net.TCPConn.ReadFrom).
func splice(ctx context.Context, client, app net.Conn, idle time.Duration) (received, sent int64, err error) {
	cut := func() {
		client.Close()
		app.Close()
	}
	defer context.AfterFunc(ctx, cut)()
	s := &splicer{idle: idle}
	s.moved()
	var down error
	var back sync.WaitGroup
	back.Go(func() {
		if sent, down = s.copy(client, app); down != nil {
			cut()
		}
	})
	received, up := s.copy(app, client)
	if up != nil {
		cut()
	}
	back.Wait()
	return received, sent, errors.Join(up, down)
}

// splicer is what both directions of one splice share.
type splicer struct {
	idle time.Duration
	last atomic.Int64 // when a byte moved last, in either direction
}

func (s *splicer) moved()      { s.last.Store(time.Now().UnixNano()) }
func (s *splicer) tired() bool { return time.Since(time.Unix(0, s.last.Load())) >= s.idle }

// copy moves bytes from src to dst until src ends, then half-closes dst. It wakes a few times per idle period, because a direction may
// rest for ever while the other is busy.
func (s *splicer) copy(dst, src net.Conn) (total int64, err error) {
	for {
		wake := time.Now().Add(s.idle / 4)
		stuck := wake.Add(s.idle)
		src.SetReadDeadline(wake)   //nolint:errcheck // a dead connection fails the read
		dst.SetWriteDeadline(stuck) //nolint:errcheck // likewise the write
		n, err := copySlice(dst, src)
		total += n
		if n > 0 {
			s.moved()
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			// After a write that ran into its deadline bytes are lost, so that one is final even if some have moved.
			if n == 0 && s.tired() || !time.Now().Before(stuck) {
				return total, errIdle
			}
		case err != nil:
			return total, err
		case n < spliceSlice: // src has ended
			closeWrite(dst)
			return total, nil
		}
	}
}

// copySlice copies up to spliceSlice bytes; fewer without an error mean that src has ended.
func copySlice(dst, src net.Conn) (int64, error) {
	limited := &io.LimitedReader{R: src, N: spliceSlice}
	if _, ok := src.(*net.TCPConn); ok {
		if to, ok := dst.(*net.TCPConn); ok {
			return to.ReadFrom(limited)
		}
	}
	buf := spliceBuffers.Get().(*[spliceBuffer]byte)
	defer spliceBuffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{dst}, limited, buf[:])
}

// closeWrite passes the end of a direction on. A connection that cannot be closed by halves stays open until the other direction ends.
func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		half.CloseWrite() //nolint:errcheck // a dead connection fails the other direction
	}
}
