package proxy_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"dstack.host/gateway/proxy"
	"dstack.host/gateway/proxy/h1"
	"dstack.host/gateway/registry"
)

// syncBuffer is a log that many goroutines write.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestAccessLogIsForDebugAndTellsNoPaths(t *testing.T) {
	port := app(t, func(http.ResponseWriter, *http.Request) {})
	for level, want := range map[slog.Level]int{slog.LevelDebug: 4, slog.LevelInfo: 0} {
		var log syncBuffer
		b := run(t, func(c *proxy.Config) {
			c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: level}))
		}, instance(0xaa, 0x11))
		for _, http2 := range []bool{false, true} {
			for _, id := range []byte{0xaa, 0xee} {
				r, err := b.client(t, http2).Get("https://" + host(appID(id), port, "") + "/SECRET?token=SECRET")
				if err != nil {
					t.Fatal(err)
				}
				body(t, r)
			}
		}
		b.stop()
		text := log.String()
		if got := strings.Count(text, "msg=request "); got != want || strings.Contains(text, "SECRET") {
			t.Errorf("%v: %d lines\n%s", level, got, text)
		}
		if want > 0 && (strings.Count(text, "status=200") != 2 || strings.Count(text, "reason=unknown_app") < 2) {
			t.Errorf("log\n%s", text)
		}
	}
}

func TestRoutingTheNextRequestAllocatesNothing(t *testing.T) {
	snapshot := registry.NewSnapshot(1, []registry.Instance{instance(0xaa, 0x11)}, nil)
	p, err := proxy.New(proxy.Config{
		Listen: "127.0.0.1:0", Bases: []string{base}, Certificate: certificateOf(certificate(t, base)),
		Registry: func() *registry.Snapshot { return snapshot }, Dial: noDial, TunnelUp: func(*registry.Instance) bool { return true }, Own: http.NotFoundHandler(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	route := p.Route()
	r := &h1.Request{Authority: []byte(host(appID(0xaa), 80, "")), Path: []byte("/a/long/path/to/something/useful")}
	first := route(r)
	if first == nil {
		t.Fatal("no backend")
	}
	if n := testing.AllocsPerRun(100, func() {
		if route(r) != first {
			t.Error("another backend")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRequest(b *testing.B) {
	port := app(b, func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1024)) })
	h := run(b, nil, instance(0xaa, 0x11))
	for _, http2 := range []bool{false, true} {
		b.Run(map[bool]string{false: "HTTP1", true: "HTTP2"}[http2], func(b *testing.B) {
			client, url := h.client(b, http2), "https://"+host(appID(0xaa), port, "")
			b.ReportAllocs()
			for b.Loop() {
				r, err := client.Get(url)
				if err != nil {
					b.Fatal(err)
				}
				body(b, r)
			}
		})
	}
}

// BenchmarkApp is the same without the proxy, for comparison.
func BenchmarkApp(b *testing.B) {
	port := app(b, func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1024)) })
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+loopback(port), nil)
	if err != nil {
		b.Fatal(err)
	}
	client := &http.Client{Transport: new(http.Transport)}
	defer client.CloseIdleConnections()
	b.ReportAllocs()
	for b.Loop() {
		r, err := client.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		body(b, r)
	}
}
