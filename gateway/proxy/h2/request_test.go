package h2_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
)

// get is what every request of the tables begins with.
var get = []string{":method", "GET", ":scheme", "https", ":authority", "app.example", ":path", "/"}

func with(base []string, more ...string) []string {
	return append(append([]string(nil), base...), more...)
}

func TestStrangeRequestsNeverReachTheApp(t *testing.T) {
	t.Parallel()
	o := handler(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("the app gets %v", r) })
	for _, tt := range []struct {
		name   string
		fields []string
		status int // 0: a stream error
	}{
		{"no :method", get[2:], 0},
		{"no :scheme", with(get[:2], get[4:]...), 0},
		{"no :path", get[:6], 0},
		{"empty :path", with(get[:6], ":path", ""), 0},
		{"two :path", with(get, ":path", "/b"), 0},
		{":status", with(get, ":status", "200"), 0},
		{"unknown pseudo-header field", with(get, ":x", "y"), 0},
		{"pseudo-header field behind a regular one", with(get[:6], "a", "b", ":path", "/"), 0},
		{"odd :scheme", with(get[:2], ":scheme", "ftp", ":authority", "a", ":path", "/"), 0},
		{"connection", with(get, "connection", "close"), 0},
		{"keep-alive", with(get, "keep-alive", "timeout=5"), 0},
		{"proxy-connection", with(get, "proxy-connection", "keep-alive"), 0},
		{"transfer-encoding", with(get, "transfer-encoding", "chunked"), 0},
		{"upgrade", with(get, "upgrade", "h2c"), 0},
		{"te: gzip", with(get, "te", "gzip"), 0},
		{"upper case", with(get, "X-A", "b"), 0},
		{"empty name", with(get, "", "b"), 0},
		{"name with a space", with(get, "x a", "b"), 0},
		{"name with a colon", with(get, "x:a", "b"), 0},
		{"name with a line", with(get, "x\r\na", "b"), 0},
		{"value with CR LF", with(get, "x-a", "b\r\nx-b: c"), 0},
		{"value with NUL", with(get, "x-a", "b\x00"), 0},
		{"value with a space in front", with(get, "x-a", " b"), 0},
		{"value with a tab behind", with(get, "x-a", "b\t"), 0},
		{"content-length without a body", with(get, "content-length", "5"), 0},
		{":protocol without CONNECT", with(get, ":protocol", "websocket"), 0},
		{"CONNECT with a path", with(get[2:], ":method", "CONNECT"), 0},
		{"plain CONNECT", []string{":method", "CONNECT", ":authority", "a:443"}, 501},
		{"CONNECT for another protocol", with(get[2:], ":method", "CONNECT", ":protocol", "connect-udp"), 501},
		{"method with a space", with(get[2:], ":method", "GET /"), 400},
		{"method of absurd length", with(get[2:], ":method", strings.Repeat("A", 40)), 501},
		{"no authority", with(get[:4], ":path", "/"), 400},
		{"authority with user", with(get[:4], ":path", "/", ":authority", "u@a"), 400},
		{"authority with a space", with(get[:4], ":path", "/", ":authority", "a b"), 400},
		{"host that differs", with(get, "host", "evil.example"), 400},
		{"host twice", with(get, "host", "app.example", "host", "app.example"), 400},
		{"path without a slash", with(get[:6], ":path", "x"), 400},
		{"path in absolute form", with(get[:6], ":path", "https://app.example/"), 400},
		{"path with a space", with(get[:6], ":path", "/a b"), 400},
		{"path with a line", with(get[:6], ":path", "/ HTTP/1.1\r\nx: y"), 400},
		{"path with a bad escape", with(get[:6], ":path", "/%zz"), 400},
		{"path with a fragment", with(get[:6], ":path", "/#a"), 400},
		{"star", with(get[:6], ":path", "*"), 400},
		{"content-length twice", with(get, "content-length", "0", "content-length", "0"), 400},
		{"content-length with a sign", with(get, "content-length", "+0"), 400},
		{"expectation", with(get, "expect", "200-maybe"), 417},
		{"more fields than allowed", with(get, strings.Fields(strings.Repeat("x y ", 140))...), 431},
		{"longer than allowed", with(get, "x-a", strings.Repeat("a", 33<<10)), 431},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := to(o)
			c := serve(t, h2Config(), s).open(t)
			block := c.fields(tt.fields...)
			n := min(len(block), 16<<10)
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:n], EndStream: true, EndHeaders: n == len(block)})
			for block = block[n:]; len(block) > 0; block = block[n:] {
				n = min(len(block), 16<<10)
				_ = c.WriteContinuation(1, n == len(block), block[:n])
			}
			a := c.result(1)
			switch {
			case tt.status == 0 && (a.reset == nil || *a.reset != http2.ErrCodeProtocol):
				t.Errorf("got %+v, want a stream error", a)
			case tt.status != 0 && a.status != tt.status:
				t.Errorf("got %+v, want %d", a, tt.status)
			}
			if got := s.last(t).Reason; got == "" {
				t.Error("no reason")
			}
		})
	}
}

func TestBodiesMustHaveTheirLength(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		length string
		pieces []string
		end    bool
	}{{"3", []string{"abcd"}, false}, {"3", []string{"ab"}, true}, {"3", []string{"ab", "cd"}, true}, {"0", []string{"a"}, false}} {
		o := handler(t, func(_ http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err == nil {
				t.Error("the app gets a whole request")
			}
		})
		c := serve(t, h2Config(), to(o)).open(t)
		c.send(1, false, "POST", "/", "content-length", tt.length)
		for i, p := range tt.pieces {
			_ = c.WriteData(1, tt.end && i == len(tt.pieces)-1, []byte(p))
		}
		if a := c.result(1); a.reset == nil || *a.reset != http2.ErrCodeProtocol {
			t.Errorf("%+v: got %+v", tt, a)
		}
	}
}

func TestTrailersMustEndTheRequest(t *testing.T) {
	t.Parallel()
	for name, send := range map[string]func(c *client){
		"trailers without an end":            func(c *client) { c.headers(1, false, "x-a", "b") },
		"trailers with a pseudo-header":      func(c *client) { c.headers(1, true, ":path", "/") },
		"trailers with connection":           func(c *client) { c.headers(1, true, "connection", "x") },
		"trailers with an upper case letter": func(c *client) { c.headers(1, true, "X-A", "x") },
	} {
		c := serve(t, h2Config(), to(silent(t))).open(t)
		c.send(1, false, "POST", "/")
		send(c)
		if a := c.result(1); a.reset == nil || *a.reset != http2.ErrCodeProtocol {
			t.Errorf("%s: got %+v", name, a)
		}
	}
}

// The app gets what the client said, in the relay's words, with the trust fields set by the gateway alone.
func TestHeadAsTheAppReceivesIt(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		fields []string
		want   []string
	}{
		{"plain", with(get[:6], ":path", "/a/b?c=%20"), []string{"GET /a/b?c=%20 HTTP/1.1", "Host: app.example"}},
		{"host alone", with(get[:4], ":path", "/", "host", "h.example:8443"), []string{"GET / HTTP/1.1", "Host: h.example:8443"}},
		{"cookies are joined", with(get, "cookie", "a=1", "x-a", "b", "cookie", "b=2"), []string{"GET / HTTP/1.1", "Host: app.example", "x-a: b", "cookie: a=1; b=2"}},
		{"star", []string{":method", "OPTIONS", ":scheme", "https", ":authority", "app.example", ":path", "*"}, []string{"OPTIONS * HTTP/1.1", "Host: app.example"}},
		{"te", with(get, "te", "trailers"), []string{"GET / HTTP/1.1", "Host: app.example", "TE: trailers", "Connection: TE"}},
		{"trust and its shadows", with(get, "x-forwarded-for", "6.6.6.6", "forwarded", "for=6.6.6.6", "x_forwarded_for", "6.6.6.6", "x-real-ip", "6.6.6.6", "x-request-id", "evil",
			"proxy", "evil", "proxy-authorization", "evil", "content_length", "5"), []string{"GET / HTTP/1.1", "Host: app.example"}},
		{"a POST without a body", with(get[2:], ":method", "POST"), []string{"POST / HTTP/1.1", "Host: app.example", "Content-Length: 0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			heads := make(chan string, 1)
			o := headOrigin(t, heads)
			c := serve(t, h2Config(), to(o)).open(t)
			c.headers(1, true, tt.fields...)
			if a := c.result(1); a.status != 204 {
				t.Fatalf("got %+v", a)
			}
			var got []string
			host := "app.example"
			for line := range strings.Lines(<-heads) {
				line = strings.TrimRight(line, "\r\n")
				if strings.Contains(strings.ToLower(line), "6.6.6.6") || strings.Contains(line, "evil") {
					t.Errorf("line %q", line)
				}
				if rest, ok := strings.CutPrefix(line, "Host: "); ok {
					host = rest
				}
				if name, _, _ := strings.Cut(line, ":"); !strings.HasPrefix(name, "X-F") && name != "X-Real-Ip" && name != "X-Request-Id" && name != "Forwarded" && line != "" {
					got = append(got, line)
				} else if name == "X-Forwarded-Host" && line != "X-Forwarded-Host: "+host {
					t.Errorf("line %q", line)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// A body that is there when the request is sent has a length, another one comes in chunks with its trailers.
func TestFramingTowardsTheApp(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 1)
	o := handler(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		seen <- fmt.Sprint(string(body), " ", r.ContentLength, r.TransferEncoding, r.Trailer["X-Sum"], r.Trailer["Authorization"], err)
	})
	f := serve(t, h2Config(), to(o))
	c := f.open(t)
	for i, tt := range []struct {
		send func(id uint32)
		want string
	}{
		{func(id uint32) {
			c.send(id, false, "POST", "/", "content-length", "4")
			_ = c.WriteData(id, false, []byte("wi"))
			_ = c.WriteData(id, true, []byte("ki"))
		}, "wiki 4 [] [] [] <nil>"},
		{func(id uint32) {
			c.send(id, false, "POST", "/", "trailer", "x-sum")
			_ = c.WriteData(id, false, []byte("wiki"))
			c.headers(id, true, "x-sum", "42", "authorization", "evil")
		}, "wiki -1 [chunked] [42] [] <nil>"},
		{func(id uint32) {
			c.send(id, false, "POST", "/")
			_ = c.WriteData(id, true, nil)
		}, ""},
	} {
		id := uint32(2*i + 1)
		tt.send(id)
		if a := c.result(id); a.status != 200 {
			t.Errorf("got %+v", a)
		}
		if got := <-seen; tt.want != "" && got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestDoneIsToldWhatBecameOfARequest(t *testing.T) {
	t.Parallel()
	s := to(handler(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "four")
	}))
	c := serve(t, h2Config(), s).open(t)
	c.send(1, false, "POST", "/")
	_ = c.WriteData(1, true, []byte("two"))
	c.result(1)
	o := s.last(t)
	if o.Status != 200 || o.Received != 3 || o.Sent != 4 || o.Reason != "" || o.Backend != s.to.Backend || o.Duration <= 0 {
		t.Errorf("got %+v", o)
	}
}
