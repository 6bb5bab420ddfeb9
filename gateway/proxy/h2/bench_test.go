package h2_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"dstack.host/gateway/proxy/h1"
	"dstack.host/gateway/proxy/h2"
)

var kilobyte = "HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n" +
	strings.Repeat("x", 1024)

// quickOrigin answers every head with the same bytes and parses nothing, so that what is measured is the engine.
func quickOrigin(t testing.TB, response string) *origin {
	answer := []byte(response)
	return rawOrigin(t, func(c *net.TCPConn, _ *bufio.Reader) {
		_ = c.SetDeadline(time.Time{})
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

func (m *mute) Route(context.Context, *h2.Request) h2.Destination {
	return h2.Destination{Backend: m.backend}
}
func (m *mute) Fail(*h2.Request, *h1.Error) *h1.Reply { return nil }
func (m *mute) Done(*h2.Request, h1.Outcome)          {}

// browserHead is a request head as a browser sends it.
var browserHead = []string{
	":method", "GET", ":scheme", "https", ":authority", "0123456789abcdef0123456789abcdef01234567.dstack.host", ":path", "/api/items?page=2",
	"user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "accept", "*/*", "accept-language", "en-US,en;q=0.5",
	"accept-encoding", "gzip, deflate, br, zstd", "referer", "https://0123456789abcdef0123456789abcdef01234567.dstack.host/",
	"cookie", "session=0123456789abcdef0123456789abcdef", "sec-fetch-dest", "empty", "sec-fetch-mode", "cors", "sec-fetch-site", "same-origin",
}

// bare is a client that costs as little as it can: it sends the same head again and again, and only counts what comes back.
type bare struct {
	nc    net.Conn
	block []byte // the head, all of it indexed
	id    uint32
	in    []byte
	have  int
	out   []byte
}

func newBare(t testing.TB, nc net.Conn, head ...string) *bare {
	t.Helper()
	b := &bare{nc: nc, id: 1, in: make([]byte, 64<<10)}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	encode := func() []byte {
		block.Reset()
		for i := 0; i < len(head); i += 2 {
			_ = enc.WriteField(hpack.HeaderField{Name: head[i], Value: head[i+1]})
		}
		return bytes.Clone(block.Bytes())
	}
	first := encode()
	b.block = encode()
	var hello bytes.Buffer
	hello.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&hello, nil)
	_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	_ = f.WriteSettingsAck()
	_ = f.WriteWindowUpdate(0, 1<<30)
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndStream: true, EndHeaders: true})
	if _, err := nc.Write(hello.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := b.receive(1); err != nil {
		t.Fatal(err)
	}
	return b
}

// exchange makes n requests at once.
func (b *bare) exchange(n int) error {
	b.out = b.out[:0]
	for range n {
		b.id += 2
		l := len(b.block)
		b.out = append(b.out, byte(l>>16), byte(l>>8), byte(l), 1, 5, byte(b.id>>24), byte(b.id>>16), byte(b.id>>8), byte(b.id))
		b.out = append(b.out, b.block...)
	}
	k := n << 10 // keeps the connection's window open
	b.out = append(b.out, 0, 0, 4, 8, 0, 0, 0, 0, 0, byte(k>>24), byte(k>>16), byte(k>>8), byte(k))
	if _, err := b.nc.Write(b.out); err != nil {
		return err
	}
	return b.receive(n)
}

// receive reads until n streams have ended.
func (b *bare) receive(n int) error {
	for {
		at := 0
		for b.have-at >= 9 {
			l := 9 + int(b.in[at])<<16 + int(b.in[at+1])<<8 + int(b.in[at+2])
			if b.have-at < l {
				break
			}
			switch kind, flags := b.in[at+3], b.in[at+4]; {
			case kind == 3, kind == 7:
				return fmt.Errorf("frame %d: % x", kind, b.in[at:at+l])
			case kind <= 1 && flags&1 != 0:
				n--
			}
			at += l
		}
		b.have = copy(b.in, b.in[at:b.have])
		if n == 0 {
			return nil
		}
		k, err := b.nc.Read(b.in[b.have:])
		if err != nil {
			return err
		}
		b.have += k
	}
}

func TestEngineAllocatesNothingPerRequest(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool drop what it is given")
	}
	chunked := "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n0\r\n\r\n"
	for _, tt := range []struct {
		name, response string
		streams        int
	}{{"sized, one stream", kilobyte, 1}, {"chunked, one stream", chunked, 1}, {"sized, ten streams", kilobyte, 10}} {
		t.Run(tt.name, func(t *testing.T) {
			f := serve(t, h2Config(), &mute{quickOrigin(t, tt.response)})
			nc, err := net.Dial("tcp", f.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			b := newBare(t, nc, browserHead...)
			exchange := func() {
				if err := b.exchange(tt.streams); err != nil {
					t.Fatal(err)
				}
			}
			for range 50 { // until every connection to the app is there
				exchange()
			}
			if allocs := testing.AllocsPerRun(300, exchange); allocs/float64(tt.streams) >= 1 {
				t.Errorf("%v allocations for %d requests, want 0", allocs, tt.streams)
			}
		})
	}
}

// borrowed lends its certificate.
var borrowed = sync.OnceValue(func() *tls.Config {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return &tls.Config{Certificates: s.TLS.Certificates, NextProtos: []string{"h2"}}
})

// reverseProxy is the same service made of net/http: its HTTP/2 server, httputil.ReverseProxy and its transport.
func reverseProxy(t testing.TB, o *origin) string {
	u := &url.URL{Scheme: "http", Host: o.addr}
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 128}
	t.Cleanup(tr.CloseIdleConnections)
	p := &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(u)
			h1.Rewrite(pr.Out.Header, clientAddr, "https", pr.In.Host, "0123456789abcdef0123456789abcdef")
		},
		Transport: tr, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
	}
	return netHTTP(t, p)
}

// netHTTP serves h with net/http's HTTP/2 over TLS.
func netHTTP(t testing.TB, h http.Handler) string {
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 128}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// BenchmarkHTTP2 compares the engine with net/http over TLS, in one run. What client and app cost is in all figures alike, and small.
func BenchmarkHTTP2(b *testing.B) {
	for _, streams := range []int{1, 10, 100} {
		for _, tt := range []struct {
			name  string
			serve func(testing.TB) string
		}{
			{"engine", func(t testing.TB) string {
				l, err := tls.Listen("tcp", "127.0.0.1:0", borrowed())
				if err != nil {
					t.Fatal(err)
				}
				return serveOn(t, h2Config(), &mute{quickOrigin(t, kilobyte)}, l).addr
			}},
			{"reverse-proxy", func(t testing.TB) string { return reverseProxy(t, quickOrigin(t, kilobyte)) }},
			{"net-http-without-app", func(t testing.TB) string {
				body := []byte(strings.Repeat("x", 1024))
				return netHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
			}},
		} {
			b.Run(fmt.Sprintf("%d/%s", streams, tt.name), func(b *testing.B) {
				nc, err := tls.Dial("tcp", tt.serve(b), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
				if err != nil {
					b.Fatal(err)
				}
				defer nc.Close()
				c := newBare(b, nc, browserHead...)
				before := cpu()
				b.ReportAllocs()
				for b.Loop() {
					if err := c.exchange(streams); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(cpu()-before)/float64(time.Microsecond)/float64(b.N*streams), "cpu-µs/request")
			})
		}
	}
}

// cpu is what this process has used of it.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
