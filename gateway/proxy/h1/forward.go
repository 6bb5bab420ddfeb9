package h1

import (
	"context"
	"io"
	"net/http"
	"time"
)

// maxInformational bounds the 1xx responses to one request.
const maxInformational = 16

// forward carries the request to b and the response back.
func (c *conn) forward(ctx context.Context, b Backend) (bool, error) {
	if e := c.gather(); e != nil {
		return c.fail(e, true)
	}
	out, e := c.compose()
	if e != nil {
		return c.fail(e, true)
	}
	u, e := c.deliver(ctx, b, out)
	if e == nil && c.x.resp.status != http.StatusSwitchingProtocols {
		return c.respond(u)
	}
	if c.stopWatch() {
		e = clientError(nil)
	}
	if e != nil {
		unread := u != nil
		if gone := c.abandon(u); gone != nil {
			e = gone
		}
		return c.fail(e, unread)
	}
	return false, c.pipe()
}

// gather waits for the rest of a body that fits behind its head, so that both leave in one write.
func (c *conn) gather() *Error {
	x := c.x
	missing := x.reqBody.left - int64(len(x.in.unread()))
	if x.reqBody.framing != sized || missing <= 0 || missing > int64(len(x.in.free())) || x.req.Expect {
		return nil
	}
	for missing > 0 {
		n, err := c.client.read(x.in.free(), c.cfg.ReadTimeout)
		if n == 0 {
			return clientError(err)
		}
		x.in.w += n
		missing -= int64(n)
	}
	return nil
}

// compose returns the request as it goes to the app, with as much of the body as is there.
func (c *conn) compose() ([]byte, *Error) {
	x := c.x
	out := c.id.appendRequest(x.out[:0], &x.req, -1)
	if !x.reqBody.ended && !x.in.empty() {
		start, end, n, err := x.reqBody.next(x.in.unread())
		if err != nil {
			return nil, refuse(http.StatusBadRequest, Malformed, err)
		}
		x.outcome.Received += int64(end - start)
		kind := x.reqBody.framing
		if out, err = assemble(out, &x.in, &x.reqBody, x.in.r+start, x.in.r+end, kind, c.cfg.Fields); err != nil {
			return nil, refuse(http.StatusBadRequest, Malformed, err)
		}
		x.in.r += n
	}
	x.out = out[:0]
	return out, nil
}

// deliver writes the request to the app and reads the head of the final response. An upload that it returns runs.
//
// A connection that the app has closed since its last response is replaced once: if nothing could be written to it, whatever the request
// is; if it ended before the first byte of a response, when the request may be repeated (RFC 9112 section 9.3.1).
func (c *conn) deliver(ctx context.Context, b Backend, out []byte) (*upload, *Error) {
	c.x.continued = false
	for {
		if e := c.connect(ctx, b); e != nil {
			return nil, e
		}
		n, err := c.app.write(out, c.cfg.WriteTimeout)
		if err != nil && n == 0 && c.reused {
			c.closeApp()
			continue
		}
		c.partial = err != nil // the app may have answered early and closed: see what there is
		var u *upload
		if err == nil && !c.x.reqBody.ended {
			u = c.upload()
		}
		e := c.finalHead(u)
		if e == nil || e.Reason != AppClosed || !c.reused || !c.x.req.repeatable() {
			return u, e
		}
		if c.stopWatch() {
			return u, clientError(nil)
		}
		c.closeApp()
	}
}

// repeatable reports whether the request has no body and an idempotent method (RFC 9110 section 9.2.2).
func (r *Request) repeatable() bool {
	if r.ContentLength != 0 {
		return false
	}
	switch string(r.Method) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// abandon ends the request underway without a response, and returns what was wrong with its body, if anything was.
func (c *conn) abandon(u *upload) *Error {
	if u == nil {
		c.closeApp()
		return nil
	}
	u.stop()
	<-u.done
	c.closeApp()
	return u.err
}

// finalHead reads response heads up to the final one, and passes on those before it.
func (c *conn) finalHead(u *upload) *Error {
	x := c.x
	for i := 0; ; i++ {
		if e := c.responseHead(u); e != nil {
			return e
		}
		status := x.resp.status
		switch {
		case status == http.StatusSwitchingProtocols:
			if x.req.Upgrade == nil || !x.resp.options.upgrade || x.resp.upgrade == nil {
				return appFault(fault("the app changed to a protocol that nobody asked for"))
			}
			return nil
		case status >= 200:
			return nil
		case i == maxInformational:
			return appFault(fault("too many informational responses"))
		}
		c.reused = false // it has begun to answer: nothing may be repeated
		if x.req.Minor == 0 || status == http.StatusContinue && !x.req.Expect {
			continue
		}
		x.continued = x.continued || status == http.StatusContinue
		x.out = appendResponse(x.out[:0], &x.resp, noBody, false)
		if _, err := c.client.write(x.out, c.cfg.WriteTimeout); err != nil {
			return &Error{Reason: ClientGone, Err: err}
		}
	}
}

// responseHead reads one response head.
func (c *conn) responseHead(u *upload) *Error {
	x := c.x
	x.resp.reset()
	for {
		if !x.up.empty() {
			done, err := x.resp.lines.scan(x.up.unread(), c.cfg.HeadLimit, c.cfg.Fields)
			switch {
			case done:
				x.up.r += x.resp.lines.end
				err = x.resp.interpret()
			case err == nil && x.resp.lines.begun(): // what speaks no HTTP may never end its head
				err = x.resp.statusLine(x.resp.lines.bytes(x.resp.lines.start))
			}
			if err != nil {
				return appFault(err)
			}
			if done {
				return nil
			}
		} else {
			x.up.clear()
		}
		if len(x.up.free()) == 0 {
			x.up.widen(c.cfg.HeadLimit)
		}
		n, err := c.readApp(x.up.free(), u)
		x.up.w += n
		if n == 0 && !(isTimeout(err) && u.running()) {
			return appError(err, x.up.empty())
		}
	}
}

// appError says what a failed read of a response means; none says that there was no byte of it.
func appError(err error, none bool) *Error {
	switch {
	case isTimeout(err):
		return refuse(http.StatusGatewayTimeout, AppTimeout, fault("the app did not answer in time"))
	case err == nil || err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	if none {
		return refuse(http.StatusBadGateway, AppClosed, err)
	}
	return refuse(http.StatusBadGateway, AppTruncated, err)
}

// respond passes the response on whose head has been read, and settles what becomes of both connections.
func (c *conn) respond(u *upload) (bool, error) {
	x := c.x
	unsent := u == nil && !x.reqBody.ended                 // the app did not take the request whole
	refused := x.req.Expect && !x.continued && u.running() // the client may leave the body out: nobody can tell what comes next
	x.outcome.Status = x.resp.status
	e := c.relayBody(u, c.closing() || unsent || refused)
	gone := c.stopWatch()
	if gone && e != nil {
		e = clientError(nil)
	}
	if refused && e == nil {
		c.client.closeWrite()
	}
	c.settle(u, e == nil && !gone && !unsent && !refused && !c.partial && x.resp.persists() && x.up.empty())
	if u != nil && u.err != nil {
		e = u.err
	}
	switch {
	case e != nil && !x.respBegun:
		return c.fail(e, u != nil)
	case e != nil:
		x.outcome.Reason = e.Reason
		c.client.cut()
		return false, e
	case !x.reqBody.ended:
		c.linger()
		return false, nil
	}
	return !x.respLast, nil
}

// settle waits for the upload to end, and keeps the app's connection for the next request if that is in order and keep says so.
func (c *conn) settle(u *upload, keep bool) {
	if u != nil {
		if !keep {
			u.stop()
		}
		<-u.done
		keep = keep && c.x.reqBody.ended && !u.broken
	}
	if !keep {
		c.closeApp()
	}
	c.idle, c.reused = time.Now(), true
}

// closing reports whether the connection is to end with this response.
func (c *conn) closing() bool {
	return c.x.req.Close || c.served >= c.cfg.MaxRequests || c.draining()
}

// relayBody writes the response to the client, its head together with what is there of the body. Whatever tells the client where the body
// ends is written anew: a body that ends with the app's connection gets chunks, so that the client notices when some of it is missing.
func (c *conn) relayBody(u *upload, closing bool) *Error {
	x, b := c.x, &c.x.respBody
	from := x.resp.body(string(x.req.Method) == "HEAD")
	to := from
	switch {
	case from != chunked && from != toEOF:
	case x.req.Minor == 0:
		to, closing = toEOF, true
	default:
		to = chunked
	}
	x.respLast, x.respBegun = closing, false
	b.reset(from, x.resp.length)
	out := appendResponse(x.out[:0], &x.resp, to, closing)
	for {
		start, end, n, err := b.next(x.up.unread())
		if err != nil {
			return appFault(err)
		}
		x.outcome.Sent += int64(end - start)
		start, end = x.up.r+start, x.up.r+end
		x.up.r += n
		if out, err = assemble(out, &x.up, b, start, end, to, c.cfg.Fields); err != nil {
			return appFault(err)
		}
		if len(out) > 0 {
			x.respBegun = true
			if _, err := c.client.write(out, c.cfg.WriteTimeout); err != nil {
				return &Error{Reason: ClientGone, Err: err}
			}
		}
		if b.ended {
			return nil
		}
		if e := c.moreResponse(u, b); e != nil {
			return e
		}
		out = x.out[:0]
	}
}

// moreResponse reads more of the response body, or its end if that is the connection's.
func (c *conn) moreResponse(u *upload, b *body) *Error {
	c.x.up.clear()
	n, err := c.readApp(c.x.up.free(), u)
	c.x.up.w += n
	switch {
	case n > 0:
		return nil
	case b.framing == toEOF && err == io.EOF:
		b.ended = true
		return nil
	}
	return appError(err, false)
}
