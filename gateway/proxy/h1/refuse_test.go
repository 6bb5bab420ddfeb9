package h1_test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"dstack.host/gateway/proxy/h1"
)

// closedOrigin is an app that must not be reached.
func closedOrigin(t testing.TB) *origin {
	return newOrigin(t, func(*net.TCPConn, *bufio.Reader) { t.Error("the app was reached") })
}

// Everything here is answered by the relay, and nothing of it reaches an app; each row is a head with a request smuggled behind it.
var refused = []struct {
	name, request string
	status        int
	reason        h1.Reason
}{
	{"bare LF throughout", "GET / HTTP/1.1\nHost: a\n\n", 400, h1.Malformed},
	{"bare LF in the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"bare LF in a field", "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400, h1.Malformed},
	{"bare LF ends the head", "GET / HTTP/1.1\r\nHost: a\r\n\n", 400, h1.Malformed},
	{"bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n", 400, h1.Malformed},
	{"CR CR LF", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n", 400, h1.Malformed},
	{"bare CR in the request line", "GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: y\x00z\r\n\r\n", 400, h1.Malformed},
	{"DEL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: y\x7f\r\n\r\n", 400, h1.Malformed},
	{"vertical tab in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: y\x0bz\r\n\r\n", 400, h1.Malformed},
	{"obs-fold", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", 400, h1.Malformed},
	{"obs-fold of a framing field", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400, h1.Malformed},
	{"whitespace before the first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, h1.Malformed},
	{"space before the colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, h1.Malformed},
	{"tab before the colon", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length\t: 5\r\n\r\nhello", 400, h1.Malformed},
	{"no colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400, h1.Malformed},
	{"empty name", "GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", 400, h1.Malformed},
	{"name with a slash", "GET / HTTP/1.1\r\nHost: a\r\nX/Y: y\r\n\r\n", 400, h1.Malformed},
	{"name with NUL", "GET / HTTP/1.1\r\nHost: a\r\nX\x00: y\r\n\r\n", 400, h1.Malformed},
	{"name beyond ASCII", "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\xa0: chunked\r\n\r\n", 400, h1.Malformed},
	{"long s in a name", "POST / HTTP/1.1\r\nHost: a\r\nTran\u017ffer-Encoding: chunked\r\n\r\n", 400, h1.Malformed},

	{"no Host", "GET / HTTP/1.1\r\nX: y\r\n\r\n", 400, h1.Malformed},
	{"no Host, HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", 400, h1.Malformed},
	{"no fields at all", "GET / HTTP/1.1\r\n\r\n", 400, h1.Malformed},
	{"empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, h1.Malformed},
	{"two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, h1.Malformed},
	{"two equal Hosts", "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400, h1.Malformed},
	{"Host list", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, h1.Malformed},
	{"Host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, h1.Malformed},
	{"Host with userinfo", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, h1.Malformed},
	{"Host with a quote", "GET / HTTP/1.1\r\nHost: a\"b\r\n\r\n", 400, h1.Malformed},
	{"Host with an escape", "GET / HTTP/1.1\r\nHost: a%2eb\r\n\r\n", 400, h1.Malformed},
	{"Host beyond ASCII", "GET / HTTP/1.1\r\nHost: \xc3\xa4\r\n\r\n", 400, h1.Malformed},
	{"Host with port 65536", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400, h1.Malformed},
	{"Host with port 0", "GET / HTTP/1.1\r\nHost: a:0\r\n\r\n", 400, h1.Malformed},
	{"Host with an empty port", "GET / HTTP/1.1\r\nHost: a:\r\n\r\n", 400, h1.Malformed},
	{"Host with a signed port", "GET / HTTP/1.1\r\nHost: a:+80\r\n\r\n", 400, h1.Malformed},
	{"Host with two ports", "GET / HTTP/1.1\r\nHost: a:80:81\r\n\r\n", 400, h1.Malformed},
	{"Host with a bare IPv6 address", "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", 400, h1.Malformed},
	{"Host with a zone", "GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n\r\n", 400, h1.Malformed},
	{"Host with an open bracket", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, h1.Malformed},
	{"Host of 256 octets", "GET / HTTP/1.1\r\nHost: " + strings.Repeat("a", 256) + "\r\n\r\n", 400, h1.Malformed},

	{"two Content-Lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, h1.Malformed},
	{"two equal Content-Lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\nhello", 400, h1.Malformed},
	{"Content-Length list", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", 400, h1.Malformed},
	{"Content-Length with a sign", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400, h1.Malformed},
	{"negative Content-Length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nhello", 400, h1.Malformed},
	{"hexadecimal Content-Length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", 400, h1.Malformed},
	{"empty Content-Length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400, h1.Malformed},
	{"Content-Length with a space", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 2\r\n\r\nhello", 400, h1.Malformed},
	{"Content-Length beyond 2^63", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551621\r\n\r\nhello", 400, h1.Malformed},
	{"quoted Content-Length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \"5\"\r\n\r\nhello", 400, h1.Malformed},
	{"both framings", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, h1.Malformed},
	{"both framings, the other way round", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", 400, h1.Malformed},
	{"two Transfer-Encodings", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, h1.Malformed},
	{"Transfer-Encoding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, h1.Malformed},
	{"identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 501, h1.CodingUnsupported},
	{"gzip, chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, h1.CodingUnsupported},
	{"chunked twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501, h1.CodingUnsupported},
	{"chunked with a parameter", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;x=y\r\n\r\n0\r\n\r\n", 501, h1.CodingUnsupported},
	{"xchunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501, h1.CodingUnsupported},
	{"quoted chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 501, h1.CodingUnsupported},
	{"empty Transfer-Encoding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", 501, h1.CodingUnsupported},
	{"chunked behind a vertical tab", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400, h1.Malformed},

	{"Connection names Host", "GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", 400, h1.Malformed},
	{"Connection names Content-Length", "POST / HTTP/1.1\r\nHost: a\r\nConnection: close, content-length\r\nContent-Length: 5\r\n\r\nhello", 400, h1.Malformed},
	{"Connection names Transfer-Encoding", "POST / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, h1.Malformed},
	{"Connection with a quoted string", "GET / HTTP/1.1\r\nHost: a\r\nConnection: \"close\"\r\n\r\n", 400, h1.Malformed},
	{"Connection with 17 options", "GET / HTTP/1.1\r\nHost: a\r\nConnection: a" + strings.Repeat(",a", 16) + "\r\n\r\n", 400, h1.Malformed},
	{"two Expects", "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", 400, h1.Malformed},
	{"another expectation", "POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 5\r\n\r\n", 417, h1.ExpectationFailed},

	{"HTTP/0.9", "GET /\r\n\r\n", 400, h1.Malformed},
	{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505, h1.VersionUnsupported},
	{"HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, h1.VersionUnsupported},
	{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, h1.VersionUnsupported},
	{"HTTP/1.10", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"HTTP/01.1", "GET / HTTP/01.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"lower-case version", "GET / http/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"version junk", "GET / HTTP/1.1x\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"no version number", "GET / HTTP/\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"tab for a space", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"space before the method", " GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"space behind the version", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"two empty lines first", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"method that is no token", "G{T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"method of 33 octets", strings.Repeat("G", 33) + " / HTTP/1.1\r\nHost: a\r\n\r\n", 501, h1.MethodUnsupported},
	{"CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501, h1.MethodUnsupported},
	{"TLS to a plain port", "\x16\x03\x01\x02\x00\x01\x00\n\r\n", 400, h1.Malformed},

	{"relative target", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"asterisk for GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"asterisk and more", "OPTIONS *x HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"authority form", "GET a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 400, h1.Malformed},
	{"fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"target beyond ASCII", "GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"bad escape", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"cut escape", "GET /%a HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"absolute form, other host", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"absolute form, other port", "GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"absolute form, userinfo", "GET http://a@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"absolute form, no Host", "GET http://a/ HTTP/1.1\r\n\r\n", 400, h1.Malformed},
	{"absolute form, no host", "GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},
	{"absolute form, other scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, h1.Malformed},

	{"129 fields", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 128) + "\r\n", 431, h1.TooLarge},
	{"field of 32 KiB", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 32<<10) + "\r\n\r\n", 431, h1.TooLarge},
	{"head of 1 MiB", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: "+strings.Repeat("y", 16<<10-5)+"\r\n", 64) + "\r\n", 431, h1.TooLarge},
	{"target of 32 KiB", "GET /" + strings.Repeat("a", 32<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", 414, h1.TooLarge},
	{"line of 1 MiB", strings.Repeat("A", 1<<20), 414, h1.TooLarge},

	{"chunk size that is none", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400, h1.Malformed},
	{"empty chunk size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", 400, h1.Malformed},
	{"chunk size with a prefix", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", 400, h1.Malformed},
	{"negative chunk size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n", 400, h1.Malformed},
	{"chunk size that overflows", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n", 400, h1.Malformed},
	{"chunk size with a space", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n", 400, h1.Malformed},
	{"chunk size with bare LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", 400, h1.Malformed},
	{"chunk size with CR and more", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\rxhello\r\n0\r\n\r\n", 400, h1.Malformed},
	{"chunk extension with bare LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n", 400, h1.Malformed},
	{"chunk longer than its size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n", 400, h1.Malformed},
	{"chunk that ends with bare LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", 400, h1.Malformed},
	{"trailer with bare LF", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n", 400, h1.Malformed},
	{"trailer with a space before the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX : y\r\n\r\n", 400, h1.Malformed},
}

func TestRelayRefusesAndForwardsNothing(t *testing.T) {
	for _, tt := range refused {
		t.Run(tt.name, func(t *testing.T) {
			o := closedOrigin(t)
			s := &session{backend: o}
			c := open(t, h1.Config{}, s)
			go func() { // the relay may stop reading before the end
				fmt.Fprint(c, tt.request+"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
				_ = c.CloseWrite()
			}()
			resp, _ := c.response(t, "GET")
			if resp.StatusCode != tt.status || !resp.Close || resp.Header.Get("X-Request-Id") == "" {
				t.Errorf("got %d, close %v, want %d and close", resp.StatusCode, resp.Close, tt.status)
			}
			if more := c.rest(t); more != "" {
				t.Errorf("more than one response: %q", more)
			}
			c.wait(t)
			if got := s.last(t); got.Reason != tt.reason || got.Status != tt.status {
				t.Errorf("outcome %+v, want %d %s", got, tt.status, tt.reason)
			}
			if n := o.dialed.Load(); n != 0 {
				t.Errorf("the app was dialled %d times", n)
			}
		})
	}
}

func TestRelayRefusesTheSameHoweverItArrives(t *testing.T) {
	for _, tt := range refused {
		if len(tt.request) > 200 {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			raw := []byte(tt.request)
			for i := 1; i <= len(raw); i++ {
				_, _, err := h1.ReadHead(raw[:i])
				if _, n, _ := h1.ReadHead(raw[:i]); n > 0 {
					return // refused for its body
				}
				if err != nil {
					if _, _, whole := h1.ReadHead(raw); whole == nil || whole.Error() != err.Error() {
						t.Fatalf("the first %d octets are refused with %v, all of them with %v", i, err, whole)
					}
					return
				}
			}
			t.Error("never refused")
		})
	}
}

func TestRelayStopsASlowHead(t *testing.T) {
	o := closedOrigin(t)
	s := &session{backend: o}
	c := open(t, h1.Config{HeadTimeout: 50 * time.Millisecond}, s)
	c.send(t, "GET / HTTP/1.1\r\nHost:")
	resp, _ := c.response(t, "GET")
	if resp.StatusCode != 408 || !resp.Close {
		t.Errorf("got %d close %v, want 408 and close", resp.StatusCode, resp.Close)
	}
}

func TestRelayClosesAnIdleConnectionWithoutAWord(t *testing.T) {
	for _, first := range []string{"", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"} {
		s := &session{backend: answering(t, ok)}
		c := open(t, h1.Config{HeadTimeout: 50 * time.Millisecond, IdleTimeout: 50 * time.Millisecond}, s)
		if first != "" {
			c.get(t, first)
		}
		if rest := c.rest(t); rest != "" {
			t.Errorf("got %q, want nothing", rest)
		}
		if c.wait(t); c.err != nil {
			t.Errorf("Serve: %v", c.err)
		}
	}
}
