package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
)

// tlsApp starts an app that terminates TLS itself.
func tlsApp(t testing.TB, name string, h http.HandlerFunc) int {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*certificate(t, name)}}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return portOf(t, s.Listener.Addr())
}

func TestPassthroughLeavesTLSToTheApp(t *testing.T) {
	port := tlsApp(t, "*."+base, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto+" "+r.RequestURI) })
	b := run(t, func(c *proxy.Config) {
		c.Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("not for the gateway") }
	}, instance(0xaa, 0x11))
	protocols(t, func(t *testing.T, http2 bool) {
		// Not even the reserved path is the gateway's here: it cannot read it.
		r, err := b.client(t, http2).Get("https://" + host(appID(0xaa), port, "s") + proxy.AttestationPath)
		if err != nil {
			t.Fatal(err)
		}
		want := "HTTP/1.1 " + proxy.AttestationPath
		if http2 {
			want = "HTTP/2.0 " + proxy.AttestationPath
		}
		if got := body(t, r); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

func TestPassthroughKeepsHalfClose(t *testing.T) {
	port := rawEcho(t)
	b := run(t, nil, instance(0xaa, 0x11))
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	sent := append(message(sni(host(appID(0xaa), port, "s"))), bytes.Repeat([]byte("not really TLS "), 100_000)...)
	go func() {
		c.Write(sent)
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, append(bytes.Clone(sent), "end"...)) {
		t.Errorf("%d of %d bytes came back: %v", len(got), len(sent)+3, err)
	}
}

// rawEcho is an app that returns what it gets, and says "end" when that ends.
func rawEcho(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(20 * time.Second))
			io.Copy(c, c)
			io.WriteString(c, "end")
			c.Close()
		}
	}()
	return portOf(t, l.Addr())
}

// alert sends a ClientHello for name and returns the alert that answers it.
func (b *harness) alert(t testing.TB, hello []byte) byte {
	t.Helper()
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(hello); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || len(got) != 7 || !bytes.HasPrefix(got, []byte{21, 3, 3, 0, 2, 2}) {
		t.Fatalf("answer %x %v, want a fatal alert", got, err)
	}
	return got[6]
}

func TestPassthroughFailuresAreAlerts(t *testing.T) {
	b := run(t, nil, instance(0xaa, 0x11), instance(0xbb, 0x22))
	b.down.Store(instanceID(0x22), nil)
	for name, want := range map[string]byte{
		host(appID(0xee), 443, "s"):            112,
		host(appID(0xbb), 443, "s"):            80,
		host(appID(0xaa), closedPort(t), "s"):  80,
		host(appID(0xaa), 443, "s") + ".other": 112,
	} {
		if got := b.alert(t, message(sni(name))); got != want {
			t.Errorf("%s: alert %d, want %d", name, got, want)
		}
	}
}

func TestProxyProtocolHeaderComesFirst(t *testing.T) {
	got := make(chan []byte, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, 28+4)
		io.ReadFull(c, b)
		got <- b
		io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
	}()
	port := portOf(t, l.Addr())
	inst := instance(0xaa, 0x11)
	inst.Ports = &registry.PortPolicy{Restrict: true, Ports: []registry.Port{{Port: uint16(port), Proxy: true}}}
	b := run(t, nil, inst)
	b.get(t, true, host(appID(0xaa), port, "")).Body.Close()
	head := <-got
	if !bytes.HasPrefix(head, []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01")) || string(head[28:]) != "GET " {
		t.Errorf("the app got %q", head)
	}
}

// tcpPair is a loopback TCP connection.
func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

// spliced runs a splice between two far ends; wrap hides the TCP connections from it.
func spliced(t testing.TB, ctx context.Context, idle time.Duration, wrap func(net.Conn) net.Conn) (client, app net.Conn, ended <-chan error) {
	client, a := tcpPair(t)
	app, b := tcpPair(t)
	done := make(chan error, 1)
	go func() {
		_, _, err := proxy.Splice(ctx, wrap(a), wrap(b), idle)
		a.Close()
		b.Close()
		done <- err
	}()
	return client, app, done
}

// halfCloser hides everything of a TCP connection but its half-close.
type halfCloser struct{ net.Conn }

func (c halfCloser) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

func TestSpliceCarriesBothWaysUntilBothEnd(t *testing.T) {
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"in the kernel": func(c net.Conn) net.Conn { return c },
		"by copying":    func(c net.Conn) net.Conn { return halfCloser{c} },
	} {
		t.Run(name, func(t *testing.T) {
			client, app, ended := spliced(t, t.Context(), time.Minute, wrap)
			for _, way := range []struct{ from, to net.Conn }{{client, app}, {app, client}} {
				const size = 3<<20 + 17
				go func() {
					io.Copy(way.from, io.LimitReader(zeros{}, size))
					way.from.(*net.TCPConn).CloseWrite()
				}()
				if n, err := io.Copy(io.Discard, way.to); n != size || err != nil {
					t.Errorf("%d of %d bytes: %v", n, size, err)
				}
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSpliceEndsWhenNothingMoves(t *testing.T) {
	_, _, ended := spliced(t, t.Context(), 50*time.Millisecond, func(c net.Conn) net.Conn { return c })
	if err := <-ended; !errors.Is(err, proxy.ErrIdle) {
		t.Errorf("got %v", err)
	}
}

func TestSpliceLetsOneDirectionRestWhileTheOtherIsBusy(t *testing.T) {
	const idle = 200 * time.Millisecond
	client, app, ended := spliced(t, t.Context(), idle, func(c net.Conn) net.Conn { return c })
	go io.Copy(io.Discard, app)
	tick := time.NewTicker(idle / 4)
	defer tick.Stop()
	for range 12 {
		select {
		case <-tick.C:
			if _, err := client.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		case err := <-ended:
			t.Fatalf("ended: %v", err)
		}
	}
	client.Close()
	app.Close()
	<-ended
}

func TestSpliceEndsWhenTheReaderIsStuck(t *testing.T) {
	client, _, ended := spliced(t, t.Context(), 100*time.Millisecond, func(c net.Conn) net.Conn { return c })
	go io.Copy(client, zeros{})
	select {
	case err := <-ended:
		if !errors.Is(err, proxy.ErrIdle) {
			t.Errorf("got %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("still open")
	}
}

func TestSpliceEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, _, ended := spliced(t, ctx, time.Minute, func(c net.Conn) net.Conn { return c })
	cancel()
	<-ended
}
