package proxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"
)

// MaxOwnBody bounds the body of a request to the gateway's own handler, in bytes. A bundle of verify for an app with some instances fits.
const MaxOwnBody = 512 << 10

// streams serves HTTP/2: net/http's server, fed with connections whose handshake is done, in front of a handler that forwards.
type streams struct {
	p       *Proxy
	server  *http.Server
	ready   chan net.Conn // connections on their way to the server
	stop    chan struct{} // closed when no more are taken
	stopped sync.Once
	forward *httputil.ReverseProxy
}

func newStreams(p *Proxy) *streams {
	s := &streams{p: p, ready: make(chan net.Conn), stop: make(chan struct{})}
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	s.server = &http.Server{
		Handler:        http.HandlerFunc(s.handle),
		Protocols:      &protocols,
		IdleTimeout:    p.cfg.KeepAlive,
		MaxHeaderBytes: 32 << 10,
		ErrorLog:       slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c.(*tls.Conn).NetConn())
		},
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          p.cfg.MaxStreams,
			MaxReceiveBufferPerConnection: 1 << 20,
			MaxReceiveBufferPerStream:     256 << 10,
			SendPingTimeout:               30 * time.Second,
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              30 * time.Second,
		},
	}
	s.forward = &httputil.ReverseProxy{
		Rewrite:       rewrite,
		Transport:     roundTripper{},
		FlushInterval: -1,
		BufferPool:    copyBuffers{},
		ErrorLog:      log.New(discard{}, "", 0), // what matters reaches ErrorHandler
		ErrorHandler:  s.failed,
	}
	return s
}

// run accepts until shutdown.
func (s *streams) run() {
	_ = s.server.Serve(s) // always http.ErrServerClosed: Accept fails in no other way
}

// Accept implements net.Listener.
func (s *streams) Accept() (net.Conn, error) {
	select {
	case c := <-s.ready:
		return c, nil
	case <-s.stop:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (s *streams) Close() error {
	s.stopped.Do(func() { close(s.stop) })
	return nil
}

// Addr implements net.Listener.
func (s *streams) Addr() net.Addr { return s.p.listener.Addr() }

// serve gives tc to the server and returns when c is closed and nothing that it caused is left.
func (s *streams) serve(tc *tls.Conn, c *conn) {
	defer c.upstreams.close()
	select {
	case s.ready <- tc:
		<-c.closed
	case <-s.stop:
	}
}

// shutdown tells clients to send no more requests and returns when drained is closed or timeout is over.
func (s *streams) shutdown(timeout time.Duration, drained <-chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	s.server.Shutdown(ctx) //nolint:errcheck // what is left is cut by the caller
	select {
	case <-drained:
	case <-ctx.Done():
	}
	s.server.Close() //nolint:errcheck // likewise
}

// handle serves one request.
func (s *streams) handle(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(connKey{}).(*conn)
	if !c.upstreams.enter() {
		panic(http.ErrAbortHandler) // the connection is gone
	}
	defer c.upstreams.leave()
	call := &call{p: s.p, c: c, id: newRequestID(), start: time.Now(), w: w}
	defer call.log(r)
	d, f := call.route(r)
	switch {
	case f != nil:
		call.refuse(r, f)
	case d.own:
		call.own(r, d.path)
	default:
		call.forward(r, d.name, s.forward)
	}
}

// failed implements ReverseProxy.ErrorHandler: nothing of a response has been written yet.
func (s *streams) failed(_ http.ResponseWriter, r *http.Request, err error) {
	call := r.Context().Value(callKey{}).(*call)
	call.refuse(r, transportFailure(r.Context(), err))
}

func newRequestID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// copyBuffers implements httputil.BufferPool with the buffers of passthrough.
type copyBuffers struct{}

func (copyBuffers) Get() []byte { return spliceBuffers.Get().(*[spliceBuffer]byte)[:] }

func (copyBuffers) Put(b []byte) {
	if len(b) == spliceBuffer {
		spliceBuffers.Put((*[spliceBuffer]byte)(b))
	}
}
