package h1_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dstack.host/gateway/proxy/h1"
)

const post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"

// A connection that the app ends as the next request arrives.
func TestRelayRepeatsOnlyWhatMayBeRepeated(t *testing.T) {
	for _, tt := range []struct {
		name, request string
		status        int
	}{
		{"GET", get, 200},
		{"PUT without a body", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 200},
		{"POST", post, 502},
		{"POST without a body", "POST / HTTP/1.1\r\nHost: a\r\n\r\n", 502},
		{"PUT with a body", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", 502},
		{"method of its own", "BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 502},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
				if _, err := http.ReadRequest(r); err == nil {
					_, _ = io.WriteString(c, ok)
					_, _ = http.ReadRequest(r)
				}
			})
			s := &session{backend: o}
			c := open(t, h1.Config{}, s)
			c.get(t, get)
			if resp, _ := c.get(t, tt.request); resp.StatusCode != tt.status {
				t.Errorf("got %d, want %d", resp.StatusCode, tt.status)
			}
			if want := 1 + btoi(tt.status == 200); int(o.dialed.Load()) != want {
				t.Errorf("dialled %d times, want %d", o.dialed.Load(), want)
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestRelayGivesUpOnAnAppThatAlwaysCloses(t *testing.T) {
	o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) { _, _ = http.ReadRequest(r) })
	c := open(t, h1.Config{}, &session{backend: o})
	for range 3 {
		if resp, _ := c.get(t, get); resp.StatusCode != 502 {
			t.Errorf("got %d, want 502", resp.StatusCode)
		}
	}
	if n := o.dialed.Load(); n != 3 {
		t.Errorf("dialled %d times, want 3", n)
	}
}

// pipes is a backend of in-memory connections, for tests in which time is simulated.
type pipes struct {
	serve func(c net.Conn)
	wg    sync.WaitGroup
	n     int
}

func (p *pipes) Dial(context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	p.n++
	p.wg.Go(func() { defer far.Close(); p.serve(far) })
	return near, nil
}

// An app that closes an idle connection is noticed before the next request is sent, so that one that must not be repeated gets through.
func TestRelayNoticesThatAnIdleConnectionHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{serve: func(c net.Conn) {
			if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				_, _ = io.Copy(io.Discard, req.Body)
				_, _ = io.WriteString(c, ok)
			}
		}}
		near, served := servePipe(t, h1.Config{}, &session{backend: p})
		r := bufio.NewReader(near)
		for range 3 {
			_, _ = io.WriteString(near, post)
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("got %v %v", resp, err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			time.Sleep(time.Second) // simulated
		}
		near.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
		p.wg.Wait()
		if p.n != 3 {
			t.Errorf("dialled %d times, want 3", p.n)
		}
	})
}

// servePipe serves one end of an in-memory connection.
func servePipe(t *testing.T, cfg h1.Config, s h1.Session) (net.Conn, <-chan error) {
	relay, err := h1.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- relay.Serve(context.Background(), far, h1.Client{Addr: clientAddr, Session: s}) }()
	return near, served
}

// bare hides everything but net.Conn.
type bare struct{ net.Conn }

func TestQuietConnections(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(peer *net.TCPConn)
		want bool
	}{
		{"nothing happened", func(*net.TCPConn) {}, true},
		{"the app closed", func(p *net.TCPConn) { p.Close() }, false},
		{"the app reset", func(p *net.TCPConn) { _ = p.SetLinger(0); p.Close() }, false},
		{"the app wrote unasked", func(p *net.TCPConn) { _, _ = p.Write([]byte("x")) }, false},
	} {
		for _, wrap := range []func(net.Conn) net.Conn{
			func(c net.Conn) net.Conn { return c },
			func(c net.Conn) net.Conn { return bare{c} },
		} {
			near, far := tcpPair(t)
			tt.do(near)
			c := wrap(far)
			got := h1.Quiet(c)
			for end := time.Now().Add(patience); got != tt.want && time.Now().Before(end); {
				got = h1.Quiet(c)
			}
			if got != tt.want {
				t.Errorf("%s, %T: quiet %v", tt.name, c, got)
			}
			near.Close()
			far.Close()
		}
	}
}

func TestRelayGoesOnAfterAnAppThatCannotBeReached(t *testing.T) {
	down := errors.New("no route")
	s := &session{backend: dialer(func(context.Context) (net.Conn, error) { return nil, down })}
	c := open(t, h1.Config{}, s)
	for range 2 {
		if resp, body := c.get(t, post); resp.StatusCode != 502 || body != "app_dial_failed\n" || resp.Close {
			t.Errorf("got %d %q close %v", resp.StatusCode, body, resp.Close)
		}
	}
	if len(s.failures) != 2 || !errors.Is(&s.failures[0], down) {
		t.Errorf("failures %v", s.failures)
	}
}

// dialer is a backend that is a function; its address makes it comparable.
func dialer(f func(context.Context) (net.Conn, error)) h1.Backend { return &funcBackend{f} }

type funcBackend struct {
	dial func(context.Context) (net.Conn, error)
}

func (b *funcBackend) Dial(ctx context.Context) (net.Conn, error) { return b.dial(ctx) }

func TestRelayBoundsADial(t *testing.T) {
	s := &session{backend: dialer(func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() })}
	c := open(t, h1.Config{DialTimeout: 20 * time.Millisecond}, s)
	if resp, _ := c.get(t, get); resp.StatusCode != 502 {
		t.Errorf("got %d, want 502", resp.StatusCode)
	}
}

func TestRelayChangesTheBackend(t *testing.T) {
	a, b := answering(t, ok), answering(t, ok)
	var current []h1.Backend
	s := &session{route: func(r *h1.Request) (h1.Backend, *h1.Reply) {
		current = append(current, r.Current)
		if string(r.Path) == "/b" {
			return b, nil
		}
		return a, nil
	}}
	c := open(t, h1.Config{}, s)
	for _, path := range []string{"/a", "/a", "/b", "/b", "/a"} {
		c.get(t, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n")
	}
	c.Close()
	c.wait(t)
	if a.accepted.Load() != 2 || b.accepted.Load() != 1 {
		t.Errorf("%d and %d connections, want 2 and 1", a.accepted.Load(), b.accepted.Load())
	}
	for i, want := range []h1.Backend{nil, a, a, b, b} {
		if current[i] != want {
			t.Errorf("request %d: current %v, want %v", i, current[i], want)
		}
	}
}

func TestRelayEndsAConnectionAfterItsLastRequest(t *testing.T) {
	c := open(t, h1.Config{MaxRequests: 2}, &session{backend: answering(t, ok)})
	if resp, _ := c.get(t, get); resp.Close {
		t.Error("closes after the first request")
	}
	if resp, _ := c.get(t, get); !resp.Close {
		t.Error("does not close after the second")
	}
	if rest := c.rest(t); rest != "" {
		t.Errorf("and then %q", rest)
	}
}

func TestRelayDrains(t *testing.T) {
	t.Run("an idle connection", func(t *testing.T) {
		drain, cancel := context.WithCancel(context.Background())
		c := open(t, h1.Config{Drain: drain}, &session{backend: answering(t, ok)})
		c.get(t, get)
		cancel()
		c.wait(t)
		if rest := c.rest(t); rest != "" || c.err != nil {
			t.Errorf("got %q, Serve %v", rest, c.err)
		}
	})
	t.Run("a busy one", func(t *testing.T) {
		drain, cancel := context.WithCancel(context.Background())
		o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
			_, _ = http.ReadRequest(r)
			cancel()
			_, _ = io.WriteString(c, ok)
		})
		c := open(t, h1.Config{Drain: drain}, &session{backend: o})
		// AfterFunc runs in a goroutine of its own: the answer may still be on its way out before it.
		if resp, body := c.get(t, get); resp.StatusCode != 200 || body != "ok" {
			t.Errorf("got %d %q", resp.StatusCode, body)
		}
		if c.wait(t); c.err != nil {
			t.Errorf("Serve: %v", c.err)
		}
	})
	t.Run("a new one", func(t *testing.T) {
		drain, cancel := context.WithCancel(context.Background())
		cancel()
		c := open(t, h1.Config{Drain: drain}, &session{backend: answering(t, ok)})
		c.wait(t)
	})
}

func TestRelayEndsAtOnceWithItsContext(t *testing.T) {
	relay, err := h1.New(h1.Config{})
	if err != nil {
		t.Fatal(err)
	}
	reached := make(chan struct{})
	o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		_, _ = http.ReadRequest(r)
		close(reached)
		_, _ = io.Copy(io.Discard, r) // silent until the relay closes
	})
	near, far := tcpPair(t)
	defer near.Close()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- relay.Serve(ctx, far, h1.Client{Addr: clientAddr, Session: &session{backend: o}}) }()
	_, _ = io.WriteString(near, get)
	<-reached
	cancel()
	select {
	case <-served:
	case <-time.After(patience):
		t.Error("Serve does not return")
	}
}

func TestRelaySurvivesASessionThatPanics(t *testing.T) {
	s := &session{route: func(*h1.Request) (h1.Backend, *h1.Reply) { panic("route") }}
	c := open(t, h1.Config{}, s)
	c.send(t, get)
	if rest := c.rest(t); rest != "" {
		t.Errorf("got %q", rest)
	}
	if c.wait(t); c.err == nil || !strings.Contains(c.err.Error(), "route") {
		t.Errorf("Serve: %v", c.err)
	}
}

func TestNewTellsAllFaults(t *testing.T) {
	_, err := h1.New(h1.Config{ForwardedProto: "gopher", HeadLimit: 1 << 20, Fields: -1, IdleTimeout: -1})
	for _, want := range []string{"forwarded proto", "head limit", "fields", "idle timeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not tell of %s", err, want)
		}
	}
}
