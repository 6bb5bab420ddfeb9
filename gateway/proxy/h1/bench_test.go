package h1_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"

	"dstack.host/gateway/proxy/h1"
)

// quickOrigin answers every head with the same bytes and parses nothing, so that what is measured is the relay.
func quickOrigin(t testing.TB, response string) *origin {
	answer := []byte(response)
	return newOrigin(t, func(c *net.TCPConn, _ *bufio.Reader) {
		_ = c.SetDeadline(noDeadline)
		buf := make([]byte, 16<<10)
		for {
			n, err := c.Read(buf)
			if err != nil || !bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
				return
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
}

// mute is a session that allocates nothing.
type mute struct{ backend h1.Backend }

func (m *mute) Route(context.Context, *h1.Request) (h1.Backend, *h1.Reply) { return m.backend, nil }
func (m *mute) Fail(*h1.Request, *h1.Error) *h1.Reply                      { return nil }
func (m *mute) Done(*h1.Request, h1.Outcome)                               {}

// browserRequest is a request head as a browser sends it.
const browserRequest = "GET /api/items?page=2 HTTP/1.1\r\nHost: 0123456789abcdef0123456789abcdef01234567.dstack.host\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: */*\r\nAccept-Language: en-US,en;q=0.5\r\n" +
	"Accept-Encoding: gzip, deflate, br, zstd\r\nReferer: https://0123456789abcdef0123456789abcdef01234567.dstack.host/\r\n" +
	"Connection: keep-alive\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nSec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\n" +
	"Sec-Fetch-Site: same-origin\r\n\r\n"

var kilobyte = "HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n" +
	strings.Repeat("x", 1024)

// roundTrip sends request and reads exactly as many bytes as the answer has.
func roundTrip(c *client, request, buf []byte) error {
	if _, err := c.TCPConn.Write(request); err != nil {
		return err
	}
	_, err := io.ReadFull(c.TCPConn, buf)
	return err
}

func TestRelayAllocatesNothingPerKeepAliveRequest(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool drop what it is given")
	}
	chunked := "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n0\r\n\r\n"
	for _, tt := range []struct{ name, request, response string }{
		{"get, sized", browserRequest, kilobyte},
		{"get, chunked", browserRequest, chunked},
		{"post with its body", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\r\n\r\n", kilobyte},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t, h1.Config{}, &mute{quickOrigin(t, tt.response)})
			_ = c.SetDeadline(noDeadline)
			request, buf := []byte(tt.request), make([]byte, len(tt.response))
			allocs := testing.AllocsPerRun(500, func() {
				if err := roundTrip(c, request, buf); err != nil {
					t.Fatal(err)
				}
			})
			if allocs != 0 {
				t.Errorf("%v allocations per request, want 0", allocs)
			}
		})
	}
}

func BenchmarkRelayKeepAlive(b *testing.B) {
	c := open(b, h1.Config{}, &mute{quickOrigin(b, kilobyte)})
	_ = c.SetDeadline(noDeadline)
	request, buf := []byte(browserRequest), make([]byte, len(kilobyte))
	b.ReportAllocs()
	for b.Loop() {
		if err := roundTrip(c, request, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDirect is the same exchange without a relay: what the wire costs.
func BenchmarkDirect(b *testing.B) {
	o := quickOrigin(b, kilobyte)
	nc, err := o.Dial(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	c := &client{TCPConn: nc.(*net.TCPConn)}
	request, buf := []byte(browserRequest), make([]byte, len(kilobyte))
	for b.Loop() {
		if err := roundTrip(c, request, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRelayBulk relays 64 MiB bodies.
func BenchmarkRelayBulk(b *testing.B) {
	const size = 64 << 20
	for _, tt := range []struct{ name, head string }{
		{"sized", "HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n"},
		{"to-eof", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"},
	} {
		b.Run(tt.name, func(b *testing.B) {
			block := make([]byte, 64<<10)
			o := newOrigin(b, func(c *net.TCPConn, r *bufio.Reader) {
				_ = c.SetDeadline(noDeadline)
				buf := make([]byte, 16<<10)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					_, _ = io.WriteString(c, tt.head)
					for range size / len(block) {
						_, _ = c.Write(block)
					}
					if strings.Contains(tt.head, "close") {
						return
					}
				}
			})
			c := open(b, h1.Config{}, &mute{o})
			_ = c.SetDeadline(noDeadline)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				c.send(b, browserRequest)
				if _, body := c.discard(b); body != size {
					b.Fatalf("%d bytes of body", body)
				}
			}
		})
	}
}
