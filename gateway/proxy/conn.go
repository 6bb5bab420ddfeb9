package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"dstack.host/gateway/registry"
)

// conn is one accepted connection. Until its ClientHello has been replayed, Read returns that first.
type conn struct {
	net.Conn
	p             *Proxy
	client, local netip.AddrPort
	replay        []byte           // read already, and still to be read
	certificate   *tls.Certificate // set by the handshake; nil when a session was resumed
	routes        routes
	upstreams     upstreams // of HTTP/2; the HTTP/1.1 relay keeps its own

	closing sync.Once
	closed  chan struct{}
}

func (p *Proxy) newConn(c net.Conn) *conn {
	return &conn{Conn: c, p: p, client: addrPort(c.RemoteAddr()), local: addrPort(c.LocalAddr()), closed: make(chan struct{})}
}

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// Read returns the replayed bytes, then those of the connection.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.replay) > 0 {
		n := copy(b, c.replay)
		c.replay = c.replay[n:]
		return n, nil
	}
	c.replay = nil
	return c.Conn.Read(b)
}

// Close closes the connection and tells whoever waits for it.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.closing.Do(func() { close(c.closed) })
	return err
}

type connKey struct{}

// ServedCertificate returns the certificate that the connection of a request to Config.Own was handshaken with, from the request's
// context. It is nil when the session was resumed and for any other context.
func ServedCertificate(ctx context.Context) *tls.Certificate {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		return c.certificate
	}
	return nil
}

// serve is the whole life of one connection, which is counted in p.open. ctx ends when it must be cut.
func (p *Proxy) serve(ctx context.Context, tcp net.Conn) {
	defer p.open.Add(-1)
	c := p.newConn(tcp)
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer func() {
		if v := recover(); v != nil { // one connection must not end all others
			p.log.Error("connection", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	h, no := p.greet(c)
	if no != nil {
		p.log.Debug("connection refused", "client", c.client, "err", no.err)
		p.turnAway(c, no)
		return
	}
	where, name := p.names.find(h.serverName)
	switch {
	case where == foreign:
		p.log.Debug("connection refused", "client", c.client, "err", "foreign server name")
		p.turnAway(c, &refusal{alert: alertUnrecognizedName})
	case name.Passthrough:
		p.passthrough(ctx, c, name)
	default:
		p.terminate(context.WithValue(ctx, connKey{}, c), c, h)
	}
}

// greet reads and parses the ClientHello. A connection that has not said it yet has nothing to lose when draining begins.
func (p *Proxy) greet(c *conn) (hello, *refusal) {
	stop := context.AfterFunc(p.drain, func() { c.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a dead connection fails the read
	defer stop()
	c.SetReadDeadline(time.Now().Add(p.cfg.HelloTimeout)) //nolint:errcheck // likewise
	raw, message, err := readHello(c.Conn)
	if err != nil {
		return hello{}, refusalOf(raw, err)
	}
	h, err := parseHello(message)
	if err != nil {
		return hello{}, refusalOf(raw, err)
	}
	if !stop() {
		return hello{}, &refusal{err: context.Canceled}
	}
	c.SetReadDeadline(time.Time{}) //nolint:errcheck // likewise
	c.replay = raw
	return h, nil
}

// terminate does the TLS handshake and serves the protocol that it agreed on.
func (p *Proxy) terminate(ctx context.Context, c *conn, h hello) {
	tc := tls.Server(c, p.tls)
	defer tc.Close()
	if err := p.handshake(ctx, tc); err != nil {
		p.log.Debug("handshake", "client", c.client, "err", err)
		return
	}
	state := tc.ConnectionState()
	switch {
	case state.ECHAccepted: // the name that the router saw was the public one
		if where, name := p.names.find(strings.ToLower(state.ServerName)); where == foreign || name.Passthrough {
			p.log.Debug("connection refused", "client", c.client, "err", "encrypted server name is foreign or the app's own")
			return
		}
	case !strings.EqualFold(state.ServerName, h.serverName):
		p.log.Error("crypto/tls read another server name than the router", "client", c.client)
		return
	}
	if state.NegotiatedProtocol == "h2" {
		p.streams.serve(tc, c)
		return
	}
	p.serveHTTP1(ctx, tc, c)
}

func (p *Proxy) handshake(ctx context.Context, tc *tls.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.HandshakeTimeout)
	defer cancel()
	return tc.HandshakeContext(ctx)
}

// tlsConfig is crypto/tls's defaults with both HTTP versions on every name.
func (p *Proxy) tlsConfig() *tls.Config {
	c := new(tls.Config)
	if p.cfg.TLS != nil {
		c = p.cfg.TLS.Clone()
	}
	c.MinVersion, c.MaxVersion = tls.VersionTLS12, 0
	c.NextProtos = []string{"h2", "http/1.1"}
	c.Certificates = nil
	c.GetCertificate = func(info *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := p.cfg.Certificate(info)
		if c, ok := info.Conn.(*conn); ok {
			c.certificate = cert
		}
		return cert, err
	}
	return c
}

// maxRoutes bounds the names that one connection remembers.
const maxRoutes = 64

// routes remembers the backends of one connection, so that requests to one name share upstream connections for as long as the
// name leads to the same instances.
type routes struct {
	mu     sync.Mutex
	seq    uint64
	byName map[registry.Name]*backend
}

// backend returns where name leads in snapshot.
func (c *conn) backend(snapshot *registry.Snapshot, name registry.Name) (*backend, *failure) {
	instances := snapshot.Resolve(name)
	switch {
	case len(instances) == 0 && !snapshot.Loaded():
		return nil, fail(Starting, nil)
	case len(instances) == 0:
		return nil, fail(UnknownApp, nil)
	}
	r := &c.routes
	r.mu.Lock()
	defer r.mu.Unlock()
	if b := r.byName[name]; b != nil && sameInstances(b.instances, instances) {
		return b, nil
	}
	if r.byName == nil || len(r.byName) >= maxRoutes {
		r.byName = make(map[registry.Name]*backend)
	}
	r.seq++
	b := &backend{p: c.p, name: name, instances: instances, client: c.client, local: c.local, seq: r.seq}
	r.byName[name] = b
	return b, nil
}

// sameInstances compares by identity: an instance that registered anew is another one.
func sameInstances(a, b []*registry.Instance) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
