package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
)

// h2cApp starts an app that speaks HTTP/2 without TLS.
func h2cApp(t testing.TB, h http.HandlerFunc) int {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return portOf(t, s.Listener.Addr())
}

func TestTrustHeadersAreTheGateways(t *testing.T) {
	headers := make(chan http.Header, 1)
	record := func(_ http.ResponseWriter, r *http.Request) { headers <- r.Header }
	plain, h2c := app(t, record), h2cApp(t, record)
	b := run(t, nil, instance(0xaa, 0x11))
	hostile := []string{
		"X-Forwarded-For", "6.6.6.6", "X-Forwarded-Host", "evil", "X-Forwarded-Proto", "http", "X-Forwarded-Server", "evil", "Forwarded", "for=6.6.6.6",
		"X-Real-Ip", "6.6.6.6", "X-Request-Id", "evil", "X_Forwarded_For", "6.6.6.6", "True-Client-Ip", "6.6.6.6", "Proxy", "evil", "Proxy-Authorization", "evil",
		"X-Original-Url", "/evil", "Content_Length", "5", "X-Kept", "yes",
	}
	check := func(t *testing.T, r *http.Response, name string) {
		t.Helper()
		r.Body.Close()
		got := <-headers
		id := got.Get("X-Request-Id")
		for field, want := range map[string]string{
			"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": name,
			"Forwarded": `for=127.0.0.1;proto=https;host="` + name + `"`, "X-Request-Id": id, "X-Kept": "yes",
		} {
			if values := got[field]; len(values) != 1 || values[0] != want {
				t.Errorf("%s %q, want %q", field, values, want)
			}
		}
		if len(id) != 32 || strings.Contains(fmt.Sprint(got), "6.6.6.6") || strings.Contains(fmt.Sprint(got), "evil") || got["Content_length"] != nil {
			t.Errorf("the app got %v", got)
		}
	}
	protocols(t, func(t *testing.T, http2 bool) {
		name := host(appID(0xaa), plain, "")
		check(t, b.get(t, http2, name, hostile...), name)
	})
	t.Run("HTTP 2 to the app", func(t *testing.T) {
		name := host(appID(0xaa), h2c, "g")
		check(t, b.get(t, true, name, hostile...), name)
	})
}

func TestHTTP2OnlyNames(t *testing.T) {
	port := h2cApp(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) })
	b := run(t, nil, instance(0xaa, 0x11))
	if got := body(t, b.get(t, true, host(appID(0xaa), port, "g"))); got != "HTTP/2.0" {
		t.Errorf("app saw %q", got)
	}
	if p := problem(t, b.get(t, false, host(appID(0xaa), port, "g"))); p.Reason != proxy.HTTP2Only || p.Status != 505 {
		t.Errorf("%+v", p)
	}
	// An app that does not speak it after all.
	if p := problem(t, b.get(t, true, host(appID(0xaa), app(t, func(http.ResponseWriter, *http.Request) {}), "g"))); p.Hop != "app" || p.Status != 502 {
		t.Errorf("%+v", p)
	}
}

// TestStreamsFlowBothWays is what a bidirectional gRPC call looks like: each message is answered before the next is sent, and trailers end it.
func TestStreamsFlowBothWays(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex() //nolint:errcheck // HTTP/2 has it anyway
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.(http.Flusher).Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			w.(http.Flusher).Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("Grpc-Status", "0 "+r.Trailer.Get("Sum")+r.Trailer.Get("X-Forwarded-For")+r.Header.Get("Te"))
	}
	for name, row := range map[string]struct {
		port   int
		suffix string
	}{"HTTP 1.1 app": {app(t, echo), ""}, "HTTP 2 app": {h2cApp(t, echo), "g"}} {
		t.Run(name, func(t *testing.T) {
			b := run(t, nil, instance(0xaa, 0x11))
			in, out := io.Pipe()
			r, err := http.NewRequest(http.MethodPost, "https://"+host(appID(0xaa), row.port, row.suffix)+"/svc/Method", in)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Te", "trailers")
			r.Trailer = http.Header{"Sum": nil, "X-Forwarded-For": nil}
			resp, err := b.client(t, true).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			for i := range 5 {
				message := fmt.Sprintf("message %d", i)
				if _, err := io.WriteString(out, message); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(message))
				if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != message {
					t.Fatalf("%q, want %q: %v", got, message, err)
				}
			}
			r.Trailer.Set("Sum", "42")
			r.Trailer.Set("X-Forwarded-For", "6.6.6.6")
			out.Close()
			if rest := body(t, resp); rest != "" {
				t.Errorf("rest %q", rest)
			}
			if got := resp.Trailer.Get("Grpc-Status"); got != "0 42trailers" {
				t.Errorf("trailer %q", got)
			}
		})
	}
}

func TestLargeBodiesArriveWhole(t *testing.T) {
	const size = 5 << 20
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex() //nolint:errcheck // HTTP/1.1 has it
		io.Copy(w, r.Body)
	})
	b := run(t, nil, instance(0xaa, 0x11))
	protocols(t, func(t *testing.T, http2 bool) {
		r, err := b.client(t, http2).Post("https://"+host(appID(0xaa), port, ""), "", io.LimitReader(zeros{}, size))
		if err != nil {
			t.Fatal(err)
		}
		if got := len(body(t, r)); got != size {
			t.Errorf("%d bytes came back", got)
		}
	})
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestHintsBeforeTheResponsePass(t *testing.T) {
	port := app(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "done")
	})
	b := run(t, nil, instance(0xaa, 0x11))
	if got := body(t, b.get(t, true, host(appID(0xaa), port, ""))); got != "done" {
		t.Errorf("%q", got)
	}
}

func TestTruncatedResponseIsACutStream(t *testing.T) {
	port := rawApp(t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort") })
	b := run(t, nil, instance(0xaa, 0x11))
	protocols(t, func(t *testing.T, http2 bool) {
		r := b.get(t, http2, host(appID(0xaa), port, ""))
		defer r.Body.Close()
		if text, err := io.ReadAll(r.Body); err == nil {
			t.Errorf("complete with %q", text)
		}
	})
}

func TestRequestThatMovesNothingEnds(t *testing.T) {
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	b := run(t, func(c *proxy.Config) { c.IdleTimeout = 200 * time.Millisecond }, instance(0xaa, 0x11))
	protocols(t, func(t *testing.T, http2 bool) {
		r := b.get(t, http2, host(appID(0xaa), port, ""))
		defer r.Body.Close()
		if _, err := io.ReadAll(r.Body); err == nil {
			t.Error("complete")
		}
	})
}

func TestClientThatReadsNothingIsCut(t *testing.T) {
	gone := make(chan struct{})
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(gone)
		io.Copy(w, io.LimitReader(zeros{}, 1<<30))
	})
	b := run(t, func(c *proxy.Config) { c.IdleTimeout = 200 * time.Millisecond }, instance(0xaa, 0x11))
	r := b.get(t, true, host(appID(0xaa), port, ""))
	defer r.Body.Close()
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Error("the app still writes")
	}
}

func TestStrangeHTTP2RequestsAreRefused(t *testing.T) {
	port, requests := counter(t)
	b := run(t, nil, instance(0xaa, 0x11))
	name := host(appID(0xaa), port, "")
	for what, r := range map[string]*http.Response{
		":path with a foreign authority":  b.rawH2(t, name, name, "https://evil.example/"),
		":path with a reserved path":      b.rawH2(t, name, name, "http://evil.example/.well-known/attestation"),
		":path with an opaque part":       b.rawH2(t, name, name, "mailto:x"),
		":path of a star":                 b.rawH2(t, name, name, "*"),
		":path without a slash":           b.rawH2(t, name, name, "x"),
		":path with a control character":  b.rawH2(t, name, name, "/\x01"),
		":path with a bad escape":         b.rawH2(t, name, name, "/%zz"),
		"no :path":                        b.rawH2(t, name, name, ""),
		"Host that differs":               b.rawH2(t, name, name, "/", "host", "gateway."+base),
		"Host twice":                      b.rawH2(t, name, name, "/", "host", name, "host", "x.example"),
		"foreign Host without :authority": b.rawH2(t, name, "", "/", "host", "x.example"),
		"neither Host nor :authority":     b.rawH2(t, name, "", "/"),
		"Connection":                      b.rawH2(t, name, name, "/", "connection", "close"),
		"Transfer-Encoding":               b.rawH2(t, name, name, "/", "transfer-encoding", "chunked"),
		"upper case field name":           b.rawH2(t, name, name, "/", "X-A", "b"),
		"64 KiB of fields":                b.rawH2(t, name, name, "/", "x-a", strings.Repeat("a", 16000), "x-b", strings.Repeat("b", 16000), "x-c", strings.Repeat("c", 16000)),
	} {
		if r.StatusCode < 400 && r.Status == "" {
			t.Errorf("%s: %d", what, r.StatusCode)
		}
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("the app saw %d requests", n)
	}
}

// TestUpstreamsAreNotShared holds the rule that a disagreement about framing stays with the client who caused it.
func TestUpstreamsAreNotShared(t *testing.T) {
	remote := make(chan string, 100)
	port := app(t, func(_ http.ResponseWriter, r *http.Request) { remote <- r.RemoteAddr })
	b := run(t, nil, instance(0xaa, 0x11))
	seen := map[string]int{}
	for range 2 {
		client := b.client(t, true)
		for range 3 {
			r, err := client.Get("https://" + host(appID(0xaa), port, ""))
			if err != nil {
				t.Fatal(err)
			}
			body(t, r)
			seen[<-remote]++
		}
	}
	if len(seen) != 2 {
		t.Errorf("two clients used %v", seen)
	}
}

func TestUpstreamsEndWithTheClient(t *testing.T) {
	for name, row := range map[string]struct {
		http2  bool // to the app too
		suffix string
	}{"HTTP 1.1 app": {false, ""}, "HTTP 2 app": {true, "g"}} {
		t.Run(name, func(t *testing.T) {
			closed := make(chan struct{}, 1)
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			s.Config.Protocols = new(http.Protocols)
			s.Config.Protocols.SetHTTP1(!row.http2)
			s.Config.Protocols.SetUnencryptedHTTP2(row.http2)
			s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
				if state == http.StateClosed {
					closed <- struct{}{}
				}
			}
			s.Start()
			defer s.Close()
			b := run(t, nil, instance(0xaa, 0x11))
			client := b.client(t, true)
			r, err := client.Get("https://" + host(appID(0xaa), portOf(t, s.Listener.Addr()), row.suffix))
			if err != nil {
				t.Fatal(err)
			}
			body(t, r)
			client.CloseIdleConnections()
			select {
			case <-closed:
			case <-time.After(20 * time.Second):
				t.Error("the app's connection is still open")
			}
		})
	}
}

func TestChangedInstanceGetsANewConnection(t *testing.T) {
	port := app(t, func(http.ResponseWriter, *http.Request) {})
	b := run(t, nil, instance(0xaa, 0x11))
	var dials atomic.Int64
	dial := *b.dial.Load()
	b.dialWith(func(ctx context.Context, i *registry.Instance, port uint16) (net.Conn, error) {
		dials.Add(1)
		return dial(ctx, i, port)
	})
	protocols(t, func(t *testing.T, http2 bool) {
		dials.Store(0)
		client := b.client(t, http2)
		var got []int64
		for i := range 4 {
			if i == 2 {
				b.register(instance(0xaa, 0x11)) // anew
			}
			r, err := client.Get("https://" + host(appID(0xaa), port, ""))
			if err != nil {
				t.Fatal(err)
			}
			body(t, r)
			got = append(got, dials.Load())
		}
		if !slices.Equal(got, []int64{1, 1, 2, 2}) {
			t.Errorf("dials %v", got)
		}
		b.register()
		if p := problem(t, b.get(t, http2, host(appID(0xaa), port, ""))); p.Reason != proxy.UnknownApp {
			t.Errorf("after the end of the registration: %+v", p)
		}
		b.register(instance(0xaa, 0x11))
	})
}

func TestBothTLSVersions(t *testing.T) {
	port := app(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
	b := run(t, nil, instance(0xaa, 0x11))
	name := host(appID(0xaa), port, "")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, protocol := range []string{"h2", "http/1.1"} {
			c, err := tls.Dial("tcp", b.addr, &tls.Config{RootCAs: roots(), ServerName: name, NextProtos: []string{protocol}, MinVersion: version, MaxVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			if s := c.ConnectionState(); s.Version != version || s.NegotiatedProtocol != protocol {
				t.Errorf("got %x %q", s.Version, s.NegotiatedProtocol)
			}
			c.Close()
		}
	}
	if _, err := tls.Dial("tcp", b.addr, &tls.Config{RootCAs: roots(), ServerName: name, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is served")
	}
}
