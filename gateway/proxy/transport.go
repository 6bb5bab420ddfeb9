package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"time"

	"dstack.host/gateway/proxy/h1"
)

// upstreams are the connections to apps that the HTTP/2 requests of one client connection use. They are never shared with another client,
// so a misunderstanding about where a message ends stays with the client who caused it.
type upstreams struct {
	mu       sync.Mutex
	closed   bool
	requests int           // entered and not left
	idle     chan struct{} // set by close while requests are left; closed by the last of them
	conns    map[net.Conn]struct{}
	http1    *http.Transport
	http2    *http.Transport
}

// enter counts a request in; false means that the client's connection is gone.
func (u *upstreams) enter() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.closed {
		u.requests++
	}
	return !u.closed
}

func (u *upstreams) leave() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.requests--
	if u.requests == 0 && u.idle != nil {
		close(u.idle)
	}
}

// close waits for the requests, whose contexts must have ended, and closes every connection.
func (u *upstreams) close() {
	u.mu.Lock()
	u.closed = true
	if u.requests > 0 {
		u.idle = make(chan struct{})
		u.mu.Unlock()
		<-u.idle
		u.mu.Lock()
	}
	conns := u.conns
	u.conns = nil
	u.mu.Unlock()
	for c := range conns {
		c.Close()
	}
	for _, t := range []*http.Transport{u.http1, u.http2} {
		if t != nil {
			t.CloseIdleConnections()
		}
	}
}

// transport returns the one that speaks HTTP/2, without TLS and from the first byte on (RFC 9113 section 3.3), or the one for HTTP/1.1.
func (u *upstreams) transport(http2 bool, p *Proxy) *http.Transport {
	u.mu.Lock()
	defer u.mu.Unlock()
	slot := &u.http1
	if http2 {
		slot = &u.http2
	}
	if *slot == nil {
		*slot = u.newTransport(http2, p)
	}
	return *slot
}

func (u *upstreams) newTransport(http2 bool, p *Proxy) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	return &http.Transport{
		DialContext:            u.dial,
		Protocols:              &protocols,
		DisableCompression:     true,
		MaxIdleConns:           p.cfg.MaxStreams,
		MaxIdleConnsPerHost:    p.cfg.MaxStreams,
		IdleConnTimeout:        p.cfg.KeepAlive,
		ResponseHeaderTimeout:  p.cfg.IdleTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, WriteByteTimeout: 30 * time.Second},
	}
}

type backendKey struct{}

// dial connects to the backend of the request that asked first; all requests for one address have the same.
func (u *upstreams) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	b, ok := ctx.Value(backendKey{}).(*backend)
	if !ok {
		return nil, fail(Internal, errors.New("dial without a backend"))
	}
	c, err := b.Dial(ctx)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		c.Close()
		return nil, fail(ClientGone, nil)
	}
	if u.conns == nil {
		u.conns = make(map[net.Conn]struct{})
	}
	up := &upstream{Conn: c, of: u}
	u.conns[up] = struct{}{}
	return up, nil
}

// upstream is a connection to an app that its owner knows of.
type upstream struct {
	net.Conn
	of *upstreams
}

func (c *upstream) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// roundTripper sends a request through the transport of its client connection.
type roundTripper struct{}

// RoundTrip implements http.RoundTripper.
func (roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	k := r.Context().Value(callKey{}).(*call)
	b := r.Context().Value(backendKey{}).(*backend)
	return k.c.upstreams.transport(b.name.HTTP2, k.p).RoundTrip(r)
}

// rewrite implements ReverseProxy.Rewrite: the request goes to its backend as it came, with the trust headers set last.
func rewrite(pr *httputil.ProxyRequest) {
	k := pr.In.Context().Value(callKey{}).(*call)
	b := pr.In.Context().Value(backendKey{}).(*backend)
	in := pr.In.URL
	// The host is a key that no two backends of this client share; nobody resolves it.
	pr.Out.URL = &url.URL{
		Scheme: "http", Host: b.name.ID + "-" + strconv.FormatUint(b.seq, 10), Path: in.Path, RawPath: in.RawPath, RawQuery: in.RawQuery, ForceQuery: in.ForceQuery,
	}
	pr.Out.Host = pr.In.Host
	// The server fills this very map when the body ends, with what it has the names of.
	h1.Strip(pr.In.Trailer)
	pr.Out.Trailer = pr.In.Trailer
	h1.Rewrite(pr.Out.Header, k.c.client, "https", pr.In.Host, k.id)
}

// transportFailure says what an error of http.Transport means.
func transportFailure(ctx context.Context, err error) *failure {
	timeout, isNet := errors.AsType[net.Error](err)
	known, isKnown := errors.AsType[*failure](err)
	switch {
	case errors.Is(context.Cause(ctx), errIdle):
		return fail(AppTimeout, errIdle)
	case ctx.Err() != nil:
		return fail(ClientGone, err)
	case isKnown:
		return known
	case isNet && timeout.Timeout():
		return fail(AppTimeout, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fail(AppClosed, err)
	}
	return fail(AppMalformed, err)
}
