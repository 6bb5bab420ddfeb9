package proxy

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"

	"dstack.host/gateway/proxy/h1"
	"dstack.host/gateway/registry"
)

// serveHTTP1 hands a connection to the relay.
func (p *Proxy) serveHTTP1(ctx context.Context, tc net.Conn, c *conn) {
	p.relay.Serve(ctx, tc, h1.Client{Addr: c.client, Session: &session{c: c}})
}

// session routes the requests of one HTTP/1.1 connection. The relay calls it from one goroutine at a time.
type session struct {
	c *conn

	// The last decision, which almost every next request repeats.
	snapshot  *registry.Snapshot
	authority []byte
	backend   *backend
	reason    Reason // of the last failure; "" without one
}

// Route implements h1.Session.
func (s *session) Route(_ context.Context, r *h1.Request) (h1.Backend, *h1.Reply) {
	s.reason = ""
	snapshot := s.c.p.cfg.Registry()
	if s.backend != nil && snapshot == s.snapshot && bytes.Equal(r.Authority, s.authority) && !mayBeReserved(r.Path) {
		return s.backend, nil
	}
	d, f := s.c.p.names.decide(string(r.Authority), string(r.Path), false)
	if f == nil && d.own {
		return nil, &h1.Reply{Handler: s.c.p.own(d.path)}
	}
	var b *backend
	if f == nil {
		b, f = s.c.backend(snapshot, d.name)
	}
	if f != nil {
		return nil, s.refuse(r, f)
	}
	s.snapshot, s.authority, s.backend = snapshot, append(s.authority[:0], r.Authority...), b
	return b, nil
}

// Fail implements h1.Session: it says in the gateway's words what the relay says in its own.
func (s *session) Fail(r *h1.Request, e *h1.Error) *h1.Reply { return s.refuse(r, relayFailure(e)) }

func (s *session) refuse(r *h1.Request, f *failure) *h1.Reply {
	s.reason = f.reason
	a := s.c.p.answer(f, string(r.ID[:]), string(r.Field("Accept")))
	return &h1.Reply{Status: a.status, Fields: a.fields, Body: a.body}
}

// relayFailure translates the relay's reasons.
func relayFailure(e *h1.Error) *failure {
	f := &failure{status: e.Status, err: e}
	switch e.Reason {
	case h1.Malformed, h1.VersionUnsupported, h1.MethodUnsupported, h1.CodingUnsupported, h1.ExpectationFailed:
		f.reason = BadRequest
	case h1.TooLarge:
		f.reason = TooLarge
	case h1.RequestTimeout:
		f.reason = RequestTimeout
	case h1.DialFailed:
		if known, ok := errors.AsType[*failure](e.Err); ok {
			return known
		}
		f = fail(TunnelDown, e)
	case h1.AppClosed, h1.AppTruncated:
		f.reason = AppClosed
	case h1.AppMalformed:
		f.reason = AppMalformed
	case h1.AppTimeout:
		f.reason = AppTimeout
	default:
		f.reason = Internal
	}
	return f
}

// Done implements h1.Session: the access log.
func (s *session) Done(r *h1.Request, o h1.Outcome) {
	log := s.c.p.log
	if !log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	reason := s.reason
	if reason == "" {
		reason = Reason(o.Reason)
	}
	s.c.p.access(accessLine{
		c: s.c, proto: "HTTP/1.1", method: string(r.Method), authority: string(r.Authority), id: string(r.ID[:]), status: o.Status, reason: reason,
		received: o.Received, sent: o.Sent, duration: o.Duration,
	})
}

// own is the gateway's own handler behind a reserved path, or for path "" behind one of its names.
func (p *Proxy) own(path string) http.Handler {
	if path == "" {
		return p.cfg.Own
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = r.Clone(r.Context())
		r.URL.Path, r.URL.RawPath = path, ""
		p.cfg.Own.ServeHTTP(w, r)
	})
}
