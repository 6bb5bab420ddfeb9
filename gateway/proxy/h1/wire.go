package h1

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// wire is a connection whose deadlines move only when they have become noticeably old, for setting one costs as much as a small read:
// an operation ends between seven eighths and the whole of its timeout. Reading and writing are independent of each other; each is for one
// goroutine at a time.
type wire struct {
	net.Conn
	readBy, writeBy time.Time
}

func (w *wire) read(p []byte, timeout time.Duration) (int, error) {
	if err := w.allowRead(timeout); err != nil {
		return 0, err
	}
	return w.Read(p)
}

// allowRead gives the next Read its time.
func (w *wire) allowRead(timeout time.Duration) error {
	if stale(&w.readBy, timeout) {
		return w.SetReadDeadline(w.readBy)
	}
	return nil
}

// readUntil reads with a fixed deadline.
func (w *wire) readUntil(p []byte, by time.Time) (int, error) {
	if !w.readBy.Equal(by) {
		w.readBy = by
		if err := w.SetReadDeadline(by); err != nil {
			return 0, err
		}
	}
	return w.Read(p)
}

func (w *wire) write(p []byte, timeout time.Duration) (int, error) {
	if stale(&w.writeBy, timeout) {
		if err := w.SetWriteDeadline(w.writeBy); err != nil {
			return 0, err
		}
	}
	return w.Write(p)
}

// stale moves a deadline if it is not within an eighth of timeout of where it should be.
func stale(by *time.Time, timeout time.Duration) bool {
	want := time.Now().Add(timeout)
	if early := want.Sub(*by); early >= 0 && early <= timeout/8 {
		return false
	}
	*by = want
	return true
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// closeWrite ends the sending direction, if the connection can do that, and reports whether it could.
func (w *wire) closeWrite() bool {
	c, ok := w.Conn.(interface{ CloseWrite() error })
	return ok && c.CloseWrite() == nil
}

// cut closes the connection so that the peer notices that something is missing: below TLS, without its closing alert, and with a reset where
// the transport knows one.
func (w *wire) cut() {
	below := w.Conn
	if c, ok := below.(interface{ NetConn() net.Conn }); ok {
		below = c.NetConn()
	}
	if c, ok := below.(interface{ SetLinger(seconds int) error }); ok {
		_ = c.SetLinger(0)
	}
	_ = below.Close()
	_ = w.Close()
}

// quiet reports whether nothing has arrived on an idle connection: neither an end, nor bytes that nobody asked for. A connection that
// cannot tell is taken for quiet.
func (w *wire) quiet() bool {
	c, ok := w.Conn.(syscall.Conn)
	if !ok {
		return w.quietRead()
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = err == syscall.EAGAIN
		return true
	})
	return err == nil && quiet
}

// quietRead is for connections that are no sockets, such as those of a network stack in the process: it waits, hardly, for a byte.
func (w *wire) quietRead() bool {
	var b [1]byte
	n, err := w.readUntil(b[:], time.Now().Add(100*time.Microsecond))
	return n == 0 && isTimeout(err)
}
