package h1_test

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/proxy/h1"
)

// own are the fields that the relay sets, for clientAddr and the authority a.
const own = "X-Forwarded-For: 192.0.2.7\r\nX-Real-Ip: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: a\r\n" +
	"Forwarded: for=192.0.2.7;proto=https;host=\"a\"\r\nX-Request-Id: ID\r\n\r\n"

var requestID = regexp.MustCompile(`X-Request-Id: [0-9a-f]{32}\r\n`)

func TestRelayWritesRequestsAnew(t *testing.T) {
	for _, tt := range []struct{ name, request, want string }{
		{"plain", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n" + own},
		{"order and case of fields", "GET / HTTP/1.1\r\nX-b: 1\r\nHOST: a\r\nx-A: 2\r\nX-b: 3\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\nX-b: 1\r\nx-A: 2\r\nX-b: 3\r\n" + own},
		{"whitespace around values", "GET / HTTP/1.1\r\nHost:a\r\nX: \t b c \t\r\nY:\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX: b c\r\nY: \r\n" + own},
		{"obs-text", "GET / HTTP/1.1\r\nHost: a\r\nX: \xc3\xa4\xff\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX: \xc3\xa4\xff\r\n" + own},
		{"an empty line first", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n" + own},
		{"HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n" + own},
		{"absolute form", "GET HTTPS://A/b?c HTTP/1.1\r\nHost: a\r\n\r\n", "GET /b?c HTTP/1.1\r\nHost: a\r\n" + own},
		{"absolute form, no path", "GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n" + own},
		{"absolute form, query alone", "GET http://a?c HTTP/1.1\r\nHost: a\r\n\r\n", "GET /?c HTTP/1.1\r\nHost: a\r\n" + own},
		{"absolute form for OPTIONS", "OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n" + own},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n" + own},
		{"odd but visible", "G~T /a|b\"<>\\^`{}?[%]%zz HTTP/1.1\r\nHost: a\r\n\r\n", "G~T /a|b\"<>\\^`{}?[%]%zz HTTP/1.1\r\nHost: a\r\n" + own},

		{"hop-by-hop fields", "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-one\r\nConnection: X-Two,, \r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\n" +
			"Keep-Alive: 5\r\nProxy-Connection: x\r\nProxy-Authorization: x\r\nProxy: x\r\nTE: gzip\r\nTrailer: x\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\nX-Three: 3\r\n" + own},
		{"trust fields", "GET / HTTP/1.1\r\nHost: a\r\nForwarded: for=1\r\nX-Forwarded-For: 1\r\nx-forwarded-HOST: b\r\nX-Forwarded-Anything: 1\r\n" +
			"X-Real-IP: 1\r\nX-Request-ID: 1\r\nTrue-Client-IP: 1\r\nX-Original-URL: /admin\r\nX-Rewrite-URL: /admin\r\nX-Forwardedx: 1\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n" + own},
		{"look-alikes of trust fields", "GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 1\r\nX-Forwarded_Host: b\r\nX.Real.Ip: 1\r\nx_request_id: 1\r\nX~Forwarded~Proto: http\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n" + own},
		{"look-alikes of framing fields", "GET / HTTP/1.1\r\nHost: a\r\nContent_Length: 5\r\nTransfer_Encoding: chunked\r\nTransfer.Encoding: chunked\r\nConnection_: x\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\nConnection_: x\r\n" + own},
		{"names with underscores", "GET / HTTP/1.1\r\nHost: a\r\nmy_field: 1\r\n_: 2\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nmy_field: 1\r\n_: 2\r\n" + own},

		{"no body, said so", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n" + own},
		{"leading zeros", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0005\r\n\r\nhello", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n" + own + "hello"},
		{"body of GET", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n" + own + "hello"},
		{"chunks", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n03;a=\"b\"\r\nabc\r\n0000A\r\n0123456789\r\n00\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + own + "d\r\nabc0123456789\r\n0\r\n\r\n"},
		{"trailers", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nTE: trailers\r\nConnection: TE\r\n\r\n" +
			"1\r\nx\r\n0\r\nX-Sum:1\r\nContent-Length: 5\r\nX-Forwarded-For: 1\r\nHost: b\r\nCookie: c\r\nTransfer_Encoding: x\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nConnection: TE\r\n" + own + "1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n"},
		{"trailers that must not be announced", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X, Content-Length\r\nTrailer: x y\r\n\r\n0\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + own + "0\r\n\r\n"},

		{"upgrade", "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Version: 13\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + own},
		{"upgrade that Connection does not name", "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n" + own},
		{"upgrade to h2c", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket, H2C\r\nHTTP2-Settings: x\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: a\r\n" + own},
		{"upgrade to TLS", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: TLS/1.2\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n" + own},
		{"two upgrades", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: a\r\nUpgrade: b\r\nUpgrade: c\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n" + own},
		{"upgrade with a body", "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n" + own + "x"},
		{"upgrade in HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n" + own},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got bytes.Buffer
			arrived := make(chan struct{})
			o := newOrigin(t, func(c *net.TCPConn, _ *bufio.Reader) {
				defer close(arrived)
				req, err := http.ReadRequest(bufio.NewReader(io.TeeReader(c, &got)))
				if err != nil {
					t.Errorf("the app cannot read the request: %v", err)
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
				_, _ = io.WriteString(c, ok)
			})
			c := open(t, h1.Config{}, &session{backend: o})
			if resp, body := c.get(t, tt.request); resp.StatusCode != 200 || body != "ok" {
				t.Fatalf("got %d %q", resp.StatusCode, body)
			}
			<-arrived
			if diff := cmp.Diff(tt.want, requestID.ReplaceAllString(got.String(), "X-Request-Id: ID\r\n")); diff != "" {
				t.Errorf("what the app saw (-want +got):\n%s", diff)
			}
		})
	}
}

func TestForwardingFieldsNameTheClient(t *testing.T) {
	for _, tt := range []struct{ addr, ip, forwarded string }{
		{"192.0.2.7:1", "192.0.2.7", "192.0.2.7"},
		{"[2001:db8::1]:1", "2001:db8::1", `"[2001:db8::1]"`},
		{"[::ffff:192.0.2.7]:1", "192.0.2.7", "192.0.2.7"},
		{"[fe80::1%eth0]:1", "fe80::1", `"[fe80::1]"`},
	} {
		r, _, err := h1.ReadHead([]byte("GET / HTTP/1.1\r\nHost: a:8443\r\n\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(h1.RewriteHead(r, netip.MustParseAddrPort(tt.addr)))))
		if err != nil {
			t.Fatal(err)
		}
		want := http.Header{
			"X-Forwarded-For": {tt.ip}, "X-Real-Ip": {tt.ip}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"a:8443"},
			"Forwarded": {"for=" + tt.forwarded + `;proto=https;host="a:8443"`}, "X-Request-Id": {string(r.ID[:])},
		}
		if diff := cmp.Diff(want, req.Header); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.addr, diff)
		}
	}
}

func TestRewriteOfAHeaderMapAgreesWithTheRelay(t *testing.T) {
	h := http.Header{
		"X-Forwarded-For": {"1"}, "X_forwarded_for": {"1"}, "X-Forwarded-Port": {"1"}, "Forwarded": {"for=1"}, "X-Request-Id": {"1"},
		"Keep-Alive": {"5"}, "Proxy-Authorization": {"x"}, "Upgrade": {"h2c"}, "Connection": {"close"}, "Accept": {"a", "b"}, "Te": {"trailers"},
	}
	h1.Rewrite(h, clientAddr, "https", "a", "id")
	want := http.Header{
		"Accept": {"a", "b"}, "Te": {"trailers"}, "X-Forwarded-For": {"192.0.2.7"}, "X-Real-Ip": {"192.0.2.7"}, "X-Forwarded-Proto": {"https"},
		"X-Forwarded-Host": {"a"}, "Forwarded": {`for=192.0.2.7;proto=https;host="a"`}, "X-Request-Id": {"id"},
	}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRequestSaysWhatTheHeadSays(t *testing.T) {
	r, n, err := h1.ReadHead([]byte("POST /a/b?c=d HTTP/1.1\r\nhost: A.Example:8443\r\nContent-Length: 7\r\nAccept: x\r\nACCEPT: y\r\nConnection: close\r\n\r\nGET"))
	if err != nil {
		t.Fatal(err)
	}
	got := []any{n, string(r.Method), string(r.Target), string(r.Path), string(r.Authority), string(r.Host), r.Port, r.ContentLength, r.Close, string(r.Field("accept")), r.Field("none") == nil}
	want := []any{108, "POST", "/a/b?c=d", "/a/b", "A.Example:8443", "A.Example", uint16(8443), int64(7), true, "x", true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r, _, err = h1.ReadHead([]byte("GET / HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n"))
	if err != nil || string(r.Host) != "[2001:db8::1]" || r.Port != 443 {
		t.Errorf("got %s %d %v", r.Host, r.Port, err)
	}
}

// A body that turns out malformed after its head has gone leaves the app with a request that never ends.
func TestRelayCutsARequestWhoseBodyIsMalformed(t *testing.T) {
	filler := "4000\r\n" + strings.Repeat("x", 0x4000) + "\r\n"
	for _, tt := range []struct{ name, body string }{
		{"chunk size", filler + "zz\r\n"},
		{"chunk end", filler + "1\r\nxx\r\n"},
		{"long extension", filler + "1;" + strings.Repeat("e", 5<<10) + "\r\nx\r\n0\r\n\r\n"},
		{"long trailer section", filler + "0\r\nX: " + strings.Repeat("y", 9<<10) + "\r\n\r\n"},
		{"trailer", filler + "0\r\nX y: z\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got bytes.Buffer
			ended := make(chan struct{})
			o := newOrigin(t, func(c *net.TCPConn, _ *bufio.Reader) {
				defer close(ended)
				_, _ = io.Copy(&got, c)
			})
			s := &session{backend: o}
			c := open(t, h1.Config{}, s)
			c.send(t, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"+tt.body)
			resp, _ := c.response(t, "POST")
			if resp.StatusCode != 400 || !resp.Close {
				t.Errorf("got %d, close %v, want 400 and close", resp.StatusCode, resp.Close)
			}
			<-ended
			if req, err := http.ReadRequest(bufio.NewReader(&got)); err == nil {
				if _, err := io.Copy(io.Discard, req.Body); err == nil {
					t.Error("the app could read the request to an end")
				}
			}
			c.rest(t)
			c.Close()
			c.wait(t)
			if got := s.last(t); got.Reason != h1.Malformed {
				t.Errorf("reason %q", got.Reason)
			}
		})
	}
}
