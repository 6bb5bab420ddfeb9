package h1_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/proxy/h1"
)

const (
	get   = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	get10 = "GET / HTTP/1.0\r\nHost: a\r\n\r\n"
	head  = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
)

// once is an app that answers one request with raw bytes and closes.
func once(t testing.TB, response string) *origin {
	return newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, response)
	})
}

func TestRelayWritesResponsesAnew(t *testing.T) {
	for _, tt := range []struct {
		name, request, response, want string
		closes                        bool
	}{
		{"sized", get, ok, ok, false},
		{"without a reason", get, "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", false},
		{"without the space before it", get, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", false},
		{"order, case and repetition", get, "HTTP/1.1 200 OK\r\nset-cookie:  a\r\nContent-Length: 0\r\nSet-Cookie: b \r\nX-Request-Id: app\r\n\r\n",
			"HTTP/1.1 200 OK\r\nset-cookie: a\r\nSet-Cookie: b\r\nX-Request-Id: app\r\nContent-Length: 0\r\n\r\n", false},
		{"hop-by-hop fields", get, "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-A\r\nX-A: 1\r\nX-B: 2\r\nKeep-Alive: timeout=5\r\n" +
			"Proxy-Authenticate: x\r\nTE: x\r\nUpgrade: h2c\r\nTrailer: x\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nX-B: 2\r\nContent-Length: 0\r\n\r\n", false},
		{"426 names the protocol", get, "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n", false},
		{"chunks", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n02\r\nde\r\n0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", false},
		{"chunks with trailers", get, "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum:  1\r\nSet-Cookie: x\r\nContent-Length: 1\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n", false},
		{"empty chunked body", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false},
		{"to the end of the connection", get, "HTTP/1.1 200 OK\r\n\r\nabc", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", false},
		{"HTTP/1.0 app", get, "HTTP/1.0 200 OK\r\n\r\nabc", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", false},
		{"HEAD", head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false},
		{"HEAD, chunked", head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", false},
		{"204", get, "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n", false},
		{"204 that gives a length", get, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n", false},
		{"304 with a length", get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false},
		{"the app closes, the client need not", get, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false},
		{"client closes", "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", ok, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", true},
		{"HTTP/1.0 client", get10, ok, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", true},
		{"HTTP/1.0 client, chunks", get10, "HTTP/1.1 200 OK\r\nTrailer: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n",
			"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde", true},
		{"HTTP/1.0 client, to the end", get10, "HTTP/1.1 200 OK\r\n\r\nabc", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", true},
		{"early hints", get, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\n" + ok, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok, false},
		{"early hints, HTTP/1.0 client", get10, "HTTP/1.1 103 Early Hints\r\n\r\n" + ok, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", true},
		{"100 that nobody waits for", get, "HTTP/1.1 100 Continue\r\n\r\n" + ok, ok, false},
		{"bytes behind the end", get, ok + "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged", ok, false},
		{"body that HEAD must not have", head, ok, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := once(t, tt.response)
			c := open(t, h1.Config{}, &session{backend: o})
			c.send(t, tt.request)
			got := make([]byte, len(tt.want))
			if n, err := io.ReadFull(c.r, got); err != nil {
				t.Fatalf("got %q, then %v", got[:n], err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			if tt.closes {
				if rest := c.rest(t); rest != "" {
					t.Errorf("and then %q", rest)
				}
				return
			}
			// The next response is that of the next request, over a new connection where need be.
			if resp, body := c.get(t, head); resp.StatusCode/100 > 4 || body != "" {
				t.Errorf("the next request got %d %q", resp.StatusCode, body)
			}
		})
	}
}

func TestRelayRefusesResponses(t *testing.T) {
	for _, tt := range []struct {
		name, response string
		status         int
		reason         h1.Reason
	}{
		{"nothing", "", 502, h1.AppClosed},
		{"half a status line", "HTTP/1.1 20", 502, h1.AppTruncated},
		{"half a head", "HTTP/1.1 200 OK\r\nContent-Le", 502, h1.AppTruncated},
		{"both framings", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502, h1.AppMalformed},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 502, h1.AppMalformed},
		{"length list", "HTTP/1.1 200 OK\r\nContent-Length: 5,5\r\n\r\nhello", 502, h1.AppMalformed},
		{"negative length", "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", 502, h1.AppMalformed},
		{"two codings", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502, h1.AppMalformed},
		{"other coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", 502, h1.AppMalformed},
		{"coding in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502, h1.AppMalformed},
		{"bare LF", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", 502, h1.AppMalformed},
		{"obs-fold", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n", 502, h1.AppMalformed},
		{"space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n", 502, h1.AppMalformed},
		{"control character", "HTTP/1.1 200 OK\r\nX: \x01\r\n\r\n", 502, h1.AppMalformed},
		{"control character in the reason", "HTTP/1.1 200 O\x01K\r\n\r\n", 502, h1.AppMalformed},
		{"HTTP/2", "HTTP/2.0 200 OK\r\n\r\n", 502, h1.AppMalformed},
		{"no HTTP at all", "SSH-2.0-OpenSSH_9.2\r\n", 502, h1.AppMalformed},
		{"status of two digits", "HTTP/1.1 20 OK\r\n\r\n", 502, h1.AppMalformed},
		{"status of four digits", "HTTP/1.1 2000 OK\r\n\r\n", 502, h1.AppMalformed},
		{"status 099", "HTTP/1.1 099 No\r\n\r\n", 502, h1.AppMalformed},
		{"status 600", "HTTP/1.1 600 No\r\n\r\n", 502, h1.AppMalformed},
		{"101 unasked", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 502, h1.AppMalformed},
		{"17 informational responses", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 17) + ok, 502, h1.AppMalformed},
		{"129 fields", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 129) + "\r\n", 502, h1.AppMalformed},
		{"head of 40 KiB", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1019)+"\r\n", 40) + "\r\n", 502, h1.AppMalformed},
		{"bad chunk with the head", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 502, h1.AppMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &session{backend: once(t, tt.response)}
			c := open(t, h1.Config{}, s)
			resp, _ := c.get(t, get)
			if resp.StatusCode != tt.status {
				t.Errorf("got %d, want %d", resp.StatusCode, tt.status)
			}
			// The client's connection is in order and goes on.
			c.get(t, get)
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.failures) < 1 || s.failures[0].Reason != tt.reason {
				t.Errorf("failures %v, want %s", s.failures, tt.reason)
			}
		})
	}
}

// What breaks off must not look whole.
func TestRelayCutsTheConnectionWhenAResponseBreaksOff(t *testing.T) {
	body := strings.Repeat("x", 40<<10)
	for _, tt := range []struct {
		name, request, response string
		reason                  h1.Reason
	}{
		{"sized", get, "HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n" + body, h1.AppTruncated},
		{"chunked", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na000\r\n" + body + "\r\n", h1.AppTruncated},
		{"bad chunk", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na000\r\n" + body + "\r\nx\r\n", h1.AppMalformed},
		{"bad trailer", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na000\r\n" + body + "\r\n0\r\nX y: z\r\n\r\n", h1.AppMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &session{backend: once(t, tt.response)}
			c := open(t, h1.Config{}, s)
			c.send(t, tt.request)
			resp, err := http.ReadResponse(c.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err == nil {
				t.Error("the client takes the response for whole")
			}
			c.wait(t)
			if got := s.last(t); got.Reason != tt.reason || got.Status != 200 {
				t.Errorf("outcome %+v, want %s", got, tt.reason)
			}
		})
	}
}

func TestRelayPassesLongHeads(t *testing.T) {
	long := strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 30)
	c := open(t, h1.Config{}, &session{backend: answering(t, "HTTP/1.1 200 OK\r\n"+long+"Content-Length: 2\r\n\r\nok")})
	for range 3 {
		resp, body := c.get(t, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n"+long+"\r\n"+strings.Repeat("b", 20000))
		if resp.StatusCode != 200 || len(resp.Header["X"]) != 30 || body != "ok" {
			t.Fatalf("got %d, %d fields, %q", resp.StatusCode, len(resp.Header["X"]), body)
		}
	}
}

func TestRelayPassesLongBodiesBothWays(t *testing.T) {
	echo := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			resp := &http.Response{StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, Body: req.Body, ContentLength: req.ContentLength}
			if req.ContentLength < 0 {
				resp.TransferEncoding = []string{"chunked"}
			}
			if resp.Write(c) != nil {
				return
			}
		}
	})
	s := &session{backend: echo}
	c := open(t, h1.Config{}, s)
	const size = 1 << 20
	body := strings.Repeat("0123456789abcdef", size/16)
	for _, tt := range []struct {
		name   string
		length int64
	}{{"sized", size}, {"chunked", -1}, {"sized again", size}} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequest("POST", "http://a/", io.MultiReader(strings.NewReader(body)))
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = tt.length
			sent := make(chan error, 1)
			go func() { sent <- req.Write(c.TCPConn) }()
			resp, got := c.response(t, "POST")
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != 200 || got != body || resp.ContentLength != tt.length {
				t.Errorf("got %d, %d octets, length %d", resp.StatusCode, len(got), resp.ContentLength)
			}
		})
	}
	c.Close()
	c.wait(t)
	if n := echo.accepted.Load(); n != 1 {
		t.Errorf("%d connections to the app, want 1", n)
	}
	if o := s.last(t); o.Received != size || o.Sent != size || o.Reason != "" {
		t.Errorf("outcome %+v", o)
	}
}

func TestRelayStopsWaitingForASilentApp(t *testing.T) {
	for _, tt := range []struct {
		name, response string
		status         int
	}{
		{"before its response", "", 504},
		{"within its head", "HTTP/1.1 200 OK\r\n", 504},
		{"within its body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
				_, _ = http.ReadRequest(r)
				_, _ = io.WriteString(c, tt.response)
				_, _ = io.Copy(io.Discard, r)
			})
			s := &session{backend: o}
			c := open(t, h1.Config{ResponseTimeout: 50 * time.Millisecond}, s)
			c.send(t, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
			resp, err := http.ReadResponse(c.r, nil)
			if err != nil || resp.StatusCode != tt.status {
				t.Fatalf("got %v %v, want %d", resp, err, tt.status)
			}
			if _, err := io.Copy(io.Discard, resp.Body); (err == nil) != (tt.status == 504) {
				t.Errorf("body: %v", err)
			}
			c.Close()
			c.wait(t)
			if got := s.last(t); got.Reason != h1.AppTimeout {
				t.Errorf("reason %q, want %q", got.Reason, h1.AppTimeout)
			}
		})
	}
}
