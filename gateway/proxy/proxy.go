package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"dstack.host/gateway/proxy/h1"
	"dstack.host/gateway/registry"
)

// Config is what a Proxy needs. The functions are called from many goroutines at once and must not block, except Dial, which may take
// as long as its context lets it.
type Config struct {
	Listen string   // TCP address, "host:port"; port 0 takes a free one
	Bases  []string // domains that are served: "dstack.host" means itself, "gateway.dstack.host" and every other label below it

	// Certificate answers handshakes for the served names.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// TLS is what else handshakes go by, such as session tickets and keys of Encrypted Client Hello. It is cloned. Versions, protocols
	// and certificates in it are ignored; nil is crypto/tls's defaults.
	TLS *tls.Config
	// Registry returns the present snapshot, never nil. It is asked once per request.
	Registry func() *registry.Snapshot
	// Dial connects to a port of an instance through the tunnel. A refused connection satisfies errors.Is(err, syscall.ECONNREFUSED); a
	// connection with a CloseWrite method keeps half-closes.
	Dial func(ctx context.Context, inst *registry.Instance, port uint16) (net.Conn, error)
	// TunnelUp reports whether an instance's last handshake is young enough.
	TunnelUp func(*registry.Instance) bool
	// Handshake is when that handshake was; nil takes all that are up for equally fresh.
	Handshake func(*registry.Instance) time.Time
	// Own answers for the bases, their "gateway" name, and AttestationPath on every served name, whether an app has that name or not. Its
	// requests have TLS set, the path in plain spelling, the trust headers of a forwarded request and a bounded body.
	Own http.Handler

	Node   string       // told in errors, for support; "" leaves it out
	TEE    string       // kind of the gateway's TEE, told on error pages: "tdx", "simulated-tdx" or "" for none
	Logger *slog.Logger // nil discards; one line a request at Debug is the access log

	MaxConnections   int           // open at once, more are closed unread; default 65,536
	MaxStreams       int           // concurrent requests on one HTTP/2 connection; default 128
	HelloTimeout     time.Duration // from accept to a whole ClientHello; default 5 s
	HandshakeTimeout time.Duration // from there to the end of the TLS handshake; default 10 s
	DialTimeout      time.Duration // to connect to an app, all attempts together; default 5 s
	KeepAlive        time.Duration // an HTTP connection without a request; default 75 s
	IdleTimeout      time.Duration // a passthrough connection, an upgraded one, or a request, without a byte either way; default 10 min
	DrainTimeout     time.Duration // for connections to end by themselves when Run's context has; default 10 s
}

// Proxy is the listener and everything behind it. Create one with New; nothing is served before Run.
type Proxy struct {
	cfg      Config // with defaults; set by New
	log      *slog.Logger
	names    names
	tls      *tls.Config
	relay    *h1.Relay
	streams  *streams
	listener net.Listener

	drain      context.Context // done when Run begins to end
	startDrain context.CancelFunc
	running    atomic.Bool
	open       atomic.Int64 // connections
}

// New checks c, reports all its faults together, and binds the address; the error names an address that is taken. The caller must Run
// or Close the Proxy.
func New(c Config) (*Proxy, error) {
	c.setDefaults()
	served, err := newNames(c.Bases)
	if err := errors.Join(err, c.check()); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p := &Proxy{cfg: c, log: c.Logger, names: served}
	p.drain, p.startDrain = context.WithCancel(context.Background())
	p.tls = p.tlsConfig()
	p.relay, err = h1.New(h1.Config{
		Drain: p.drain, IdleTimeout: c.KeepAlive, ResponseTimeout: c.IdleTimeout, PipeTimeout: c.IdleTimeout,
		HandlerBody: MaxOwnBody,
		DialTimeout: c.DialTimeout + time.Second, // Dial's own timeout comes first, and knows more
	})
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p.listener, err = net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("proxy: address %s: %w", c.Listen, err)
	}
	p.streams = newStreams(p)
	return p, nil
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.MaxConnections, 65536)
	setDefault(&c.MaxStreams, 128)
	setDefault(&c.HelloTimeout, 5*time.Second)
	setDefault(&c.HandshakeTimeout, 10*time.Second)
	setDefault(&c.DialTimeout, 5*time.Second)
	setDefault(&c.KeepAlive, 75*time.Second)
	setDefault(&c.IdleTimeout, 10*time.Minute)
	setDefault(&c.DrainTimeout, 10*time.Second)
}

func setDefault[T int | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

func (c *Config) check() error {
	var faults []error
	must := func(ok bool, what string) {
		if !ok {
			faults = append(faults, errors.New(what))
		}
	}
	must(c.Listen != "", "no listen address")
	must(c.Certificate != nil, "no Certificate")
	must(c.Registry != nil, "no Registry")
	must(c.Dial != nil, "no Dial")
	must(c.TunnelUp != nil, "no TunnelUp")
	must(c.Own != nil, "no Own")
	must(c.MaxConnections > 0, "max connections is negative")
	must(c.MaxStreams > 0, "max streams is negative")
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"hello timeout", c.HelloTimeout}, {"handshake timeout", c.HandshakeTimeout}, {"dial timeout", c.DialTimeout},
		{"keep-alive", c.KeepAlive}, {"idle timeout", c.IdleTimeout}, {"drain timeout", c.DrainTimeout},
	} {
		must(d.value > 0, d.name+" is negative")
	}
	return errors.Join(faults...)
}

// Addr is the address that New bound.
func (p *Proxy) Addr() net.Addr { return p.listener.Addr() }

// Close gives the address back when the Proxy is never run. A running Proxy ends with its context.
func (p *Proxy) Close() error {
	p.startDrain()
	return p.listener.Close()
}

// Run serves until ctx ends, then closes the listener, lets connections finish for Config.DrainTimeout, cuts the rest, and returns nil
// when the last one is gone. It can run once.
func (p *Proxy) Run(ctx context.Context) error {
	if p.running.Swap(true) {
		return errors.New("proxy: Run is called twice")
	}
	hard, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	defer context.AfterFunc(ctx, func() { p.listener.Close() })()
	var tasks, conns sync.WaitGroup
	tasks.Go(p.streams.run)
	err := p.accept(ctx, func(c net.Conn) {
		conns.Go(func() { p.serve(hard, c) })
	})
	p.listener.Close()
	p.startDrain()
	drained := make(chan struct{})
	tasks.Go(func() {
		conns.Wait()
		close(drained)
	})
	p.streams.shutdown(p.cfg.DrainTimeout, drained)
	cut()
	tasks.Wait()
	return err
}

// Accept errors are those of the process (no descriptors left) or of one peer; both pass. Waiting a little keeps the loop from spinning.
const (
	minBackOff = 5 * time.Millisecond
	maxBackOff = time.Second
)

// accept calls serve for each new connection, counted in p.open, until the listener is closed.
func (p *Proxy) accept(ctx context.Context, serve func(net.Conn)) error {
	backOff, full := minBackOff, false
	for {
		c, err := p.listener.Accept()
		switch {
		case err == nil:
			backOff = minBackOff
			if full = p.full(full); full {
				c.Close()
				continue
			}
			p.open.Add(1)
			serve(c)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("proxy: %w", err)
		default:
			p.log.Warn("accept", "err", err, "wait", backOff)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(backOff):
			}
			backOff = min(2*backOff, maxBackOff)
		}
	}
}

// full reports whether no more connections are taken, and says so once each time that begins.
func (p *Proxy) full(before bool) bool {
	now := p.open.Load() >= int64(p.cfg.MaxConnections)
	if now && !before {
		p.log.Warn("new connections are closed unread: too many are open", "limit", p.cfg.MaxConnections)
	}
	return now
}
