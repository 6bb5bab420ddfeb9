package h2_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"dstack.host/gateway/proxy/h1"
	"dstack.host/gateway/proxy/h2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

var clientAddr = netip.MustParseAddrPort("192.0.2.7:1234")

// origin is an app.
type origin struct {
	addr   string
	dialed atomic.Int32
}

// Dial implements h1.Backend.
func (o *origin) Dial(ctx context.Context) (net.Conn, error) {
	o.dialed.Add(1)
	var d net.Dialer
	return d.DialContext(ctx, "tcp", o.addr)
}

// handler is an app that net/http serves.
func handler(t testing.TB, h http.HandlerFunc) *origin {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return &origin{addr: s.Listener.Addr().String()}
}

// rawOrigin is an app that treats every connection with serve and closes it then.
func rawOrigin(t testing.TB, serve func(c *net.TCPConn, r *bufio.Reader)) *origin {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(2 * patience))
				serve(c.(*net.TCPConn), bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return &origin{addr: l.Addr().String()}
}

// answering is an app that reads requests with net/http and answers each with the next of the given raw responses; the last repeats.
func answering(t testing.TB, responses ...string) *origin {
	var n atomic.Int32
	return rawOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			if _, err := io.WriteString(c, responses[min(int(n.Add(1)), len(responses))-1]); err != nil {
				return
			}
		}
	})
}

// session routes everything to one place and keeps what it is told.
type session struct {
	to     h2.Destination
	onFail func(*h2.Request, *h1.Error) *h1.Reply

	mu       sync.Mutex
	outcomes []h1.Outcome
	failures []h1.Error
}

func (s *session) Route(context.Context, *h2.Request) h2.Destination { return s.to }

func (s *session) Fail(r *h2.Request, e *h1.Error) *h1.Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = append(s.failures, *e)
	if s.onFail != nil {
		return s.onFail(r, e)
	}
	return nil
}

func (s *session) Done(_ *h2.Request, o h1.Outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcomes = append(s.outcomes, o)
}

func (s *session) last(t testing.TB) h1.Outcome {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		s.mu.Lock()
		n := len(s.outcomes)
		if n > 0 {
			defer s.mu.Unlock()
			return s.outcomes[n-1]
		}
		s.mu.Unlock()
	}
	t.Fatal("no request is done")
	return h1.Outcome{}
}

// front is an engine with a listener.
type front struct {
	addr string
	ends chan error // of connections
}

func serve(t testing.TB, cfg h2.Config, s h2.Session) *front {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, cfg, s, l)
}

func serveOn(t testing.TB, cfg h2.Config, s h2.Session, l net.Listener) *front {
	t.Helper()
	e, err := h2.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{addr: l.Addr().String(), ends: make(chan error, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { f.ends <- e.Serve(ctx, c, h2.Client{Addr: clientAddr, Session: s}) })
		}
	})
	t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	return f
}

// ended returns how a connection ended.
func (f *front) ended(t testing.TB) error {
	t.Helper()
	select {
	case err := <-f.ends:
		return err
	case <-time.After(patience):
		t.Fatal("the connection does not end")
		return nil
	}
}

// goClient is net/http's client.
func (f *front) goClient(t testing.TB) *http.Client {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &p, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * patience}
}

func to(b h1.Backend) *session { return &session{to: h2.Destination{Backend: b}} }

func reading(h http.Handler) *session { return &session{to: h2.Destination{Stream: h}} }

// client speaks frames.
type client struct {
	*http2.Framer
	net.Conn
	t     testing.TB
	block bytes.Buffer
	enc   *hpack.Encoder
}

// open connects and exchanges settings.
func (f *front) open(t testing.TB, settings ...http2.Setting) *client {
	t.Helper()
	c := f.dial(t)
	if err := c.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	for acked := false; !acked; {
		switch fr := c.read().(type) {
		case *http2.SettingsFrame:
			if acked = fr.IsAck(); !acked {
				if err := c.WriteSettingsAck(); err != nil {
					t.Fatal(err)
				}
			}
		case *http2.WindowUpdateFrame:
		default:
			t.Fatalf("got %v", fr)
		}
	}
	return c
}

// dial connects and sends the preface alone.
func (f *front) dial(t testing.TB) *client {
	t.Helper()
	nc, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(nc, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	c := &client{Framer: http2.NewFramer(nc, bufio.NewReader(nc)), Conn: nc, t: t}
	c.AllowIllegalWrites = true
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.enc = hpack.NewEncoder(&c.block)
	return c
}

func (c *client) read() http2.Frame {
	c.t.Helper()
	f, err := c.ReadFrame()
	if err != nil {
		c.t.Fatalf("read: %v", err)
	}
	return f
}

// fields encodes a header block of names and values.
func (c *client) fields(all ...string) []byte {
	c.block.Reset()
	for i := 0; i < len(all); i += 2 {
		_ = c.enc.WriteField(hpack.HeaderField{Name: all[i], Value: all[i+1]})
	}
	return bytes.Clone(c.block.Bytes())
}

// send opens a stream with a request for a path; more fields follow.
func (c *client) send(id uint32, end bool, method, path string, more ...string) {
	c.headers(id, end, append([]string{":method", method, ":scheme", "https", ":authority", "app.example", ":path", path}, more...)...)
}

func (c *client) headers(id uint32, end bool, fields ...string) {
	_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.fields(fields...), EndStream: end, EndHeaders: true})
}

// answer is what came on one stream.
type answer struct {
	status  int
	header  http.Header
	body    string
	trailer http.Header
	reset   *http2.ErrCode
	interim []int
}

// result reads until the stream has ended; everything else is left unread or ignored. Windows are kept open.
func (c *client) result(id uint32) answer {
	c.t.Helper()
	a := answer{header: http.Header{}, trailer: http.Header{}}
	var text bytes.Buffer
	for {
		f := c.read()
		if f.Header().StreamID != id {
			if g, ok := f.(*http2.GoAwayFrame); ok && g.ErrCode != http2.ErrCodeNo {
				c.t.Fatalf("GOAWAY %v %q", g.ErrCode, g.DebugData())
			}
			continue
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			c.takeHeaders(f, &a)
		case *http2.DataFrame:
			text.Write(f.Data())
			if n := uint32(len(f.Data())); n > 0 && !f.StreamEnded() {
				_ = c.WriteWindowUpdate(0, n)
				_ = c.WriteWindowUpdate(id, n)
			}
		case *http2.RSTStreamFrame:
			a.reset = &f.ErrCode
			a.body = text.String()
			return a
		}
		if f.Header().Flags.Has(http2.FlagDataEndStream) && (f.Header().Type == http2.FrameData || f.Header().Type == http2.FrameHeaders) {
			a.body = text.String()
			return a
		}
	}
}

func (c *client) takeHeaders(f *http2.MetaHeadersFrame, a *answer) {
	status, _ := strconv.Atoi(f.PseudoValue("status"))
	into := a.header
	switch {
	case a.status >= 200:
		into = a.trailer
	case status < 200:
		a.interim = append(a.interim, status)
	default:
		a.status = status
	}
	for _, h := range f.RegularFields() {
		into.Add(h.Name, h.Value)
	}
}

// goAway reads until the server says goodbye with an error or closes.
func (c *client) goAway() (http2.ErrCode, error) {
	for {
		f, err := c.ReadFrame()
		if err != nil {
			return 0, err
		}
		if g, ok := f.(*http2.GoAwayFrame); ok && g.ErrCode != http2.ErrCodeNo {
			return g.ErrCode, nil
		}
	}
}

// headOrigin is an app that tells the heads it gets, and answers with 204.
func headOrigin(t testing.TB, heads chan<- string) *origin {
	return rawOrigin(t, func(c *net.TCPConn, r *bufio.Reader) {
		for {
			var head bytes.Buffer
			for !bytes.HasSuffix(head.Bytes(), []byte("\r\n\r\n")) {
				b, err := r.ReadByte()
				if err != nil {
					return
				}
				head.WriteByte(b)
			}
			heads <- head.String()
			if _, err := io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n"); err != nil {
				return
			}
		}
	})
}

func h2Config() h2.Config { return h2.Config{} }
