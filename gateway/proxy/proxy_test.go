package proxy_test

import (
	"fmt"
	"net/http"
	"testing"
)

func TestRequestReachesTheApp(t *testing.T) {
	port := app(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Proto, r.Method, r.RequestURI)
	})
	b := run(t, nil, instance(0xaa, 0x11))
	protocols(t, func(t *testing.T, http2 bool) {
		for _, id := range []interface{ String() string }{appID(0xaa), instanceID(0x11), instance(0xaa, 0x11).Compose} {
			r, err := b.client(t, http2).Get("https://" + host(id, port, "") + "/a%2Fb?c=d;e")
			if err != nil {
				t.Fatal(err)
			}
			if got, want := body(t, r), "HTTP/1.1 GET /a%2Fb?c=d;e"; r.StatusCode != 200 || got != want {
				t.Errorf("%s: %d %q, want %q", id, r.StatusCode, got, want)
			}
		}
	})
}
