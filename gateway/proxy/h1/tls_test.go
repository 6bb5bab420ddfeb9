package h1_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"dstack.host/gateway/proxy/h1"
)

// tlsFront serves every TLS connection to the returned address with a relay, and returns a client that trusts it.
func tlsFront(t *testing.T, session func() h1.Session) (string, *http.Client) {
	t.Helper()
	borrowed := httptest.NewTLSServer(nil) // for its certificate and a client that trusts it
	t.Cleanup(borrowed.Close)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: borrowed.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	relay, err := h1.New(h1.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _ = relay.Serve(ctx, c, h1.Client{Addr: clientAddr, Session: session()}) })
		}
	})
	client := borrowed.Client()
	t.Cleanup(func() { client.CloseIdleConnections(); cancel(); l.Close(); wg.Wait() })
	return l.Addr().String(), client
}

func TestRelayUnderTLSServesConcurrentClients(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Forwarded-Proto") != "https" {
			t.Errorf("fields %v", r.Header)
		}
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
	}))
	defer app.Close()
	o := &origin{addr: app.Listener.Addr().String()}
	addr, client := tlsFront(t, func() h1.Session { return &session{backend: o} })
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				body := strings.Repeat(fmt.Sprintf("%d,%d ", i, j), 1<<uint(j%16))
				resp, err := client.Post("https://"+addr+"/", "text/plain", strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || string(got) != body {
					t.Errorf("%d octets come back as %d, %v", len(body), len(got), err)
				}
			}
		})
	}
	wg.Wait()
}

// A response that breaks off ends with a reset and without TLS's closing alert, which tells even a client that reads to the end of the
// connection.
func TestRelayUnderTLSShowsTruncation(t *testing.T) {
	o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		_, _ = http.ReadRequest(r)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
	})
	addr, client := tlsFront(t, func() h1.Session { return &session{backend: o} })
	c, err := tls.Dial("tcp", addr, client.Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, get10)
	if got, err := io.ReadAll(c); err == nil {
		t.Errorf("got %q %v, want an error at the end", got, err)
	}
}

func TestHandlersSeeTheTLSConnection(t *testing.T) {
	addr, client := tlsFront(t, func() h1.Session {
		return local(&h1.Reply{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			key, err := r.TLS.ExportKeyingMaterial("EXPORTER-test", nil, 32)
			fmt.Fprint(w, len(key), err)
		})})
	})
	resp, err := client.Get("https://" + addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, _ := io.ReadAll(resp.Body); string(got) != "32 <nil>" {
		t.Errorf("got %q", got)
	}
}
