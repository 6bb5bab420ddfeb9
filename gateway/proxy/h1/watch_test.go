package h1_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"dstack.host/gateway/proxy/h1"
)

func TestRelayNoticesThatTheClientLeavesWhileTheAppThinks(t *testing.T) {
	for _, begun := range []string{"", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			p := &pipes{serve: func(c net.Conn) {
				r := bufio.NewReader(c)
				_, _ = http.ReadRequest(r)
				if begun != "" {
					_, _ = io.WriteString(c, begun)
				}
				_, _ = io.Copy(io.Discard, r)
			}}
			s := &session{backend: p}
			near, served := servePipe(t, h1.Config{}, s)
			_, _ = io.WriteString(near, get)
			_, _ = io.ReadFull(near, make([]byte, len(begun)))
			time.Sleep(3 * time.Second) // simulated
			near.Close()
			if err := <-served; err == nil {
				t.Error("Serve does not say that the client is gone")
			}
			p.wg.Wait()
			if waited := time.Since(start); waited > 4*time.Second {
				t.Errorf("noticed only after %v", waited)
			}
			if got := s.last(t); got.Reason != h1.ClientGone || p.n != 1 {
				t.Errorf("outcome %+v, %d connections", got, p.n)
			}
		})
	}
}

func TestRelayKeepsWhatTheClientSendsWhileTheAppThinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{serve: func(c net.Conn) {
			r := bufio.NewReader(c)
			for {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				time.Sleep(5 * time.Second) // simulated
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
				time.Sleep(5 * time.Second)
				_, _ = io.WriteString(c, req.URL.Path)
			}
		}}
		near, served := servePipe(t, h1.Config{ResponseTimeout: 7 * time.Second}, &session{backend: p})
		r := bufio.NewReader(near)
		_, _ = io.WriteString(near, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
		for _, next := range []string{"2", "3", "4"} {
			time.Sleep(2 * time.Second)
			_, _ = io.WriteString(near, "GET /"+next+" HTTP/1.1\r\nHost: a\r\n\r\n")
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "/"+string(next[0]-1) {
				t.Errorf("got %q %v before %s", body, err, next)
			}
		}
		near.Close()
		<-served
		p.wg.Wait()
		if p.n != 1 {
			t.Errorf("%d connections to the app, want 1", p.n)
		}
	})
}
