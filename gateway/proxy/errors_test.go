package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
	"dstack.host/gateway/web"
)

// get sends one request to the proxy for a name, whatever the server name of the connection.
func (b *harness) get(t testing.TB, http2 bool, host string, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, "https://"+host+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := b.client(t, http2).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// problem reads and checks a problem.
func problem(t testing.TB, r *http.Response) proxy.Problem {
	t.Helper()
	text := body(t, r)
	var p proxy.Problem
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		t.Fatalf("%d %q: %v", r.StatusCode, text, err)
	}
	if got := r.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q", got)
	}
	if got := r.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control %q", got)
	}
	if p.Status != r.StatusCode || len(p.RequestID) != 32 || p.RequestID != r.Header.Get("X-Request-Id") || p.Title == "" || p.Detail == "" ||
		p.Type != "https://dstack.host/problems/"+string(p.Reason) || p.Node != "node-1" || p.Hop != proxy.Hop(p.Reason) {
		t.Errorf("status %d, X-Request-Id %s: %+v", r.StatusCode, r.Header.Get("X-Request-Id"), p)
	}
	return p
}

// rawApp accepts connections and hands each one, with its first bytes read, to f.
func rawApp(t testing.TB, f func(net.Conn)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(20 * time.Second))
			if n, _ := c.Read(make([]byte, 64<<10)); n > 0 {
				f(c)
			}
			c.Close()
		}
	}()
	return portOf(t, l.Addr())
}

// closedPort is a port that refuses connections.
func closedPort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return portOf(t, l.Addr())
}

func TestEveryFailureSaysWhereAndWhy(t *testing.T) {
	closing := rawApp(t, func(net.Conn) {})
	garbage := rawApp(t, func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH\r\n\r\n") })
	silent := rawApp(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	refusing := closedPort(t)

	closed := instance(0xcc, 0x33)
	closed.Ports = &registry.PortPolicy{Restrict: true, Ports: []registry.Port{{Port: 8080}}}
	unreported := instance(0xdd, 0x44)
	unreported.Ports = nil
	draining := instance(0xd1, 0x55)
	draining.Drain = registry.Drain{At: time.Unix(1, 0), Reason: "policy"}
	locked, opened := instance(0xd2, 0x66), instance(0xd3, 0x77)
	locked.Override = &registry.PortPolicy{Restrict: true}
	opened.Ports, opened.Override = closed.Ports, &registry.PortPolicy{}
	b := run(t, func(c *proxy.Config) { c.IdleTimeout, c.DialTimeout = 500*time.Millisecond, 300*time.Millisecond },
		instance(0xaa, 0x11), instance(0xbb, 0x22), closed, unreported, draining, locked, opened)
	b.down.Store(instanceID(0x22), nil)
	dial := *b.dial.Load()
	b.dialWith(func(ctx context.Context, i *registry.Instance, port uint16) (net.Conn, error) {
		switch port {
		case 1: // a VM that does not answer
			<-ctx.Done()
			return nil, ctx.Err()
		case 2:
			return nil, fmt.Errorf("no such peer")
		}
		return dial(ctx, i, port)
	})

	for _, row := range []struct {
		name, host string
		status     int
		reason     proxy.Reason
		hop        string
	}{
		{"unregistered app", host(appID(0xee), 80, ""), 404, proxy.UnknownApp, "name"},
		{"unregistered compose hash", registry.ComposeHash{}.String() + "." + base, 404, proxy.UnknownApp, "name"},
		{"a name that no app can have", "www." + base, 404, proxy.UnknownApp, "name"},
		{"port 65536", appID(0xaa).String() + "-65536." + base, 404, proxy.UnknownApp, "name"},
		{"no handshake", host(appID(0xbb), 80, ""), 503, proxy.TunnelDown, "tunnel"},
		{"no handshake, by instance", host(instanceID(0x22), 80, ""), 503, proxy.TunnelDown, "tunnel"},
		{"no such peer", host(appID(0xaa), 2, ""), 503, proxy.TunnelDown, "tunnel"},
		{"port that the policy does not list", host(appID(0xcc), 8081, ""), 403, proxy.PortDenied, "app"},
		{"policy not reported", host(appID(0xdd), 80, ""), 403, proxy.PortDenied, "app"},
		{"instance that drains", host(appID(0xd1), 80, ""), 503, proxy.Draining, "gateway"},
		{"instance that drains, by its id", host(instanceID(0x55), 80, ""), 503, proxy.Draining, "gateway"},
		{"port that the operator closed", host(appID(0xd2), 80, ""), 403, proxy.PortDenied, "app"},
		{"port that the operator opened", host(appID(0xd3), refusing, ""), 502, proxy.AppRefused, "app"},
		{"connection refused", host(appID(0xaa), refusing, ""), 502, proxy.AppRefused, "app"},
		{"dial timeout", host(appID(0xaa), 1, ""), 504, proxy.AppTimeout, "app"},
		{"close without an answer", host(appID(0xaa), closing, ""), 502, proxy.AppClosed, "app"},
		{"answer that is not HTTP", host(appID(0xaa), garbage, ""), 502, proxy.AppMalformed, "app"},
		{"no answer", host(appID(0xaa), silent, ""), 504, proxy.AppTimeout, "app"},
	} {
		t.Run(row.name, func(t *testing.T) {
			protocols(t, func(t *testing.T, http2 bool) {
				p := problem(t, b.get(t, http2, row.host))
				if p.Status != row.status || p.Reason != row.reason || p.Hop != row.hop {
					t.Errorf("got %d %s at %s, want %d %s at %s", p.Status, p.Reason, p.Hop, row.status, row.reason, row.hop)
				}
			})
		})
	}
}

func TestUnreadRegistryIsNotTakenForAnEmptyOne(t *testing.T) {
	b := run(t, nil)
	b.snapshot.Store(new(registry.Snapshot))
	protocols(t, func(t *testing.T, http2 bool) {
		r := b.get(t, http2, host(appID(0xaa), 80, ""))
		if p := problem(t, r); p.Reason != proxy.Starting || p.Status != 503 || r.Header.Get("Retry-After") == "" {
			t.Errorf("%+v", p)
		}
	})
}

func TestPeopleGetAPage(t *testing.T) {
	b := run(t, nil)
	protocols(t, func(t *testing.T, http2 bool) {
		r := b.get(t, http2, host(appID(0xee), 80, ""), "Accept", "text/html,*/*;q=0.8")
		page := body(t, r)
		got := map[string]string{}
		for _, name := range []string{"Content-Type", "Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy", "Cache-Control", "Vary"} {
			got[name] = r.Header.Get(name)
		}
		want := map[string]string{
			"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": web.Policy(), "X-Content-Type-Options": "nosniff",
			"Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "Vary": "Accept",
		}
		if d := cmp.Diff(want, got); d != "" || r.StatusCode != 404 {
			t.Errorf("%d (-want +got)\n%s", r.StatusCode, d)
		}
		for _, want := range []string{"<b>name</b> <span>failed</span>", "unknown_app", "node-1", "Simulated TDX", r.Header.Get("X-Request-Id"), proxy.AttestationPath} {
			if want == "" || !strings.Contains(page, want) {
				t.Errorf("no %q in\n%s", want, page)
			}
		}
	})
}

func TestEveryReasonHasAHopThatThePageShows(t *testing.T) {
	for _, r := range proxy.Reasons() {
		if !slices.Contains(web.Hops(), proxy.Hop(r)) {
			t.Errorf("%s: hop %q", r, proxy.Hop(r))
		}
	}
}

func TestErrorsReflectNothing(t *testing.T) {
	const mark = "REFLECTED"
	b := run(t, nil)
	for _, accept := range []string{"text/html", "application/json"} {
		protocols(t, func(t *testing.T, http2 bool) {
			r, err := http.NewRequest(http.MethodGet, "https://"+mark+"."+base+"/"+mark+"?"+mark, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header = http.Header{"Accept": {accept + "," + mark}, "X-Request-Id": {mark}, "Referer": {mark}, "User-Agent": {mark}}
			resp, err := b.client(t, http2).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if text := body(t, resp); strings.Contains(strings.ToUpper(text), mark) || strings.Contains(strings.ToUpper(fmt.Sprint(resp.Header)), mark) {
				t.Errorf("%v\n%s", resp.Header, text)
			}
		})
	}
}

func TestHeadGetsNoBody(t *testing.T) {
	b := run(t, nil)
	protocols(t, func(t *testing.T, http2 bool) {
		r, err := b.client(t, http2).Head("https://" + host(appID(0xee), 80, "") + "/")
		if err != nil {
			t.Fatal(err)
		}
		if got := body(t, r); got != "" || r.StatusCode != 404 {
			t.Errorf("%d %q", r.StatusCode, got)
		}
	})
}
