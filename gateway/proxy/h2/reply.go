package h2

import (
	"net/http"
	"time"

	"dstack.host/gateway/proxy/h1"
)

// answerLater answers s with reply, or with what the session says to e, in a goroutine of its own: the client's windows may be closed.
func (c *conn) answerLater(s *stream, reply *h1.Reply, e *h1.Error) {
	c.mu.Lock()
	s.refs++
	s.muffle()
	c.tasks.Add(1)
	c.mu.Unlock()
	go func() {
		defer c.tasks.Done()
		defer s.drop()
		defer c.rescue()
		if e != nil {
			c.fail(s, e)
			return
		}
		c.answer(s, reply)
	}()
}

func plain(e *h1.Error) *h1.Reply {
	return &h1.Reply{
		Status: e.Status, Body: []byte(string(e.Reason) + "\n"),
		Fields: []h1.Field{{Name: "Content-Type", Value: "text/plain; charset=utf-8"}, {Name: "Cache-Control", Value: "no-store"}},
	}
}

// answer sends a reply of the gateway itself, whose Handler is ignored.
func (c *conn) answer(s *stream, reply *h1.Reply) {
	status := reply.Status
	if status < 200 || status > 599 {
		status = http.StatusInternalServerError
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.dead {
		return
	}
	s.muffle()
	s.begun = true
	s.outcome.Status = status
	bodiless := status == http.StatusNoContent || status == http.StatusNotModified
	c.startBlock()
	c.encoded = appendStatus(c.encoded, status)
	for _, f := range reply.Fields {
		if h1.ValidField(f.Name, f.Value) {
			c.encoded = appendField(c.encoded, []byte(f.Name), []byte(f.Value))
		}
	}
	c.encoded = s.appendOwn(c.encoded)
	if !bodiless {
		c.encoded = appendLength(c.encoded, int64(len(reply.Body)))
	}
	body := reply.Body
	if bodiless || string(s.req.Method) == http.MethodHead {
		body = nil
	}
	c.putBlock(s, len(body) == 0)
	if len(body) > 0 && c.sendData(s, body, true) != nil {
		c.close(s)
		return
	}
	c.finish(s)
	if reply.Close && c.farewell == staying {
		c.farewell = announced
		c.depart()
	}
	c.flush()
}

// appendOwn appends the fields that every answer of the gateway itself has.
func (s *stream) appendOwn(out []byte) []byte {
	var buf [len(http.TimeFormat)]byte
	out = appendField(out, []byte("date"), time.Now().UTC().AppendFormat(buf[:0], http.TimeFormat))
	return appendField(out, []byte("x-request-id"), s.req.ID[:])
}
