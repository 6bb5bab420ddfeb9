package h2_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestGetReachesTheApp(t *testing.T) {
	t.Parallel()
	o := handler(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, r.RequestURI)
	})
	f := serve(t, h2Config(), to(o))
	c := f.open(t)
	for id := uint32(1); id < 20; id += 2 {
		c.send(id, true, "GET", "/a?b")
		if a := c.result(id); a.status != 200 || a.body != "GET app.example /a?b" {
			t.Fatalf("got %+v", a)
		}
	}
	if n := o.dialed.Load(); n != 1 {
		t.Errorf("%d connections to the app, want 1", n)
	}
}

func TestBodiesArriveWholeBothWays(t *testing.T) {
	t.Parallel()
	o := handler(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	})
	f := serve(t, h2Config(), to(o))
	client := f.goClient(t)
	for _, size := range []int{0, 1, 1000, 16 << 10, 100_000, 3 << 20} {
		for _, known := range []bool{true, false} {
			body := strings.Repeat("0123456789abcdef", size/16+1)[:size]
			var r io.Reader = strings.NewReader(body)
			if !known {
				r = io.MultiReader(r)
			}
			resp, err := client.Post("http://"+f.addr+"/", "", r)
			if err != nil {
				t.Fatalf("%d: %v", size, err)
			}
			got, err := io.ReadAll(resp.Body)
			if err != nil || string(got) != body {
				t.Errorf("%d octets come back as %d: %v", size, len(got), err)
			}
			resp.Body.Close()
		}
	}
}
