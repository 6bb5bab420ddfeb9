package h1

import (
	"net/http"
	"sync"
	"time"
)

const (
	lingerTime = time.Second
	lingerMost = 256 << 10 // bytes that are read only to be thrown away
)

// upload sends the rest of a request body to the app while the response is awaited and passed on. It owns the reading half of the client's
// connection, the writing half of the app's, and the exchange's reqBody and spill, until done is closed.
type upload struct {
	c    *conn
	x    *exchange
	done chan struct{}

	err     *Error // what was wrong with the body; set before done is closed, as are the following
	broken  bool   // the app stopped taking it
	dropped int

	mu sync.Mutex // guards what follows
	by time.Time  // when to stop reading; zero while no end is in sight
}

// upload starts one.
func (c *conn) upload() *upload {
	u := &upload{c: c, x: c.x, done: make(chan struct{})}
	go func() {
		defer close(u.done)
		u.run()
	}()
	return u
}

func (u *upload) running() bool {
	if u == nil {
		return false
	}
	select {
	case <-u.done:
		return false
	default:
		return true
	}
}

// stop ends the upload soon: the app gets no more of it, the client may finish what is on its way.
func (u *upload) stop() {
	_ = u.c.app.Close()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.by = time.Now().Add(lingerTime)
	_ = u.c.client.SetReadDeadline(u.by)
}

// run sends the body on. What is wrong with the body closes the app's connection, which ends the wait for a response.
func (u *upload) run() {
	x := u.x
	for !x.reqBody.ended && u.dropped <= lingerMost {
		if e := u.step(x.room()); e != nil {
			if !u.stopped() {
				u.err = e
			}
			_ = u.c.app.Close()
			return
		}
	}
}

func (u *upload) step(buf *buffer) *Error {
	c, x := u.c, u.x
	n, err := u.read(buf.free())
	if n == 0 {
		return clientError(err)
	}
	buf.w += n
	start, end, n, err := x.reqBody.next(buf.unread())
	if err != nil {
		return refuse(http.StatusBadRequest, Malformed, err)
	}
	start, end = buf.r+start, buf.r+end
	buf.r += n
	x.outcome.Received += int64(end - start)
	if u.broken {
		u.dropped += n
		return nil
	}
	p, err := assemble(nil, buf, &x.reqBody, start, end, x.reqBody.framing, c.cfg.Fields)
	if err != nil {
		return refuse(http.StatusBadRequest, Malformed, err)
	}
	if len(p) > 0 {
		_, err = c.app.write(p, c.cfg.WriteTimeout)
		u.broken = err != nil
	}
	return nil
}

func (u *upload) stopped() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.by.IsZero()
}

func (u *upload) read(p []byte) (int, error) {
	u.mu.Lock()
	by := u.by
	if by.IsZero() {
		by = time.Now().Add(u.c.cfg.ReadTimeout)
	}
	u.c.client.readBy = by
	err := u.c.client.SetReadDeadline(by)
	u.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return u.c.client.Read(p)
}

// linger ends a connection whose client may still be sending: it reads for a moment, so that what was written last is not lost to a reset
// (RFC 9112 section 9.6).
func (c *conn) linger() {
	c.client.closeWrite()
	by := time.Now().Add(lingerTime)
	for dropped := 0; dropped < lingerMost; {
		n, err := c.client.readUntil(c.x.room().free(), by)
		if n == 0 || err != nil {
			return
		}
		dropped += n
	}
}
