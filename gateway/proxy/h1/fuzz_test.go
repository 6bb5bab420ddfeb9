package h1_test

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"

	"dstack.host/gateway/proxy/h1"
)

// FuzzHead holds that a head which is accepted is rewritten into one that net/http reads in the same way, that the rewriting is a fixed
// point, and that where net/http can read the original it sees the same framing and authority in it.
func FuzzHead(f *testing.F) {
	for _, tt := range refused {
		if len(tt.request) < 1<<10 {
			f.Add([]byte(tt.request))
		}
	}
	f.Add([]byte(browserRequest))
	f.Add([]byte(websocket))
	f.Add([]byte("POST http://a:1?b HTTP/1.0\r\nHost: A:1\r\nX_Y: \xff\r\nContent-Length: 012\r\nConnection: x, close\r\nTE: trailers\r\n\r\n"))
	f.Add([]byte("\r\nPUT /%41 HTTP/1.1\r\nhost:[::1]\r\ntransfer-encoding:chunked\r\nexpect:100-continue\r\nTrailer: x\r\n\r\n0\r\n\r\n"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: Content-Length\r\nTrailer: X, y\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		original := bytes.Clone(raw) // an absolute target is reduced in place
		r, n, err := h1.ReadHead(raw)
		if err != nil || n == 0 {
			return
		}
		out := h1.RewriteHead(r, clientAddr)
		got := read(t, out)
		if got.Method != string(r.Method) || got.RequestURI != string(r.Target) || got.Host != string(r.Authority) || got.ContentLength != r.ContentLength {
			t.Fatalf("read %q\nrewritten %q", original, out)
		}
		for name, values := range got.Header {
			if strings.ContainsAny(name, "_") && strings.Contains(strings.ToLower(name), "forwarded") || strings.HasPrefix(name, "X-Forwarded") && len(values) != 1 {
				t.Fatalf("%s survives: %q", name, out)
			}
		}
		again, m, err := h1.ReadHead(bytes.Clone(out))
		if err != nil || m != len(out) || again.ContentLength != r.ContentLength {
			t.Fatalf("the relay refuses what it wrote: %v\n%q", err, out)
		}
		if want, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(bytes.TrimPrefix(original, []byte("\r\n"))))); err == nil {
			if want.ContentLength != r.ContentLength || !strings.EqualFold(want.Host, string(r.Authority)) || want.Method != string(r.Method) {
				t.Fatalf("net/http reads another request\noriginal  %q\nrewritten %q", original, out)
			}
		} else if !strings.Contains(err.Error(), "bad trailer key") { // such a Trailer field is dropped
			t.Fatalf("net/http refuses it: %v\n%q", err, original)
		}
	})
}

// read has net/http read a head, with nothing left behind it.
func read(t *testing.T, head []byte) *http.Request {
	t.Helper()
	r := bufio.NewReader(bytes.NewReader(head))
	req, err := http.ReadRequest(r)
	if err != nil {
		t.Fatalf("net/http refuses what the relay wrote: %v\n%q", err, head)
	}
	if r.Buffered() > 0 {
		t.Fatalf("net/http leaves %d octets of %q", r.Buffered(), head)
	}
	return req
}

// FuzzChunked holds that a body which is accepted carries the payload that net/http reads in it and ends in the same place, however it
// arrives, and that what is passed on is in a form that says the same.
func FuzzChunked(f *testing.F) {
	for _, body := range []string{
		"0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n", "1;a=b\r\nx\r\n00a\r\n0123456789\r\n000;z\r\nX: y\r\nContent-Length: 5\r\n\r\n",
		"5 \r\nhello\r\n0\r\n\r\n", "5\nhello\n0\n\n", "fffffffffffffff\r\nx", "0\r\nX: y\r\n z\r\n\r\n", "2\r\nab0\r\n\r\n", "-1\r\n", "0x1\r\na\r\n0\r\n\r\n", ";\r\n\r\n",
		"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n", "A;\"\r\n\r\n0\r\n\r\n",
	} {
		f.Add([]byte(body), uint8(0))
		f.Add([]byte(body), uint8(3))
	}
	f.Fuzz(func(t *testing.T, raw []byte, size uint8) {
		if len(raw) > 64<<10 {
			return
		}
		whole, n, done, err := h1.Body(bytes.Clone(raw), len(raw))
		split, n2, done2, err2 := h1.Body(bytes.Clone(raw), int(size))
		if done != done2 || (err == nil) != (err2 == nil) || err == nil && n != n2 {
			t.Fatalf("%q: whole %d %v %v, split %d %v %v", raw, n, done, err, n2, done2, err2)
		}
		if !done {
			return
		}
		want, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(raw[:n])))
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", raw[:n], err)
		}
		for _, framed := range [][]byte{whole, split} {
			req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), bytes.NewReader(framed))))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(req.Body); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%q becomes %q: payload %q %v, want %q", raw[:n], framed, got, err, want)
			}
		}
	})
}
