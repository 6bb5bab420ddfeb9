package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
)

// rawH1 sends one request head over TLS and returns the response.
func (b *harness) rawH1(t testing.TB, serverName, head string) *http.Response {
	t.Helper()
	c := b.tls(t, serverName, "http/1.1")
	if _, err := io.WriteString(c, head); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// rawH2 sends one request with any pseudo-header fields, and more fields, over a connection for serverName.
func (b *harness) rawH2(t testing.TB, serverName, authority, target string, fields ...string) *http.Response {
	t.Helper()
	c := b.tls(t, serverName, "h2")
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	all := append([]string{":method", "GET", ":scheme", "https", ":authority", authority, ":path", target}, fields...)
	for i := 0; i < len(all); i += 2 {
		if err := enc.WriteField(hpack.HeaderField{Name: all[i], Value: all[i+1]}); err != nil {
			t.Fatal(err)
		}
	}
	io.WriteString(c, http2.ClientPreface)
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.WriteSettings()
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	r := &http.Response{Header: make(http.Header), Body: http.NoBody}
	var text bytes.Buffer
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("%q %q: %v", authority, target, err)
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			r.StatusCode, _ = strconv.Atoi(frame.PseudoValue("status"))
			for _, f := range frame.RegularFields() {
				r.Header.Add(f.Name, f.Value)
			}
		case *http2.DataFrame:
			text.Write(frame.Data())
		case *http2.RSTStreamFrame:
			r.Status = frame.ErrCode.String()
			return r
		}
		if frame.Header().StreamID == 1 && frame.Header().Flags.Has(http2.FlagDataEndStream) {
			r.Body = io.NopCloser(&text)
			return r
		}
	}
}

// counter is an app that counts its requests.
func counter(t testing.TB) (port int, requests *atomic.Int64) {
	requests = new(atomic.Int64)
	return app(t, func(http.ResponseWriter, *http.Request) { requests.Add(1) }), requests
}

func TestOnlyServedAuthoritiesAreServed(t *testing.T) {
	port, requests := counter(t)
	b := run(t, nil, instance(0xaa, 0x11))
	name := host(appID(0xaa), port, "")
	for _, row := range []struct {
		authority string
		reason    proxy.Reason // "": the app answers
	}{
		{name, ""},
		{name + ":443", ""},
		{name + ":8443", ""},
		{strings.ToUpper(name), ""},
		{"0x" + name, ""},
		{host(instanceID(0x11), port, ""), ""},
		{host(appID(0xaa), port, "s"), proxy.Misdirected},
		{"foreign.example", proxy.Misdirected},
		{name + ".", proxy.Misdirected},
		{"a." + name, proxy.Misdirected},
		{"127.0.0.1", proxy.Misdirected},
		{"[::1]", proxy.Misdirected},
		{strings.Repeat("a", 64) + "." + base, proxy.Misdirected},
		{strings.Repeat("1", 52) + "." + base, proxy.UnknownApp},
		{appID(0xaa).String() + "-65536." + base, proxy.UnknownApp},
		{name + ":65536", proxy.BadRequest},
		{name + ":-1", proxy.BadRequest},
		{"user@" + name, proxy.BadRequest},
	} {
		t.Run(row.authority, func(t *testing.T) {
			check := func(r *http.Response, before int64) {
				t.Helper()
				switch {
				case row.reason != "" && requests.Load() != before:
					t.Errorf("%s: the app saw it", row.authority)
				case row.reason == "" && (r.StatusCode != 200 || requests.Load() != before+1):
					t.Errorf("%s: %d %s", row.authority, r.StatusCode, body(t, r))
				case row.reason == proxy.BadRequest && r.Status == "PROTOCOL_ERROR": // net/http refuses it before we see it
				case row.reason != "":
					if p := problem(t, r); p.Reason != row.reason {
						t.Errorf("%s: %+v, want %s", row.authority, p, row.reason)
					}
				}
			}
			before := requests.Load()
			check(b.rawH1(t, name, "GET / HTTP/1.1\r\nHost: "+row.authority+"\r\n\r\n"), before)
			before = requests.Load()
			check(b.rawH2(t, name, row.authority, "/"), before)
		})
	}
}

func TestRequestsOnOneConnectionGoByTheirOwnAuthority(t *testing.T) {
	echo := app(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) })
	b := run(t, nil, instance(0xaa, 0x11), instance(0xbb, 0x22))
	var dialled []registry.AppID
	dial := *b.dial.Load()
	b.dialWith(func(ctx context.Context, i *registry.Instance, port uint16) (net.Conn, error) {
		dialled = append(dialled, i.App) // one request at a time
		return dial(ctx, i, port)
	})
	c := b.tls(t, host(appID(0xaa), echo, ""), "http/1.1")
	in := bufio.NewReader(c)
	for _, id := range []byte{0xaa, 0xbb, 0xbb, 0xaa} {
		name := host(appID(id), echo, "")
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+name+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := body(t, r); got != name {
			t.Errorf("%q answered for %q", got, name)
		}
		if last := dialled[len(dialled)-1]; last != appID(id) {
			t.Errorf("request for %x went to %s", id, last)
		}
	}
	if len(dialled) != 3 {
		t.Errorf("dialled %v", dialled)
	}
}

func TestReservedPathNeverReachesTheApp(t *testing.T) {
	port, requests := counter(t)
	b := run(t, nil, instance(0xaa, 0x11))
	name := host(appID(0xaa), port, "")
	for _, target := range []string{
		"/.well-known/attestation", "/.well-known/attestation?nonce=00", "/.well-known/attestation/", "/.WELL-KNOWN/Attestation", "/%2ewell-known/attestation",
		"/.well-known%2Fattestation", "//.well-known//attestation", "/x/../.well-known/attestation", "/x/%2e%2e/.well-known/attestation",
		"/./.well-known/./attestation", "/.well-known/attestation;x=y", "/%252ewell-known/attestation", "/.well-known/%61ttestation/.",
		`/.well-known\attestation`, "/.well-known%5Cattestation",
	} {
		r := b.rawH1(t, name, "GET "+target+" HTTP/1.1\r\nHost: "+name+"\r\n\r\n")
		if got := r.Header.Get("Own"); got != proxy.AttestationPath && r.StatusCode != 400 {
			t.Errorf("HTTP/1.1 %q: %d, own handler saw %q", target, r.StatusCode, got)
		}
		if got := b.rawH2(t, name, name, target).Header.Get("Own"); got != proxy.AttestationPath {
			t.Errorf("HTTP/2 %q: own handler saw %q", target, got)
		}
	}
	r := b.rawH1(t, name, "GET https://"+name+"/.well-known/attestation HTTP/1.1\r\nHost: "+name+"\r\n\r\n")
	if got := r.Header.Get("Own"); got != proxy.AttestationPath {
		t.Errorf("absolute form: %d, own handler saw %q", r.StatusCode, got)
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("the app saw %d requests", n)
	}

	// Nor on a connection that has just been to the app.
	c := b.tls(t, name, "http/1.1")
	in := bufio.NewReader(c)
	for _, row := range []struct{ target, own string }{{"/", ""}, {"/.well-known/Attestation", proxy.AttestationPath}, {"/", ""}} {
		if _, err := io.WriteString(c, "GET "+row.target+" HTTP/1.1\r\nHost: "+name+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		body(t, r)
		if got := r.Header.Get("Own"); got != row.own {
			t.Errorf("%q: own handler saw %q, want %q", row.target, got, row.own)
		}
	}
}

func TestGatewayAnswersForItsOwnNames(t *testing.T) {
	b := run(t, nil)
	protocols(t, func(t *testing.T, http2 bool) {
		for _, name := range []string{base, "gateway." + base, "GATEWAY." + base} {
			if got, want := body(t, b.get(t, http2, name)), "own "+name; !strings.EqualFold(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		}
		// Whether or not an app has the name.
		r, err := b.client(t, http2).Get("https://" + host(appID(0xee), 80, "") + proxy.AttestationPath)
		if err != nil {
			t.Fatal(err)
		}
		if got := body(t, r); got != "own "+host(appID(0xee), 80, "") {
			t.Errorf("%q", got)
		}
	})
}

func TestOwnHandlerSeesTheConnection(t *testing.T) {
	type seen struct {
		exporter, certificate bool
		proto, forwarded      string
		err                   error
	}
	requests := make(chan seen, 1)
	b := run(t, func(c *proxy.Config) {
		c.Own = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			s := seen{proto: r.Proto, forwarded: r.Header.Get("X-Forwarded-For"), certificate: proxy.ServedCertificate(r.Context()) != nil}
			if r.TLS != nil {
				var key []byte
				key, s.err = r.TLS.ExportKeyingMaterial("EXPORTER-test", nil, 32)
				s.exporter = len(key) == 32
			}
			requests <- s
		})
	})
	protocols(t, func(t *testing.T, http2 bool) {
		b.get(t, http2, "gateway."+base, "X-Forwarded-For", "6.6.6.6").Body.Close()
		s := <-requests
		if s.err != nil || !s.exporter || !s.certificate || s.forwarded != "127.0.0.1" {
			t.Errorf("%+v", s)
		}
	})
}

func TestOwnHandlerIsSafeToFail(t *testing.T) {
	b := run(t, func(c *proxy.Config) {
		c.Own = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") })
	})
	protocols(t, func(t *testing.T, http2 bool) {
		if p := problem(t, b.get(t, http2, "gateway."+base)); p.Reason != proxy.Internal {
			t.Errorf("%+v", p)
		}
	})
}

func TestOwnHandlerGetsNoLargeBody(t *testing.T) {
	b := run(t, nil)
	protocols(t, func(t *testing.T, http2 bool) {
		r, err := b.client(t, http2).Post("https://gateway."+base+"/", "text/plain", strings.NewReader(strings.Repeat("x", proxy.MaxOwnBody+1)))
		if err != nil {
			t.Fatal(err)
		}
		if p := problem(t, r); p.Status != 413 || p.Reason != proxy.TooLarge {
			t.Errorf("%+v", p)
		}
	})
}
