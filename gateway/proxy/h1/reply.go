package h1

import (
	"net/http"
	"slices"
	"time"
)

// fail answers a request that could not be served, or cuts the connection where no answer is possible. With last set the connection ends;
// otherwise it may go on if the request body allows it.
func (c *conn) fail(e *Error, last bool) (bool, error) {
	x := c.x
	x.outcome.Reason = e.Reason
	if e.Status == 0 {
		c.client.cut()
		return false, e
	}
	reply := c.session.Fail(&x.req, e)
	if reply == nil {
		reply = plain(e)
	}
	return c.answer(reply, last)
}

func plain(e *Error) *Reply {
	return &Reply{
		Status: e.Status, Body: []byte(string(e.Reason) + "\n"),
		Fields: []Field{{"Content-Type", "text/plain; charset=utf-8"}, {"Cache-Control", "no-store"}},
	}
}

// answer writes a reply of the gateway itself. With last set it ends the connection whatever the reply says.
func (c *conn) answer(reply *Reply, last bool) (bool, error) {
	x := c.x
	last = last || reply.Close || c.closing() || !c.droppable()
	x.outcome.Status = reply.Status
	x.out = c.appendReply(x.out[:0], reply, last)
	if _, err := c.client.write(x.out, c.cfg.WriteTimeout); err != nil {
		return false, &Error{Reason: ClientGone, Err: err}
	}
	if !last {
		last = c.drop() != nil
	}
	if last {
		c.linger()
	}
	return !last, nil
}

// droppable reports whether what is left of the request body is short and on its way.
func (c *conn) droppable() bool {
	b := &c.x.reqBody
	return b.ended || b.framing == sized && b.left <= lingerMost && !c.x.req.Expect
}

// drop reads the rest of the request body.
func (c *conn) drop() *Error {
	for !c.x.reqBody.ended {
		if _, e := c.moreRequest(); e != nil {
			return e
		}
	}
	return nil
}

// moreRequest returns the next piece of the request body, empty if only framing was there. It is valid until the next call.
func (c *conn) moreRequest() ([]byte, *Error) {
	x, buf := c.x, &c.x.in
	if buf.empty() {
		buf = x.room()
		n, err := c.client.read(buf.free(), c.cfg.ReadTimeout)
		if n == 0 {
			return nil, clientError(err)
		}
		buf.w += n
	}
	start, end, n, err := x.reqBody.next(buf.unread())
	if err != nil {
		return nil, refuse(http.StatusBadRequest, Malformed, err)
	}
	piece := buf.unread()[start:end]
	buf.r += n
	x.outcome.Received += int64(len(piece))
	return piece, nil
}

func (c *conn) appendReply(out []byte, reply *Reply, last bool) []byte {
	r := &c.x.req
	status := reply.Status
	if status < 200 || status > 599 {
		status = http.StatusInternalServerError
	}
	out = appendStatus(out, status, []byte(http.StatusText(status)))
	for _, f := range reply.Fields {
		if classify([]byte(f.Name + "-")[:len(f.Name)]) == ordinary && validField(f.Name, f.Value) {
			out = appendField(out, []byte(f.Name), []byte(f.Value))
		}
	}
	out = c.appendOwn(out, last)
	bodiless := status == http.StatusNoContent || status == http.StatusNotModified
	if !bodiless {
		out = appendLength(out, int64(len(reply.Body)))
	}
	out = append(out, '\r', '\n')
	if !bodiless && string(r.Method) != http.MethodHead {
		out = append(out, reply.Body...)
		c.x.outcome.Sent += int64(len(reply.Body))
	}
	return out
}

// appendOwn appends the fields that every answer of the gateway itself has.
func (c *conn) appendOwn(out []byte, last bool) []byte {
	out = append(out, "Date: "...)
	out = time.Now().UTC().AppendFormat(out, http.TimeFormat)
	out = append(out, "\r\nX-Request-Id: "...)
	out = append(out, c.x.req.ID[:]...)
	out = append(out, '\r', '\n')
	if last {
		out = append(out, "Connection: close\r\n"...)
	}
	return out
}

func validField(name, value string) bool {
	return len(name) > 0 && all([]byte(name), isToken) && !slices.ContainsFunc([]byte(value), func(b byte) bool { return octets[b]&isValue == 0 })
}
