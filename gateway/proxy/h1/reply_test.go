package h1_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/proxy/h1"
)

// local is a session that answers everything itself.
func local(reply *h1.Reply) *session {
	return &session{route: func(*h1.Request) (h1.Backend, *h1.Reply) { return nil, reply }}
}

func TestRepliesOfTheGateway(t *testing.T) {
	reply := &h1.Reply{Status: 404, Body: []byte("nobody"), Fields: []h1.Field{
		{"Content-Type", "text/plain"}, {"X: y", "z"}, {"X", "a\r\nSet-Cookie: b"}, {"Content-Length", "99"}, {"Transfer-Encoding", "chunked"}, {"", "x"},
	}}
	s := local(reply)
	c := open(t, h1.Config{}, s)
	for _, tt := range []struct{ name, request string }{
		{"GET", get},
		{"POST whose body is left", post},
		{"POST whose body is long", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100_000)},
		{"GET again", get},
	} {
		resp, body := c.get(t, tt.request)
		if resp.StatusCode != 404 || body != "nobody" || resp.Close {
			t.Fatalf("%s: got %d %q close %v", tt.name, resp.StatusCode, body, resp.Close)
		}
		for _, own := range []string{"Date", "X-Request-Id"} {
			if resp.Header.Get(own) == "" {
				t.Errorf("%s: no %s", tt.name, own)
			}
			resp.Header.Del(own)
		}
		if diff := cmp.Diff(http.Header{"Content-Type": {"text/plain"}, "Content-Length": {"6"}}, resp.Header); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	if resp, body := c.get(t, head); resp.ContentLength != 6 || body != "" {
		t.Errorf("HEAD: length %d, %q", resp.ContentLength, body)
	}
	c.get(t, get) // in step
}

// Where the end of the request body is far or unknown, the connection ends with the reply.
func TestRepliesEndAConnectionWhoseRequestIsNotOver(t *testing.T) {
	for _, request := range []string{
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
		"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
	} {
		c := open(t, h1.Config{}, local(&h1.Reply{Status: 404}))
		if resp, _ := c.get(t, request); resp.StatusCode != 404 || !resp.Close {
			t.Errorf("%q: got %d close %v", request, resp.StatusCode, resp.Close)
		}
		if rest := c.rest(t); rest != "" {
			t.Errorf("%q: and then %q", request, rest)
		}
	}
}

func TestSessionsWordTheErrors(t *testing.T) {
	var target, reason string
	s := &session{backend: once(t, ""), onError: func(r *h1.Request, e *h1.Error) *h1.Reply {
		target, reason = string(r.Target), string(e.Reason)
		return &h1.Reply{Status: 599, Body: []byte("worded")}
	}}
	c := open(t, h1.Config{}, s)
	if resp, body := c.get(t, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"); resp.StatusCode != 599 || body != "worded" {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
	if target != "/x" || reason != "app_closed" {
		t.Errorf("told of %q %q", target, reason)
	}
}

func TestARouteToNowhereIsAnInternalError(t *testing.T) {
	c := open(t, h1.Config{}, local(nil))
	if resp, _ := c.get(t, get); resp.StatusCode != 500 {
		t.Errorf("got %d, want 500", resp.StatusCode)
	}
}

func TestHandlersAnswer(t *testing.T) {
	long := strings.Repeat("0123456789", 5000)
	for _, tt := range []struct {
		name, request string
		handler       http.HandlerFunc
		status        int
		length        int64
		body          string
		closes        bool
	}{
		{"what it was asked", "POST /p?q HTTP/1.1\r\nHost: A:8443\r\nX-Forwarded-For: 1\r\nContent-Length: 5\r\n\r\nhello", func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			fmt.Fprint(w, r.Method, r.RequestURI, r.Host, r.RemoteAddr, r.Header.Get("X-Forwarded-For"), string(body), r.TLS == nil)
		}, 200, 46, "POST/p?qA:8443192.0.2.7:4711192.0.2.7hellotrue", false},
		{"chunks", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(w, r.Body)
		}, 200, 5, "abcde", false},
		{"a status alone", get, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) }, 418, 0, "", false},
		{"nothing", get, func(http.ResponseWriter, *http.Request) {}, 200, 0, "", false},
		{"204", get, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204); fmt.Fprint(w, "x") }, 204, 0, "", false},
		{"only the first status", get, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(103)
			w.WriteHeader(201)
			w.WriteHeader(202)
		}, 201, 0, "", false},
		{"long", get, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, long) }, 200, -1, long, false},
		{"long, announced", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(long)))
			for i := 0; i < len(long); i += 1000 {
				fmt.Fprint(w, long[i:i+1000])
			}
		}, 200, int64(len(long)), long, false},
		{"long, HTTP/1.0", get10, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, long) }, 200, -1, long, true},
		{"flushed", get, func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "a")
			_ = http.NewResponseController(w).Flush()
			fmt.Fprint(w, "b")
		}, 200, -1, "ab", false},
		{"HEAD", head, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "abc") }, 200, 3, "", false},
		{"fields that are not its own", get, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Connection"] = []string{"x"}
			w.Header()["Transfer-Encoding"] = []string{"gzip"}
			w.Header()["X\r\nY"] = []string{"z"}
			w.Header()["X"] = []string{"a\r\nb: c"}
		}, 200, 0, "", false},
		{"a panic", get, func(http.ResponseWriter, *http.Request) { panic("x") }, 500, 15, "internal_error\n", true},
		{"a body that is too long", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n", nil, 413, 18, "request_too_large\n", true},
		{"chunks that are too long", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n11170\r\n" + strings.Repeat("x", 70000), nil, 413, 18, "request_too_large\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := local(&h1.Reply{Handler: tt.handler})
			c := open(t, h1.Config{}, s)
			resp, body := c.get(t, tt.request)
			if resp.StatusCode != tt.status || body != tt.body || resp.Close != tt.closes {
				t.Errorf("got %d %.60q close %v", resp.StatusCode, body, resp.Close)
			}
			if tt.status != 204 && resp.ContentLength != tt.length {
				t.Errorf("length %d, want %d", resp.ContentLength, tt.length)
			}
			if !tt.closes {
				c.get(t, head) // in step
			} else if rest := c.rest(t); rest != "" {
				t.Errorf("and then %q", rest)
			}
		})
	}
}

func TestHandlersThatBreakOffCutTheConnection(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"panic": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "a")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"less than announced": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			fmt.Fprint(w, "a")
			w.(http.Flusher).Flush()
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, h1.Config{}, local(&h1.Reply{Handler: h}))
			c.send(t, get)
			resp, err := http.ReadResponse(c.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Error("the client takes the answer for whole")
			}
		})
	}
}

func TestHandlersGetTheBodyTheyAskedFor(t *testing.T) {
	c := open(t, h1.Config{}, local(&h1.Reply{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Context() == context.Background() {
			t.Error("no context")
		}
		_, _ = io.Copy(w, r.Body)
	})}))
	c.send(t, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	readLine(t, c.r, "HTTP/1.1 100 Continue")
	readLine(t, c.r, "")
	if _, body := c.get(t, "hello"); body != "hello" {
		t.Errorf("got %q", body)
	}
}
