package h2

import (
	"errors"
	"net"
	"runtime"
	"time"

	"dstack.host/gateway/proxy/h1"
)

// takeOut makes sure that there is a buffer to append to.
func (c *conn) takeOut() {
	if c.out == nil {
		c.out = (*c.engine.outs.Get().(*[]byte))[:0]
	}
}

// giveOut gives the buffers back if nothing is in them.
func (c *conn) giveOut() {
	if c.flushing || len(c.out) > 0 {
		return
	}
	for _, p := range [...]*[]byte{&c.out, &c.spare} {
		if *p != nil && cap(*p) <= 2*outSize {
			back := (*p)[:0]
			c.engine.outs.Put(&back)
		}
		*p = nil
	}
}

// flush writes what waits for the client, unless somebody else is about to; conn.mu is released meanwhile. Those who are ready to run get the chance to add theirs
// first.
func (c *conn) flush() {
	if c.flushing || len(c.out) == 0 || c.closed {
		return
	}
	c.flushing = true
	c.mu.Unlock()
	runtime.Gosched()
	c.mu.Lock()
	for range 4 {
		if !c.write() {
			return
		}
	}
	c.tasks.Add(1) // the caller has other things to do as well
	go c.flusher()
}

// flushSoon leaves that to a goroutine: the reader must not wait for a client that waits for it.
func (c *conn) flushSoon() {
	if c.flushing || len(c.out) == 0 || c.closed {
		return
	}
	c.flushing = true
	c.tasks.Add(1)
	go c.flusher()
}

func (c *conn) flushAll() {
	defer c.tasks.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.write() {
	}
}

// write writes once, and reports whether there is more to write; if not, flushing has ended.
func (c *conn) write() bool {
	if len(c.out) == 0 || c.closed {
		c.flushing = false
		c.wakeReader()
		return false
	}
	p := c.out
	c.out, c.spare = c.spare, nil
	c.takeOut()
	now := time.Now()
	fresh := c.writeBy.Sub(now) < c.cfg.WriteTimeout*7/8
	if fresh {
		c.writeBy = now.Add(c.cfg.WriteTimeout)
	}
	c.mu.Unlock()
	err := c.send(p, fresh)
	c.mu.Lock()
	c.spare = p[:0]
	if err != nil {
		c.flushing = false
		c.cutLocked(err)
		return false
	}
	c.wakeReader()
	for _, s := range c.streams {
		s.nudge()
	}
	return true
}

func (c *conn) send(p []byte, fresh bool) error {
	if fresh {
		if err := c.nc.SetWriteDeadline(time.Now().Add(c.cfg.WriteTimeout)); err != nil {
			return err
		}
	}
	if c.cork == nil {
		_, err := c.nc.Write(p)
		return err
	}
	c.cork.Cork()
	_, err := c.nc.Write(p)
	return errors.Join(err, c.cork.Uncork())
}

// putBlock sends the header block in c.encoded.
func (c *conn) putBlock(s *stream, end bool) {
	c.takeOut()
	c.out = appendBlock(c.out, s.id, c.encoded, end)
	s.touch()
}

// startBlock begins one.
func (c *conn) startBlock() {
	c.encoded = c.encoded[:0]
	if !c.greeted {
		c.greeted = true
		c.encoded = append(c.encoded, emptyTable)
	}
}

// errGone says that nothing can be sent on a stream any more.
var errGone = &h1.Error{Reason: h1.ClientGone, Err: net.ErrClosed}

// sendData sends p as the windows and the buffer allow, and waits where they do not; conn.mu is released meanwhile. p stays the caller's.
func (c *conn) sendData(s *stream, p []byte, end bool) *h1.Error {
	for len(p) > 0 {
		if s.dead {
			return errGone
		}
		n := int(min(int64(len(p)), s.sendWindow, c.sendWindow, maxFrame))
		if n <= 0 || len(c.out) >= outSize {
			c.flush()
			if s.dead {
				return errGone
			}
			if s.sendWindow <= 0 || c.sendWindow <= 0 || len(c.out) >= outSize {
				s.await()
			}
			continue
		}
		if n < len(p) && n < tiny && !c.budgets.dribbles.spend() {
			c.quit(calm("the window lets only dribbles through"))
			return errGone
		}
		c.takeOut()
		c.out = appendData(c.out, s.id, p[:n], end && n == len(p))
		s.sendWindow -= int64(n)
		c.sendWindow -= int64(n)
		c.budgets.updates.earn(1 + n>>10)
		s.outcome.Sent += int64(n)
		s.touch()
		if n == len(p) {
			return nil
		}
		p = p[n:]
	}
	if s.dead {
		return errGone
	}
	if end {
		c.takeOut()
		c.out = appendData(c.out, s.id, nil, true)
	}
	return nil
}

// repay gives n bytes of window back, of the connection and of s unless that is nil. Small sums are kept until they are worth a frame.
func (c *conn) repay(s *stream, n int) {
	if n == 0 || c.closed {
		return
	}
	if c.recvDebt += n; c.recvDebt >= c.cfg.ConnWindow/4 {
		c.takeOut()
		c.out = appendUpdate(c.out, 0, c.recvDebt)
		c.recvWindow += int64(c.recvDebt)
		c.recvDebt = 0
	}
	if s == nil || s.remoteDone || s.dead {
		return
	}
	if s.recvDebt += n; s.recvDebt >= c.cfg.StreamWindow/4 {
		c.takeOut()
		c.out = appendUpdate(c.out, s.id, s.recvDebt)
		s.recvWindow += int64(s.recvDebt)
		s.recvDebt = 0
	}
}
