package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
)

func TestNewReportsAllFaultsTogether(t *testing.T) {
	_, err := proxy.New(proxy.Config{Bases: []string{"a.example.", "b.example", "B.example"}, DialTimeout: -1, MaxStreams: -1})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"listen", `"a.example."`, `"B.example" is given twice`, "Certificate", "Registry", "Dial", "TunnelUp", "Own", "dial timeout", "max streams"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	if _, err := proxy.New(proxy.Config{}); err == nil || !strings.Contains(err.Error(), "no base") {
		t.Errorf("got %v", err)
	}
}

func TestTakenAddressIsNamed(t *testing.T) {
	b := run(t, nil)
	cfg := proxy.Config{
		Listen: b.addr, Bases: []string{base}, Certificate: certificateOf(nil),
		Registry: b.snapshot.Load, Dial: *b.dial.Load(), TunnelUp: func(*registry.Instance) bool { return true }, Own: http.NotFoundHandler(),
	}
	if _, err := proxy.New(cfg); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), b.addr) {
		t.Errorf("got %v", err)
	}
	cfg.Listen = "127.0.0.1:0"
	p, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Run(t.Context()); err == nil {
		t.Error("a closed proxy runs")
	}
	if err := p.Run(t.Context()); err == nil {
		t.Error("a proxy runs twice")
	}
}

func TestUnservedServerNamesAreRefused(t *testing.T) {
	b := run(t, nil)
	for what, hello := range map[string][]byte{
		"foreign":             message(sni("foreign.example")),
		"two labels below":    message(sni("a.b." + base)),
		"suffix without dot":  message(sni("x" + base)),
		"none":                message(extension(43, 2, 3, 4)),
		"no extensions":       message(),
		"trailing dot":        message(sni("gateway." + base + ".")),
		"64 hex digits":       message(sni(strings.Repeat("ab", 32) + "." + base)),
		"two names":           message(sni("gateway."+base, "foreign.example")),
		"an address":          message(sni("127.0.0.1")),
		"underscore in label": message(sni("a_b." + base)),
	} {
		if got := b.alert(t, hello); got != 112 {
			t.Errorf("%s: alert %d, want unrecognized_name (112)", what, got)
		}
	}
	_, err := tls.Dial("tcp", b.addr, &tls.Config{RootCAs: roots(), ServerName: "foreign.example"})
	if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("crypto/tls says %v", err)
	}
}

func TestHelloBeyondTheLimitIsRefused(t *testing.T) {
	b := run(t, nil)
	big := message(sni("gateway."+base), extension(0xfafa, make([]byte, 16<<10)...))
	hello := records(big, 4000)
	// The length in the message's header is beyond 16 bits' worth of one record, which is why it comes in several.
	if got := b.alert(t, hello[:12<<10]); got != 50 {
		t.Errorf("alert %d, want decode_error (50)", got)
	}
}

func TestHelloByteByByteIsServed(t *testing.T) {
	b := run(t, nil)
	raw, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(dribble{raw}, &tls.Config{RootCAs: roots(), ServerName: "gateway." + base})
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if err := c.Handshake(); err != nil {
		t.Error(err)
	}
}

// dribble writes one byte at a time; TCP_NODELAY, Go's default, sends each alone.
type dribble struct{ net.Conn }

func (d dribble) Write(b []byte) (n int, err error) {
	for i := range b {
		if _, err := d.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

func TestSlowHelloIsCut(t *testing.T) {
	b := run(t, func(c *proxy.Config) { c.HelloTimeout = 50 * time.Millisecond })
	for _, said := range []string{"", "\x16", "\x16\x03\x01\x02\x00\x01"} {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, said)
		if got, err := io.ReadAll(c); len(got) != 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after %q: %q %v", said, got, err)
		}
		c.Close()
	}
}

func TestSlowHandshakeIsCut(t *testing.T) {
	b := run(t, func(c *proxy.Config) { c.HandshakeTimeout = 50 * time.Millisecond })
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	c.Write(clientHello(t, &tls.Config{ServerName: "gateway." + base}))
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

func TestPlainHTTPIsToldToUseTLS(t *testing.T) {
	b := run(t, nil)
	r, err := http.Get("http://" + b.addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	if got := body(t, r); r.StatusCode != 400 || !strings.Contains(got, "https://") {
		t.Errorf("%d %q", r.StatusCode, got)
	}
}

func TestGarbageIsToldNothing(t *testing.T) {
	b := run(t, nil)
	for _, garbage := range []string{"\x00\x00\x00\x00", "SSH-2.0-x\r\n", "\x16\x02", strings.Repeat("\xff", 100_000)} {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, garbage)
		if got, _ := io.ReadAll(c); len(got) != 0 {
			t.Errorf("%.10q: answer %q", garbage, got)
		}
		c.Close()
	}
}

func TestWebSocketThroughTLS(t *testing.T) {
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		for {
			kind, message, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if err := c.Write(r.Context(), kind, message); err != nil {
				return
			}
		}
	})
	b := run(t, nil, instance(0xaa, 0x11))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "wss://"+host(appID(0xaa), port, "")+"/ws", &websocket.DialOptions{HTTPClient: b.client(t, false)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	for i := range 3 {
		want := strings.Repeat(fmt.Sprint(i), 10_000)
		if err := c.Write(ctx, websocket.MessageText, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(ctx); err != nil || string(got) != want {
			t.Fatalf("%d bytes: %v", len(got), err)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
}

func TestTwoProxiesInOneProcess(t *testing.T) {
	one := app(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "one") })
	two := app(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "two") })
	a, b := run(t, nil, instance(0xaa, 0x11)), run(t, nil, instance(0xaa, 0x11))
	protocols(t, func(t *testing.T, http2 bool) {
		if got := body(t, a.get(t, http2, host(appID(0xaa), one, ""))); got != "one" {
			t.Errorf("%q", got)
		}
		if got := body(t, b.get(t, http2, host(appID(0xaa), two, ""))); got != "two" {
			t.Errorf("%q", got)
		}
	})
	a.stop()
	if got := body(t, b.get(t, true, host(appID(0xaa), two, ""))); got != "two" {
		t.Errorf("after the other's end: %q", got)
	}
}

func TestDrainLetsRequestsFinish(t *testing.T) {
	protocols(t, func(t *testing.T, http2 bool) {
		began, finish := make(chan struct{}), make(chan struct{})
		port := app(t, func(w http.ResponseWriter, _ *http.Request) {
			close(began)
			<-finish
			io.WriteString(w, "done")
		})
		b := run(t, func(c *proxy.Config) { c.DrainTimeout = 15 * time.Second }, instance(0xaa, 0x11))
		answer := make(chan string, 1)
		go func() {
			r, err := b.client(t, http2).Get("https://" + host(appID(0xaa), port, ""))
			if err != nil {
				answer <- err.Error()
				return
			}
			answer <- body(t, r)
		}()
		<-began
		stopped := make(chan struct{})
		go func() {
			b.stop()
			close(stopped)
		}()
		for { // new connections are refused first
			c, err := net.Dial("tcp", b.addr)
			if err != nil {
				break
			}
			c.Close()
		}
		close(finish)
		if got := <-answer; got != "done" {
			t.Errorf("%q", got)
		}
		<-stopped
	})
}

func TestDrainTimeoutCutsTheRest(t *testing.T) {
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	b := run(t, func(c *proxy.Config) { c.DrainTimeout = 100 * time.Millisecond }, instance(0xaa, 0x11))
	name := host(appID(0xaa), port, "")
	h1, h2 := b.get(t, false, name), b.get(t, true, name)
	defer h1.Body.Close()
	defer h2.Body.Close()
	idle := b.tls(t, name, "http/1.1")
	silent, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	b.stop()
	for what, r := range map[string]io.Reader{"HTTP/1.1": h1.Body, "HTTP/2": h2.Body} {
		if _, err := io.ReadAll(r); err == nil {
			t.Errorf("%s response is complete", what)
		}
	}
	for what, c := range map[string]net.Conn{"idle": idle, "silent": silent} {
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s connection says %d bytes", what, n)
		}
	}
}

// failingListener fails a few times before each connection.
type failingListener struct {
	net.Listener
	left atomic.Int64
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.left.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestAcceptErrorsPass(t *testing.T) {
	cert := certificate(t, "*."+base)
	p, err := proxy.New(proxy.Config{
		Listen: "127.0.0.1:0", Bases: []string{base}, Certificate: certificateOf(cert),
		Registry: func() *registry.Snapshot { return registry.NewSnapshot(1, nil, nil) },
		Dial:     noDial,
		TunnelUp: func(*registry.Instance) bool { return true }, Own: http.NotFoundHandler(),
	})
	if err != nil {
		t.Fatal(err)
	}
	failing := new(failingListener)
	failing.left.Store(3)
	p.ListenOn(func(l net.Listener) net.Listener {
		failing.Listener = l
		return failing
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	c, err := tls.Dial("tcp", p.Addr().String(), &tls.Config{RootCAs: roots(), ServerName: "gateway." + base})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestConnectionsBeyondTheLimitAreClosed(t *testing.T) {
	b := run(t, func(c *proxy.Config) { c.MaxConnections = 1 })
	first := b.tls(t, "gateway."+base)
	if c, err := tls.Dial("tcp", b.addr, &tls.Config{RootCAs: roots(), ServerName: "gateway." + base}); err == nil {
		c.Close()
		t.Error("a second connection is served")
	}
	first.Close()
	deadline := time.Now().Add(20 * time.Second)
	for {
		c, err := tls.Dial("tcp", b.addr, &tls.Config{RootCAs: roots(), ServerName: "gateway." + base})
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the first: %v", err)
		}
	}
}
