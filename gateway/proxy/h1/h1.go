// Package h1 is the gateway's HTTP/1.1 relay: it reads requests from one client connection, asks its [Session] where each one goes, and
// carries it to that backend over one upstream connection that no other client ever uses.
//
// The relay follows RFC 9110 and RFC 9112 and refuses what they leave to judgement: a head that two parsers could read differently is
// answered here with an error and "Connection: close" and never forwarded. What is forwarded is written anew from the parsed head: one
// spelling of the request line, of the framing and of every field line. Fields that carry trust (Forwarded, X-Forwarded-*, X-Real-Ip,
// X-Request-Id and their look-alikes) are dropped from the request and set last, by the relay alone.
//
// A request whose body arrives with its head costs no goroutine and no allocation; see Serve for what does.
package h1

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Config is shared by all connections of a [Relay]. Zero values stand for the defaults named at each field.
type Config struct {
	// Drain asks for a graceful end: once it is done, idle connections close and busy ones answer the request in hand with
	// "Connection: close". Nil never drains.
	Drain context.Context
	// ForwardedProto is what X-Forwarded-Proto and Forwarded say, "https" or "http"; default "https".
	ForwardedProto string

	HeadLimit   int // bytes of a request or response head, 1 KiB to 60 KiB; default 32 KiB
	Fields      int // field lines of a head, and of a trailer section; default 128
	HandlerBody int // bytes of request body that a [Reply] with a Handler receives at most; default 64 KiB
	MaxRequests int // requests on one client connection before it is closed; default 100,000

	HeadTimeout     time.Duration // from a request's first byte to the end of its head, and for a new connection's first byte; default 10 s
	IdleTimeout     time.Duration // between two requests; default 75 s
	ReadTimeout     time.Duration // without a byte of an unfinished request body; default 60 s
	WriteTimeout    time.Duration // of one write of at most 16 KiB and a head, to either side; default 30 s
	DialTimeout     time.Duration // of one Backend.Dial; default 5 s
	ResponseTimeout time.Duration // without a byte of an unfinished response; default 10 min
	PipeTimeout     time.Duration // without a byte either way after an upgrade; default 10 min
}

// Relay serves client connections. It is safe for concurrent use and keeps nothing between connections.
type Relay struct {
	cfg       Config    // set by New
	exchanges sync.Pool // of *exchange
}

// Backend is where a request goes. Two requests in a row on one client connection share the upstream connection if their backends compare
// equal with ==, so an implementation is a pointer or another comparable value; a long-lived pointer costs no allocation.
type Backend interface {
	// Dial opens a connection to the app. The relay owns and closes it. Its error reaches Session.Fail unwrapped in Error.Err.
	Dial(ctx context.Context) (net.Conn, error)
}

// Session is what one client connection asks of the code that accepted it. The relay calls it from one goroutine at a time.
type Session interface {
	// Route says where r goes: to a backend, or, when the reply is not nil, nowhere because the gateway answers it. It is asked once per
	// well-formed request.
	Route(ctx context.Context, r *Request) (Backend, *Reply)
	// Fail gives the reply to a request that could not be served; nil stands for a plain text one with e.Status and e.Reason. For a
	// request whose head could not be parsed r holds what had been understood, possibly nothing but its ID. A Handler in the reply is
	// ignored.
	Fail(r *Request, e *Error) *Reply
	// Done is told of every request that was answered or given up.
	Done(r *Request, o Outcome)
}

// Client describes one client connection.
type Client struct {
	Addr    netip.AddrPort // who X-Forwarded-For and the like name
	Session Session
}

// Request is a parsed request head. Its slices point into the relay's buffer and are valid until the Session method they were given to
// returns.
type Request struct {
	ID            [32]byte // lower hex, random; the app receives it as X-Request-Id
	Method        []byte   // a token, in the client's case
	Target        []byte   // in origin form ("/a?b") or "*", whichever form the client used
	Path          []byte   // Target without the query
	Authority     []byte   // the Host field's value: host, or host:port
	Host          []byte   // the host alone, in the client's case; an IPv6 literal keeps its brackets
	Port          uint16   // of Authority; 0 when it names none
	ContentLength int64    // of the body; 0 without one, -1 when it is chunked
	Minor         int      // 1 for HTTP/1.1, 0 for HTTP/1.0
	Close         bool     // the client closes after this request
	Upgrade       []byte   // the protocols that the connection is asked to change to; nil without or where it is ignored
	Expect        bool     // the client waits for 100 (Continue) before it sends the body
	Addr          netip.AddrPort
	Current       Backend // what the upstream connection is open to; nil without one

	options  options
	trailers bool // TE: trailers
	length   bool // Content-Length was present
	lines    head
}

// Field returns the value of the first field with that name (any case) and nil when there is none.
func (r *Request) Field(name string) []byte {
	for i := range r.lines.fields {
		if f := &r.lines.fields[i]; equalFold(r.lines.bytes(f.name), name) {
			return r.lines.bytes(f.value)
		}
	}
	return nil
}

// Field is one field line of a [Reply].
type Field struct{ Name, Value string }

// Reply is an answer of the gateway itself. The relay adds Date, Content-Length, Connection and X-Request-Id.
type Reply struct {
	Status int
	Fields []Field // those that are no valid field lines, or frame the message, are left out
	Body   []byte  // not sent in answer to HEAD
	Close  bool    // close the connection afterwards
	// Handler, when set, answers instead of all the above. It receives a request with the same rewritten fields as an app would, with TLS
	// set when the connection has a ConnectionState method, and with a body of at most Config.HandlerBody bytes (a longer one is refused
	// with 413).
	Handler http.Handler
}

// Outcome is what became of one request.
type Outcome struct {
	Status   int    // of the final response; 0 when none was sent
	Reason   Reason // why it failed; "" when it did not
	Received int64  // bytes of request body
	Sent     int64  // bytes of response body
	Duration time.Duration
	Backend  Backend // nil when the gateway answered
}

// New checks c and returns a Relay, or all faults of c.
func New(c Config) (*Relay, error) {
	setDefault(&c.ForwardedProto, "https")
	setDefault(&c.HeadLimit, 32<<10)
	setDefault(&c.Fields, 128)
	setDefault(&c.HandlerBody, 64<<10)
	setDefault(&c.MaxRequests, 100_000)
	setDefault(&c.HeadTimeout, 10*time.Second)
	setDefault(&c.IdleTimeout, 75*time.Second)
	setDefault(&c.ReadTimeout, time.Minute)
	setDefault(&c.WriteTimeout, 30*time.Second)
	setDefault(&c.DialTimeout, 5*time.Second)
	setDefault(&c.ResponseTimeout, 10*time.Minute)
	setDefault(&c.PipeTimeout, 10*time.Minute)
	if c.Drain == nil {
		c.Drain = context.Background()
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("h1: %w", err)
	}
	return &Relay{cfg: c, exchanges: sync.Pool{New: newExchange}}, nil
}

func (c *Config) check() error {
	var faults []error
	if c.ForwardedProto != "https" && c.ForwardedProto != "http" {
		faults = append(faults, fmt.Errorf("forwarded proto %q: want https or http", c.ForwardedProto))
	}
	if c.HeadLimit < 1<<10 || c.HeadLimit > 60<<10 {
		faults = append(faults, fmt.Errorf("head limit %d: want 1024 to 61440", c.HeadLimit))
	}
	for _, n := range []struct {
		name string
		n    int
	}{{"fields", c.Fields}, {"handler body", c.HandlerBody}, {"max requests", c.MaxRequests}} {
		if n.n < 1 {
			faults = append(faults, fmt.Errorf("%s %d: want at least 1", n.name, n.n))
		}
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"head timeout", c.HeadTimeout}, {"idle timeout", c.IdleTimeout}, {"read timeout", c.ReadTimeout}, {"write timeout", c.WriteTimeout},
		{"dial timeout", c.DialTimeout}, {"response timeout", c.ResponseTimeout}, {"pipe timeout", c.PipeTimeout},
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
