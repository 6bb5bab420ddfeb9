package h1_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"dstack.host/gateway/proxy/h1"
)

const (
	websocket = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"
	switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n"
)

// upgraded opens a connection that has changed to what serve speaks, which begins with the word hello.
func upgraded(t *testing.T, cfg h1.Config, s *session, serve func(c *net.TCPConn, r *bufio.Reader)) *client {
	t.Helper()
	s.backend = newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		if req, err := http.ReadRequest(r); err != nil || req.Header.Get("Upgrade") != "websocket" || req.Header.Get("Connection") != "Upgrade" {
			t.Errorf("the app got %v, %v", req, err)
			return
		}
		_, _ = io.WriteString(c, switching+"hello")
		serve(c, r)
	})
	c := open(t, cfg, s)
	c.send(t, websocket+"first") // what follows the request is not for the relay to read
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Connection") != "Upgrade" || resp.Header.Get("Sec-Websocket-Accept") != "x" {
		t.Fatalf("got %v", resp)
	}
	expect(t, c.r, "hello")
	return c
}

func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Errorf("got %.60q %v, want %.60q", got, err, want)
	}
}

func TestUpgradedConnectionsAreBytePipes(t *testing.T) {
	s := &session{}
	c := upgraded(t, h1.Config{}, s, func(c *net.TCPConn, r *bufio.Reader) {
		_, _ = io.Copy(c, r)
		_, _ = io.WriteString(c, "bye")
	})
	expect(t, c.r, "first")
	data := bytes.Repeat([]byte("GET / HTTP/1.1\n\x00"), 100_000)
	go func() { _, _ = c.Write(data); _ = c.CloseWrite() }()
	rest, err := io.ReadAll(c.r)
	if err != nil || !bytes.Equal(rest, append(data, "bye"...)) {
		t.Errorf("got %d octets, %v, want %d and a word", len(rest), err, len(data))
	}
	c.wait(t)
	if got := s.last(t); got.Status != 101 || got.Reason != "" || got.Received != int64(len(data)+5) || got.Sent != int64(len(data)+13) {
		t.Errorf("outcome %+v", got)
	}
}

func TestUpgradedConnectionsAreHalfClosedByTheAppToo(t *testing.T) {
	got := make(chan string, 1)
	c := upgraded(t, h1.Config{}, &session{}, func(c *net.TCPConn, r *bufio.Reader) {
		_ = c.CloseWrite()
		all, _ := io.ReadAll(r)
		got <- string(all)
	})
	if rest := c.rest(t); rest != "" {
		t.Errorf("got %q", rest)
	}
	c.send(t, "late")
	_ = c.CloseWrite()
	if all := <-got; all != "firstlate" {
		t.Errorf("the app got %q", all)
	}
	c.wait(t)
}

func TestUpgradedConnectionsEndTogether(t *testing.T) {
	t.Run("idle", func(t *testing.T) {
		s := &session{}
		c := upgraded(t, h1.Config{PipeTimeout: 50 * time.Millisecond}, s, func(_ *net.TCPConn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
		c.wait(t)
	})
	t.Run("reset by the client", func(t *testing.T) {
		ended := make(chan struct{})
		c := upgraded(t, h1.Config{}, &session{}, func(_ *net.TCPConn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r); close(ended) })
		_ = c.SetLinger(0)
		c.Close()
		<-ended
		c.wait(t)
	})
	t.Run("reset by the app", func(t *testing.T) {
		c := upgraded(t, h1.Config{}, &session{}, func(c *net.TCPConn, r *bufio.Reader) { _ = c.SetLinger(0) })
		_, _ = io.Copy(io.Discard, c.r)
		c.wait(t)
	})
}

// deaf is a connection to an app that takes the request and then nothing more.
type deaf struct {
	net.Conn
	writes int
	failed chan struct{}
}

func (d *deaf) Write(p []byte) (int, error) {
	if d.writes++; d.writes == 1 {
		return d.Conn.Write(p)
	}
	close(d.failed)
	return 0, syscall.EPIPE
}

// An app that says its last word and closes while the client is still talking.
func TestUpgradedConnectionsDeliverTheLastWord(t *testing.T) {
	near, far := net.Pipe()
	failed := make(chan struct{})
	go func() {
		_, _ = http.ReadRequest(bufio.NewReader(far))
		_, _ = io.WriteString(far, switching)
		<-failed
		_, _ = io.WriteString(far, "goodbye")
		far.Close()
	}()
	app := dialer(func(context.Context) (net.Conn, error) { return &deaf{Conn: near, failed: failed}, nil })
	c := open(t, h1.Config{}, &session{backend: app})
	c.send(t, websocket)
	if resp, err := http.ReadResponse(c.r, nil); err != nil || resp.StatusCode != 101 {
		t.Fatalf("got %v %v", resp, err)
	}
	c.send(t, "chatter")
	if rest := c.rest(t); rest != "goodbye" {
		t.Errorf("got %q", rest)
	}
}

// One busy direction keeps the other, silent one alive.
func TestUpgradedConnectionsLiveByEitherDirection(t *testing.T) {
	c := upgraded(t, h1.Config{PipeTimeout: 40 * time.Millisecond}, &session{}, func(c *net.TCPConn, r *bufio.Reader) {
		for range 100 {
			_, _ = c.Write([]byte("."))
			time.Sleep(2 * time.Millisecond)
		}
		_, _ = io.Copy(c, r)
	})
	expect(t, c.r, strings.Repeat(".", 100))
	_, _ = io.WriteString(c, "x")
	_ = c.CloseWrite()
	expect(t, c.r, "firstx")
}

func TestRefusedUpgradesAreRequestsLikeAnyOther(t *testing.T) {
	o := answering(t, "HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno", ok)
	c := open(t, h1.Config{}, &session{backend: o})
	c.send(t, websocket+get)
	if resp, body := c.response(t, "GET"); resp.StatusCode != 400 || body != "no" {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
	if resp, body := c.response(t, "GET"); resp.StatusCode != 200 || body != "ok" {
		t.Errorf("then %d %q", resp.StatusCode, body)
	}
	if n := o.accepted.Load(); n != 1 {
		t.Errorf("%d connections to the app, want 1", n)
	}
}

func TestRelayRefusesAHalfHeartedSwitch(t *testing.T) {
	for _, response := range []string{
		"HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n",
	} {
		c := open(t, h1.Config{}, &session{backend: once(t, response)})
		if resp, _ := c.get(t, websocket); resp.StatusCode != 502 {
			t.Errorf("got %d, want 502", resp.StatusCode)
		}
	}
}
