package h1_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"dstack.host/gateway/proxy/h1"
)

// readLine reads one line and wants it to be what is given.
func readLine(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	if got, err := r.ReadString('\n'); err != nil || got != want+"\r\n" {
		t.Fatalf("read %q %v, want %q", got, err, want)
	}
}

func TestRelayPassesContinue(t *testing.T) {
	o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if req.Header.Get("Expect") != "100-continue" {
				t.Errorf("Expect %q", req.Header.Get("Expect"))
			}
			_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			body, _ := io.ReadAll(req.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	})
	c := open(t, h1.Config{}, &session{backend: o})
	for _, framing := range []string{"Content-Length: 5\r\n\r\n|hello", "Transfer-Encoding: chunked\r\n\r\n|5\r\nhello\r\n0\r\n\r\n"} {
		rest, body, _ := strings.Cut(framing, "|")
		c.send(t, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n"+rest)
		readLine(t, c.r, "HTTP/1.1 100 Continue")
		readLine(t, c.r, "")
		if resp, got := c.get(t, body); resp.StatusCode != 200 || got != "hello" || resp.Close {
			t.Errorf("got %d %q close %v", resp.StatusCode, got, resp.Close)
		}
	}
	if n := o.accepted.Load(); n != 1 {
		t.Errorf("%d connections to the app, want 1", n)
	}
}

func TestRelayPassesAFinalStatusInsteadOfContinue(t *testing.T) {
	o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		_, _ = http.ReadRequest(r)
		_, _ = io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	})
	c := open(t, h1.Config{}, &session{backend: o})
	resp, _ := c.get(t, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5000000\r\n\r\n")
	if resp.StatusCode != 413 {
		t.Errorf("got %d, want 413", resp.StatusCode)
	}
	if !resp.Close {
		t.Error("does not say that it closes")
	}
	if rest := c.rest(t); rest != "" { // what comes next could be the body or a request: nobody can tell
		t.Errorf("and then %q", rest)
	}
}

// An app may answer while the request is still arriving, and both go on to their ends.
func TestRelayPassesBothDirectionsAtOnce(t *testing.T) {
	o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			lines := bufio.NewScanner(req.Body)
			for lines.Scan() {
				fmt.Fprintf(c, "%x\r\n%s\n\r\n", len(lines.Text())+1, lines.Text())
			}
			_, _ = io.WriteString(c, "0\r\n\r\n")
		}
	})
	c := open(t, h1.Config{}, &session{backend: o})
	for range 2 {
		c.send(t, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		back := bufio.NewReader(resp.Body)
		for i := range 10 {
			line := fmt.Sprintf("line %d", i)
			c.send(t, fmt.Sprintf("%x\r\n%s\n\r\n", len(line)+1, line))
			if got, err := back.ReadString('\n'); got != line+"\n" {
				t.Fatalf("got %q %v, want %q", got, err, line)
			}
		}
		c.send(t, "0\r\n\r\n")
		if _, err := back.ReadByte(); err != io.EOF {
			t.Fatalf("the response does not end: %v", err)
		}
	}
	if n := o.accepted.Load(); n != 1 {
		t.Errorf("%d connections to the app, want 1", n)
	}
}

// An app that answers early and closes: the client gets the answer although it is still sending.
func TestRelayPassesAnEarlyResponseAndEnds(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 4\r\n\r\nstop",
		"HTTP/1.1 403 Forbidden\r\n\r\nstop",
	} {
		o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
			_, _ = http.ReadRequest(r)
			_, _ = io.WriteString(c, answer)
			_ = c.CloseWrite()
			_, _ = io.CopyN(io.Discard, r, 1<<20) // not to reset what it has written
		})
		s := &session{backend: o}
		c := open(t, h1.Config{}, s)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 104857600\r\n\r\n")
			block := make([]byte, 64<<10)
			for range 1600 {
				if _, err := c.Write(block); err != nil {
					return
				}
			}
		}()
		if resp, body := c.response(t, "POST"); resp.StatusCode != 403 || body != "stop" {
			t.Errorf("got %d %q", resp.StatusCode, body)
		}
		<-sent
		c.wait(t)
		if got := s.last(t); got.Status != 403 || got.Received > 8<<20 {
			t.Errorf("outcome %+v", got)
		}
	}
}

// An app that answers early and keeps its connection gets the request to its end.
func TestRelayFinishesARequestThatWasAnsweredEarly(t *testing.T) {
	o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, ok)
			if n, err := io.Copy(io.Discard, req.Body); n != max(0, req.ContentLength) || err != nil {
				t.Errorf("the app got %d octets, %v", n, err)
			}
		}
	})
	c := open(t, h1.Config{}, &session{backend: o})
	for range 3 {
		c.send(t, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
		if resp, body := c.response(t, "POST"); resp.StatusCode != 200 || body != "ok" {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
		c.send(t, strings.Repeat("x", 100_000))
	}
	c.get(t, "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"+strings.Repeat("x", 100_000))
	c.get(t, get) // the body before it has been read
	if n := o.accepted.Load(); n != 1 {
		t.Errorf("%d connections to the app, want 1", n)
	}
}

func TestRelayGivesUpOnABodyThatStops(t *testing.T) {
	for _, tt := range []struct {
		name, request string
		reached       bool
	}{
		{"short", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf", false},
		{"long", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nhalf", true},
		{"chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", true},
	} {
		for _, gone := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, client gone %v", tt.name, gone), func(t *testing.T) {
				o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
					req, err := http.ReadRequest(r)
					if err != nil {
						t.Errorf("the app cannot read the head: %v", err)
						return
					}
					if _, err := io.Copy(io.Discard, req.Body); err == nil {
						t.Error("the app could read the request to an end")
					}
				})
				s := &session{backend: o}
				c := open(t, h1.Config{ReadTimeout: 50 * time.Millisecond}, s)
				c.send(t, tt.request)
				want := h1.RequestTimeout
				if gone {
					_ = c.CloseWrite()
					want = h1.ClientGone
					if rest := c.rest(t); rest != "" {
						t.Errorf("got %q", rest)
					}
				} else if resp, _ := c.response(t, "POST"); resp.StatusCode != 408 || !resp.Close {
					t.Errorf("got %d close %v, want 408 and close", resp.StatusCode, resp.Close)
				}
				c.Close()
				c.wait(t)
				if got := s.last(t); got.Reason != want {
					t.Errorf("reason %q, want %q", got.Reason, want)
				}
				if got := o.dialed.Load() > 0; got != tt.reached {
					t.Errorf("app reached: %v", got)
				}
			})
		}
	}
}

// A long upload may take longer than an app may take to answer.
func TestRelayDoesNotHurryAnAppThatIsStillBeingSentTo(t *testing.T) {
	o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		_, _ = io.WriteString(c, ok)
	})
	c := open(t, h1.Config{ResponseTimeout: 20 * time.Millisecond}, &session{backend: o})
	c.send(t, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
	for start := time.Now(); time.Since(start) < 100*time.Millisecond; time.Sleep(time.Millisecond) {
		c.send(t, "1\r\nx\r\n")
	}
	if resp, _ := c.get(t, "0\r\n\r\n"); resp.StatusCode != 200 {
		t.Errorf("got %d, want 200", resp.StatusCode)
	}
}

// A client that does not read is not waited for forever, and does not make the relay buffer.
func TestRelayStopsWritingToAClientThatDoesNotRead(t *testing.T) {
	block := make([]byte, 64<<10)
	o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		_, _ = http.ReadRequest(r)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		for {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	})
	s := &session{backend: o}
	c := open(t, h1.Config{WriteTimeout: 50 * time.Millisecond}, s)
	c.send(t, get)
	c.wait(t)
	if got := s.last(t); got.Reason != h1.ClientGone || got.Sent > 64<<20 {
		t.Errorf("outcome %+v", got)
	}
}
