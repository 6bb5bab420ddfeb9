package h1

import "time"

// patience is how long the app may be silent before the relay begins to look whether the client is still there. Nothing is spent on
// responses that come sooner.
const patience = time.Second

// watch reads from the client while a slow app is waited for. It owns the reading half of the client's connection and the exchange's spill,
// which receives what the client sends meanwhile, until done is closed.
type watch struct {
	done chan struct{}
	gone bool // the client has closed; set before done is closed
}

// readApp reads from the app, as long as the client is there. An upload notices by itself when it is not.
func (c *conn) readApp(p []byte, u *upload) (int, error) {
	if u != nil || c.watch != nil || !c.x.in.empty() || !c.x.spill.empty() || c.cfg.ResponseTimeout <= patience {
		return c.app.read(p, c.cfg.ResponseTimeout)
	}
	n, err := c.app.read(p, patience)
	if n > 0 || !isTimeout(err) {
		return n, err
	}
	c.watch = c.startWatch()
	return c.app.read(p, c.cfg.ResponseTimeout)
}

// startWatch starts a watch, which closes the app's connection when the client's has ended.
func (c *conn) startWatch() *watch {
	w := &watch{done: make(chan struct{})}
	buf, client, app := c.x.room(), c.client.Conn, c.app.Conn
	c.client.readBy = time.Time{}
	_ = client.SetReadDeadline(time.Time{})
	go func() {
		defer close(w.done)
		n, err := client.Read(buf.free())
		buf.w += n
		if n == 0 && !isTimeout(err) {
			w.gone = true
			_ = app.Close()
		}
	}()
	return w
}

// stopWatch ends the watch, if there is one, and reports whether the client is gone.
func (c *conn) stopWatch() bool {
	w := c.watch
	if w == nil {
		return false
	}
	c.watch = nil
	c.client.readBy = time.Unix(1, 0)
	_ = c.client.SetReadDeadline(c.client.readBy)
	<-w.done
	return w.gone
}
