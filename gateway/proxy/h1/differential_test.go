package h1_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"dstack.host/gateway/proxy/h1"
)

// message is what a reader of a request stream makes of one request.
type message struct {
	Method, Target, Host, Body string
	Header                     http.Header
}

// readAll reads the requests that stand in raw, as net/http does, up to the first that it cannot read to its end. Other than net/http it
// ignores one empty line before each, as RFC 9112 section 2.2 recommends.
func readAll(raw []byte) (all []message, rest bool) {
	r := bufio.NewReader(bytes.NewReader(raw))
	for {
		if line, _ := r.Peek(2); string(line) == "\r\n" {
			_, _ = r.Discard(2)
		}
		if _, err := r.Peek(1); err != nil {
			return all, false
		}
		req, err := http.ReadRequest(r)
		if err != nil {
			return all, true
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return all, true
		}
		target := req.RequestURI
		if _, after, ok := strings.Cut(target, "://"); ok {
			target = "/"
			if i := strings.IndexAny(after, "/?"); i >= 0 {
				target = "/" + strings.TrimPrefix(after[i:], "/")
			} else if req.Method == "OPTIONS" {
				target = "*"
			}
		}
		// The authority of an absolute target counts for net/http; the relay passes on the Host field that it agrees with.
		all = append(all, message{req.Method, target, strings.ToLower(req.Host), string(body), endToEnd(req)})
		if req.Close {
			return all, false
		}
	}
}

// endToEnd returns the fields that a relay must leave alone.
func endToEnd(req *http.Request) http.Header {
	h := http.Header{}
	for name, values := range req.Header {
		if strings.HasPrefix(name, "X-End") {
			h[name] = values
		}
	}
	return h
}

// generator makes request streams out of well-formed, odd and malformed pieces.
type generator struct{ *rand.Rand }

func (g generator) pick(of ...string) string { return of[g.IntN(len(of))] }

// rarely returns one of the given in one call of n, else the empty string.
func (g generator) rarely(n int, of ...string) string {
	if g.IntN(n) > 0 {
		return ""
	}
	return g.pick(of...)
}

func (g generator) eol() string {
	if g.IntN(400) == 0 {
		return g.pick("\n", "\r", "\r\r\n", "\n\r", "\r\n ", "\r\n\t", "\x00\r\n", "")
	}
	return "\r\n"
}

func (g generator) field(name, value string) string {
	if g.IntN(30) == 0 {
		name = g.pick(strings.ToUpper(name), strings.ToLower(name), strings.ReplaceAll(name, "-", "_"))
	}
	return g.rarely(300, " ", "\t", "\x0b", "\x00") + name + g.rarely(200, " ", "\t", "\r", "\x00", "\xa0") + ":" +
		g.pick(" ", " ", " ", "", "\t", "  ") + value + g.rarely(40, " ", "\t", " \t", "\x0b", "\x7f", ",", ";") + g.eol()
}

func (g generator) size(n int) string {
	return g.rarely(30, "0", "000", "0x", "+", " ", "\t") + fmt.Sprintf(g.pick("%x", "%X", "%x", "%d"), n) +
		g.rarely(20, ";a=b", ";", " ;a", ";a=\"b\"", " ", "\t", ";a\n", "\r", ",", "_") + g.eol()
}

func (g generator) word(n int) string {
	p := make([]byte, g.IntN(n))
	for i := range p {
		p[i] = "abcXYZ019\r\n GET/:"[g.IntN(17)]
	}
	return string(p)
}

// request makes one request.
func (g generator) request() string {
	var b strings.Builder
	method := g.pick("GET", "GET", "POST", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "x-odd", "get")
	host := g.pick("a", "a", "app.example", "A.Example:8443", "[::1]:80")
	b.WriteString(g.rarely(60, "\r\n", "\n", "\r\n\r\n", " "))
	b.WriteString(method + " " + g.rarely(150, " ", "\t"))
	b.WriteString(g.pick("/", "/", "/", "/a/b?c=d", "/%41?%zz", "//x", "/a//b/../c", "/"+g.rarely(20, "%", "%4", "\\", "\x80", "#f"),
		"http://"+host+"/y?z", "https://"+host, "http://"+host+"?q", g.pick("*", "/", "/", "/")))
	version := "HTTP/1.1"
	if g.IntN(8) == 0 {
		version = g.pick(version, "HTTP/1.0", "HTTP/1.0", "HTTP/1.2", "HTTP/0.9", "http/1.1", "HTTP/1.1 ")
	}
	b.WriteString(" " + g.rarely(150, " ") + version + g.eol())
	fields := []string{g.field("Host", host)}
	for range g.IntN(4) {
		fields = append(fields, g.field("X-End-"+g.pick("A", "B", "c"), g.pick("", "v", "a b", "\"q\"", "\xc3\xa4", "chunked", "5")))
	}
	if g.IntN(40) == 0 {
		fields = append(fields, g.field("Host", g.pick(host, "evil")))
	}
	if g.IntN(10) == 0 {
		fields = append(fields, g.field("Connection", g.pick("keep-alive", "x-other", "close, x", "content-length", "Upgrade", "transfer-encoding")))
	}
	if g.IntN(20) == 0 {
		fields = append(fields, g.field("X-Forwarded-For", "6.6.6.6"), g.field("Upgrade", g.pick("h2c", "websocket")))
	}
	body := g.frame(&fields)
	g.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
	b.WriteString(strings.Join(fields, "") + g.eol() + body)
	return b.String()
}

// frame adds framing fields and returns the body that they, mostly, describe.
func (g generator) frame(fields *[]string) string {
	payload := g.word(40)
	if g.IntN(15) == 0 {
		payload = strings.Repeat(payload, 1000)
	}
	length := fmt.Sprint(len(payload))
	var chunks strings.Builder
	for p := payload; len(p) > 0; {
		n := 1 + g.IntN(len(p))
		chunks.WriteString(g.size(n) + p[:n] + g.eol())
		p = p[n:]
	}
	chunks.WriteString(g.pick("0", "0", "00", "0;x") + g.eol() + g.rarely(5, g.field("X-Trailer", "t"), g.field("Content-Length", "3"), g.field("X-Trailer", "t")+g.field("Y", "z")) + g.eol())
	switch g.IntN(12) {
	case 0, 1, 2, 3:
		*fields = append(*fields, g.field("Content-Length", g.rarely(40, "+", "-", "0x", " 0", "00")+length+g.rarely(60, ", "+length, " 1", ".0")))
		return payload
	case 4, 5, 6:
		*fields = append(*fields, g.field("Transfer-Encoding", g.pick("chunked", "chunked", "chunked", "Chunked", g.pick("chunked", "gzip, chunked", "identity", "chunked, chunked", "xchunked", ",chunked"))))
		return chunks.String()
	case 7:
		if g.IntN(3) == 0 {
			*fields = append(*fields, g.field("Transfer-Encoding", "chunked"), g.field(g.pick("Content-Length", "Transfer-Encoding"), g.pick(length, "chunked", "identity")))
			return chunks.String()
		}
	}
	return ""
}

// For any stream of requests, what arrives at the app is a prefix of what net/http reads in the stream itself: the same requests with the
// same bodies, none more, none divided otherwise. The relay may refuse more than net/http does; then it stops there.
func TestRelayAndNetHTTPSeeTheSameBoundaries(t *testing.T) {
	const streams = 1500
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	transcripts := make(chan []byte, 100)
	o := newOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		var seen bytes.Buffer
		defer func() { transcripts <- seen.Bytes() }()
		tee := bufio.NewReader(io.TeeReader(r, &seen))
		for {
			req, err := http.ReadRequest(tee)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			answer := ok
			if req.Method == "HEAD" {
				answer = "HTTP/1.1 200 OK\r\n\r\n"
			}
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	})
	accepted, refusals := 0, 0
	for i := range streams {
		g := generator{rand.New(rand.NewPCG(seed, uint64(i)))}
		var stream []byte
		for range 1 + g.IntN(4) {
			stream = append(stream, g.request()...)
		}
		before := o.dialed.Load()
		relayed := relayStream(t, o, stream, g)
		var raw []byte
		switch o.dialed.Load() - before {
		case 0:
		case 1:
			raw = <-transcripts
		default:
			t.Fatalf("stream %d: more than one connection to the app\nstream %q", i, stream)
		}
		got, rest := readAll(raw)
		want, _ := readAll(stream)
		if rest && relayed.Reason == "" {
			t.Fatalf("stream %d: the app got something that is no request although nothing failed\nstream %q\napp    %q", i, stream, raw)
		}
		if len(got) > len(want) {
			t.Fatalf("stream %d: the app got %d requests, net/http reads %d\nstream %q\napp    %q", i, len(got), len(want), stream, raw)
		}
		if diff := cmp.Diff(want[:len(got)], got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("stream %d: net/http and the app differ (-net/http +app):\n%s\nstream %q", i, diff, stream)
		}
		accepted += len(got)
		refusals += btoi(relayed.Reason == h1.Malformed)
	}
	t.Logf("%d requests reached the app, %d streams were refused", accepted, refusals)
	if accepted < streams/2 || refusals < streams/10 {
		t.Error("the generator does not do its work")
	}
}

// relayStream has a relay serve one connection on which stream arrives, in pieces, and returns what became of its last request.
func relayStream(t *testing.T, o *origin, stream []byte, g generator) h1.Outcome {
	s := &session{backend: o}
	c := open(t, h1.Config{}, s)
	go func() {
		for p := stream; len(p) > 0; {
			n := 1 + g.IntN(len(p))
			if _, err := c.Write(p[:n]); err != nil {
				break
			}
			p = p[n:]
		}
		_ = c.CloseWrite()
	}()
	_, _ = io.Copy(io.Discard, c.r)
	c.Close()
	c.wait(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.outcomes) == 0 {
		return h1.Outcome{}
	}
	return s.outcomes[len(s.outcomes)-1]
}
