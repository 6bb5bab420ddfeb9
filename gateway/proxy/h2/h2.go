// Package h2 is the gateway's HTTP/2 server: it reads requests from one client connection, asks its [Session] where each one goes, and
// carries it to that backend over HTTP/1.1 connections that no other client ever uses.
//
// The engine follows RFC 9113 and RFC 8441. Heads are held to the rules of package h1, which also writes what the app receives, so that a
// request says the same whichever way it came. One goroutine reads the client's frames, one reads each connection to the app, and whoever has something
// for the client puts it into one buffer, which leaves in one write when all who are ready have put theirs. A request whose body arrives with
// its head costs no goroutine and, but for header fields the client has not sent before, no allocation.
//
// Response heads are compressed with the static table alone. That costs some 100 octets a response, and saves the memory of a dynamic table for each
// connection, its maintenance for each field, and the question what its hits tell an attacker (RFC 7541 section 7.1).
package h2

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"dstack.host/gateway/proxy/h1"
)

// Config is shared by all connections of an [Engine]. Zero values stand for the defaults named at each field.
type Config struct {
	// Drain asks for a graceful end: once it is done, clients are told to send no more requests, and connections close when the last one has
	// been answered. Nil never drains.
	Drain context.Context
	// ForwardedProto is what X-Forwarded-Proto and Forwarded say, "https" or "http"; default "https".
	ForwardedProto string

	MaxStreams   int // requests at once on one connection; default 128
	HeadLimit    int // bytes of a request or response head, 1 KiB to 60 KiB; default 32 KiB
	Fields       int // field lines of a head, and of a trailer section; default 128
	HandlerBody  int // bytes of request body that a reply with a Handler receives at most; default 64 KiB
	StreamWindow int // bytes of request body that one stream holds at most; default 256 KiB
	ConnWindow   int // bytes of request bodies that a connection holds at most; default 1 MiB

	HeadTimeout   time.Duration // for the preface, the acknowledgement of SETTINGS, and a head in several frames; default 10 s
	IdleTimeout   time.Duration // without a request; default 75 s
	WriteTimeout  time.Duration // of one write to either side; default 30 s
	DialTimeout   time.Duration // of one Backend.Dial; default 5 s
	StreamTimeout time.Duration // of a request without a byte either way; default 10 min
}

// Engine serves client connections. It is safe for concurrent use and keeps nothing between connections but empty buffers.
type Engine struct {
	cfg     Config // set by New
	period  time.Duration
	buffers sync.Pool // of *buffer
	streams sync.Pool // of *stream
	outs    sync.Pool // of *[]byte
}

// Session is what one client connection asks of the code that accepted it. Route is called by one goroutine at a time, the others by any.
type Session interface {
	// Route says where r goes. It is asked once per well-formed request and must not block.
	Route(ctx context.Context, r *Request) Destination
	// Fail gives the reply to a request that could not be served; nil stands for a plain text one with e.Status and e.Reason. A Handler
	// in it is ignored.
	Fail(r *Request, e *h1.Error) *h1.Reply
	// Done is told of every request whose head could be read, after all else.
	Done(r *Request, o h1.Outcome)
}

// Request is a request head. It is valid until Done returns.
type Request struct {
	h1.Request
	// Protocol is what an extended CONNECT (RFC 8441) asks for, "websocket"; the Method is GET then. Otherwise "".
	Protocol string
	// Note is the session's, empty at first.
	Note string
}

// Destination is one of a backend, a reply of the gateway itself, and a handler that gets the request as it comes and answers in
// the same way, both directions at once and without limits; its request's context ends with [ErrTimeout] as cause when nothing moves.
type Destination struct {
	Backend h1.Backend
	Reply   *h1.Reply
	Stream  http.Handler
}

// ErrTimeout ends a request on which nothing has moved for Config.StreamTimeout.
var ErrTimeout = errors.New("h2: nothing has moved for too long")

// Client describes one client connection.
type Client struct {
	Addr    netip.AddrPort // who X-Forwarded-For and the like name
	Session Session
}

// New checks c and returns an Engine, or all faults of c.
func New(c Config) (*Engine, error) {
	setDefault(&c.ForwardedProto, "https")
	setDefault(&c.MaxStreams, 128)
	setDefault(&c.HeadLimit, 32<<10)
	setDefault(&c.Fields, 128)
	setDefault(&c.HandlerBody, 64<<10)
	setDefault(&c.StreamWindow, 256<<10)
	setDefault(&c.ConnWindow, 1<<20)
	setDefault(&c.HeadTimeout, 10*time.Second)
	setDefault(&c.IdleTimeout, 75*time.Second)
	setDefault(&c.WriteTimeout, 30*time.Second)
	setDefault(&c.DialTimeout, 5*time.Second)
	setDefault(&c.StreamTimeout, 10*time.Minute)
	if c.Drain == nil {
		c.Drain = context.Background()
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("h2: %w", err)
	}
	e := &Engine{cfg: c, period: min(time.Second, max(min(c.StreamTimeout, c.HeadTimeout)/4, 5*time.Millisecond))}
	e.buffers.New = func() any { return new(buffer) }
	e.streams.New = func() any { return &stream{wake: make(chan struct{}, 1), more: make(chan struct{}, 1)} }
	e.outs.New = func() any { p := make([]byte, 0, outSize); return &p }
	return e, nil
}

func (c *Config) check() error {
	var faults []error
	if c.ForwardedProto != "https" && c.ForwardedProto != "http" {
		faults = append(faults, fmt.Errorf("forwarded proto %q: want https or http", c.ForwardedProto))
	}
	for _, n := range []struct {
		name        string
		n, min, max int
	}{
		{"max streams", c.MaxStreams, 1, 1 << 16}, {"head limit", c.HeadLimit, 1 << 10, 60 << 10}, {"fields", c.Fields, 8, 1 << 10},
		{"handler body", c.HandlerBody, 1, c.StreamWindow}, {"stream window", c.StreamWindow, 16 << 10, c.ConnWindow},
		{"connection window", c.ConnWindow, 64 << 10, 1 << 30},
	} {
		if n.n < n.min || n.n > n.max {
			faults = append(faults, fmt.Errorf("%s %d: want %d to %d", n.name, n.n, n.min, n.max))
		}
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"head timeout", c.HeadTimeout}, {"idle timeout", c.IdleTimeout}, {"write timeout", c.WriteTimeout}, {"dial timeout", c.DialTimeout},
		{"stream timeout", c.StreamTimeout},
	} {
		if d.d < 0 {
			faults = append(faults, fmt.Errorf("%s %v: want a positive duration", d.name, d.d))
		}
	}
	return errors.Join(faults...)
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// ticks is how many periods d is.
func (e *Engine) ticks(d time.Duration) int64 { return int64(d/e.period) + 1 }
