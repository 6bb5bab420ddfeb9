package h1_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dstack.host/gateway/proxy/h1"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// origin is an app: each connection it accepts goes to serve, in turn or at once.
type origin struct {
	addr     string
	accepted atomic.Int32
	dialed   atomic.Int32
}

// Dial implements h1.Backend.
func (o *origin) Dial(ctx context.Context) (net.Conn, error) {
	o.dialed.Add(1)
	var d net.Dialer
	return d.DialContext(ctx, "tcp", o.addr)
}

// newOrigin starts an app that treats every connection with serve and closes it then.
func newOrigin(t testing.TB, serve func(c *net.TCPConn, r *bufio.Reader)) *origin {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			o.accepted.Add(1)
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				serve(c.(*net.TCPConn), bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return o
}

// answering is an app that reads requests with net/http and answers each with the next of the given raw responses; the last repeats.
func answering(t testing.TB, responses ...string) *origin {
	var n atomic.Int32
	return newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			i := min(int(n.Add(1)), len(responses)) - 1
			if _, err := io.WriteString(c, responses[i]); err != nil {
				return
			}
			if strings.Contains(responses[i], "Connection: close") || strings.HasPrefix(responses[i], "HTTP/1.0") {
				return
			}
		}
	})
}

// session routes everything to one backend and keeps what it is told.
type session struct {
	backend h1.Backend
	route   func(r *h1.Request) (h1.Backend, *h1.Reply)
	onError func(r *h1.Request, e *h1.Error) *h1.Reply

	mu       sync.Mutex
	outcomes []h1.Outcome
	failures []h1.Error
}

func (s *session) Route(_ context.Context, r *h1.Request) (h1.Backend, *h1.Reply) {
	if s.route != nil {
		return s.route(r)
	}
	return s.backend, nil
}

func (s *session) Fail(r *h1.Request, e *h1.Error) *h1.Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = append(s.failures, *e)
	if s.onError != nil {
		return s.onError(r, e)
	}
	return nil
}

func (s *session) Done(_ *h1.Request, o h1.Outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcomes = append(s.outcomes, o)
}

func (s *session) last(t testing.TB) h1.Outcome {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.outcomes) == 0 {
		t.Fatal("no request was told of")
	}
	return s.outcomes[len(s.outcomes)-1]
}

// client is the other end of a connection that a relay serves.
type client struct {
	*net.TCPConn
	r    *bufio.Reader
	done chan struct{}
	err  error // of Serve, once done is closed
}

var clientAddr = netip.MustParseAddrPort("192.0.2.7:4711")

// tcpPair returns two ends of a loopback connection.
func tcpPair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// open has a relay with cfg serve a new connection.
func open(t testing.TB, cfg h1.Config, s h1.Session) *client {
	t.Helper()
	relay, err := h1.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	near, far := tcpPair(t)
	c := &client{TCPConn: near, r: bufio.NewReader(near), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(c.done)
		c.err = relay.Serve(ctx, far, h1.Client{Addr: clientAddr, Session: s})
	}()
	t.Cleanup(func() { cancel(); near.Close(); c.wait(t) })
	_ = near.SetDeadline(time.Now().Add(patience))
	return c
}

// wait waits for Serve to return.
func (c *client) wait(t testing.TB) {
	t.Helper()
	select {
	case <-c.done:
	case <-time.After(2 * patience):
		t.Error("Serve does not return")
	}
}

func (c *client) send(t testing.TB, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatalf("send: %v", err)
	}
}

// response reads one response with net/http.
func (c *client) response(t testing.TB, method string) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("read response: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read response body: %v", err)
	}
	return resp, string(body)
}

// get sends a request and reads its response.
func (c *client) get(t testing.TB, request string) (*http.Response, string) {
	t.Helper()
	c.send(t, request)
	method, _, _ := strings.Cut(request, " ")
	return c.response(t, method)
}

// rest reads all there is until the relay closes.
func (c *client) rest(t testing.TB) string {
	t.Helper()
	all, err := io.ReadAll(c.r)
	if err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Fatalf("read: %v", err)
	}
	return string(all)
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func TestRelayReusesOneAppConnection(t *testing.T) {
	o := answering(t, ok)
	s := &session{backend: o}
	c := open(t, h1.Config{}, s)
	for range 5 {
		resp, body := c.get(t, "GET /a?b HTTP/1.1\r\nHost: app.example\r\n\r\n")
		if resp.StatusCode != 200 || body != "ok" || resp.Close {
			t.Fatalf("got %d %q close %v", resp.StatusCode, body, resp.Close)
		}
	}
	if n := o.accepted.Load(); n != 1 {
		t.Errorf("the app saw %d connections, want 1", n)
	}
}

func TestRelayServesPipelinedRequestsInOrder(t *testing.T) {
	o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(req.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s%s", len(req.URL.Path)+len(body), req.URL.Path, body)
		}
	})
	c := open(t, h1.Config{}, &session{backend: o})
	var all bytes.Buffer
	var want []string
	for i := range 200 {
		switch i % 4 {
		case 0:
			fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i)
			want = append(want, fmt.Sprintf("/%d", i))
		case 1:
			fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", i)
			want = append(want, fmt.Sprintf("/%dabc", i))
		case 2:
			fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", i)
			want = append(want, fmt.Sprintf("/%dabcde", i))
		case 3:
			big := strings.Repeat("x", 20000)
			fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n%s", i, big)
			want = append(want, fmt.Sprintf("/%d%s", i, big))
		}
	}
	go func() { _, _ = c.Write(all.Bytes()) }()
	for i, w := range want {
		if _, body := c.response(t, "GET"); body != w {
			t.Fatalf("response %d: got %.40q, want %.40q", i, body, w)
		}
	}
	if n := o.accepted.Load(); n != 1 {
		t.Errorf("the app saw %d connections, want 1", n)
	}
}

var noDeadline time.Time

// discard reads a response and counts its body.
func (c *client) discard(t testing.TB) (status int, body int64) {
	t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err = io.Copy(io.Discard, resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}
