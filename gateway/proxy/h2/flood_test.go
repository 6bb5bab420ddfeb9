package h2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"dstack.host/gateway/proxy/h2"
)

// silent is an app that never answers.
func silent(t testing.TB) *origin {
	stop := make(chan struct{})
	o := handler(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-stop:
		}
	})
	t.Cleanup(func() { close(stop) })
	return o
}

// Each row does something a thousand times that costs the sender little; what costs the gateway is bounded, and the client is told to calm down.
func TestFloodsEndTheConnection(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		before func(c *client)
		each   func(c *client, i int) error
		want   http2.ErrCode
	}{
		{name: "rapid reset", each: func(c *client, i int) error {
			c.send(uint32(2*i+1), true, "GET", "/")
			return c.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
		}},
		{name: "streams beyond the limit", each: func(c *client, i int) error {
			c.send(uint32(2*i+1), true, "GET", "/")
			return nil
		}},
		{name: "malformed requests", each: func(c *client, i int) error {
			c.headers(uint32(2*i+1), true, ":method", "GET", "connection", "close")
			return nil
		}},
		{name: "streams that break their windows' rules", each: func(c *client, i int) error {
			c.send(uint32(2*i+1), false, "POST", "/")
			return c.WriteWindowUpdate(uint32(2*i+1), 0)
		}},
		{name: "SETTINGS", each: func(c *client, i int) error {
			return c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)})
		}},
		{name: "PING", each: func(c *client, i int) error { return c.WritePing(false, [8]byte{byte(i)}) }},
		{name: "PRIORITY", each: func(c *client, i int) error {
			return c.WritePriority(uint32(2*i+1), http2.PriorityParam{Weight: 1})
		}},
		{name: "unknown frames", each: func(c *client, _ int) error { return c.WriteRawFrame(0xbe, 0, 0, nil) }},
		{name: "empty DATA", before: func(c *client) { c.send(1, false, "POST", "/") }, each: func(c *client, _ int) error { return c.WriteData(1, false, nil) }},
		{name: "empty DATA with padding", before: func(c *client) { c.send(1, false, "POST", "/") }, each: func(c *client, _ int) error { return c.WriteDataPadded(1, false, nil, make([]byte, 10)) }},
		{name: "DATA of closed streams", before: func(c *client) {
			for i := range 400 {
				c.send(uint32(2*i+1), true, "CONNECT", "/")
			}
		}, each: func(c *client, i int) error { return c.WriteData(uint32(2*(i%400)+1), false, []byte("x")) }},
		{name: "CONTINUATION without content", before: func(c *client) {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(":method", "GET"), EndStream: true})
		}, each: func(c *client, _ int) error { return c.WriteContinuation(1, false, nil) }},
		{name: "CONTINUATION with content", before: func(c *client) {
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(":method", "GET"), EndStream: true})
		}, each: func(c *client, i int) error {
			return c.WriteContinuation(1, false, append(c.fields("x-a", strings.Repeat("a", 400)), bytes.Repeat([]byte{0x82}, 300)...))
		}},
		{name: "WINDOW_UPDATE", each: func(c *client, _ int) error {
			var many bytes.Buffer
			f := http2.NewFramer(&many, nil)
			for range 10 {
				_ = f.WriteWindowUpdate(0, 1)
			}
			_, err := c.Conn.Write(many.Bytes())
			return err
		}},
		{name: "connection's window overflown", want: http2.ErrCodeFlowControl, each: func(c *client, _ int) error {
			return c.WriteWindowUpdate(0, 1<<31-1)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := handler(t, func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
			})
			f := serve(t, h2Config(), to(o))
			c := f.open(t)
			if tt.before != nil {
				tt.before(c)
			}
			go func() {
				for i := range 1000 {
					if tt.each(c, i) != nil {
						return
					}
				}
			}()
			want := tt.want
			if want == 0 {
				want = http2.ErrCodeEnhanceYourCalm
			}
			if code, err := c.goAway(); err != nil || code != want {
				t.Errorf("got %v %v, want %v", code, err, want)
			}
			f.ended(t)
		})
	}
}

// A window that opens by one octet as soon as that has come costs a frame, a record and a system call for each.
func TestWindowThatDribblesEndsTheConnection(t *testing.T) {
	t.Parallel()
	o := handler(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, io.LimitReader(zeros{}, 1<<20)) })
	f := serve(t, h2Config(), to(o))
	c := f.open(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	c.send(1, true, "GET", "/")
	for n := 0; n < 1000; {
		_ = c.WriteWindowUpdate(1, 1)
		for came := false; !came; {
			switch fr := c.read().(type) {
			case *http2.DataFrame:
				n, came = n+1, true
			case *http2.GoAwayFrame:
				if fr.ErrCode != http2.ErrCodeEnhanceYourCalm {
					t.Errorf("got %v", fr.ErrCode)
				}
				return
			}
		}
	}
	t.Error("a thousand dribbles are served")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A block that decodes to far more than it weighs is decoded, for the table's sake, and answered with 431 without being kept.
func TestHpackBombIsRefused(t *testing.T) {
	t.Parallel()
	o := handler(t, func(http.ResponseWriter, *http.Request) { t.Error("the app gets a request") })
	f := serve(t, h2Config(), to(o))
	c := f.open(t)
	block := c.fields(":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/", "x-bomb", strings.Repeat("b", 3900))
	block = append(block, bytes.Repeat([]byte{0x80 | 62}, 12000)...) // the newest entry of the dynamic table, again and again: 47 MB
	_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndStream: true, EndHeaders: true})
	if a := c.result(1); a.status != 431 {
		t.Errorf("got %+v", a)
	}
	c.send(3, true, "CONNECT", "/") // the decoder is still in step
	if a := c.result(3); a.reset == nil || *a.reset != http2.ErrCodeProtocol {
		t.Errorf("got %+v", a)
	}
}

func TestTableLargerThanAllowedIsRefused(t *testing.T) {
	t.Parallel()
	f := serve(t, h2Config(), to(silent(t)))
	c := f.open(t)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	enc.SetMaxDynamicTableSizeLimit(1 << 20)
	enc.SetMaxDynamicTableSize(1 << 20)
	_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "GET"})
	_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	if code, err := c.goAway(); err != nil || code != http2.ErrCodeCompression {
		t.Errorf("got %v %v", code, err)
	}
}

// A client that sends more than its windows allow is cut; one that stays within them never makes the gateway hold more than they allow.
func TestWindowsBindTheClient(t *testing.T) {
	t.Parallel()
	cfg := h2.Config{StreamWindow: 64 << 10, ConnWindow: 128 << 10}
	for _, tt := range []struct {
		name    string
		streams int
		goAway  bool
	}{{"of a stream", 1, false}, {"of the connection", 3, true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			hold := make(chan struct{})
			f := serve(t, cfg, reading(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hold })))
			defer close(hold)
			c := f.open(t)
			piece := make([]byte, 16<<10)
			for i := range tt.streams {
				id := uint32(2*i + 1)
				c.send(id, false, "POST", "/")
				for range 4 {
					_ = c.WriteData(id, false, piece)
				}
			}
			if tt.goAway {
				if code, err := c.goAway(); err != nil || code != http2.ErrCodeFlowControl {
					t.Errorf("got %v %v", code, err)
				}
				return
			}
			_ = c.WriteData(1, false, piece)
			if a := c.result(1); a.reset == nil || *a.reset != http2.ErrCodeFlowControl {
				t.Errorf("got %+v", a)
			}
		})
	}
}

// What the client does not read is held neither here nor by the app's goroutine for ever.
func TestClientThatReadsNothingIsGivenUp(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		window uint32
	}{{"no window", 0}, {"no reading", 1<<31 - 1}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			gone := make(chan struct{})
			o := handler(t, func(w http.ResponseWriter, _ *http.Request) {
				defer close(gone)
				_, _ = io.Copy(w, io.LimitReader(zeros{}, 1<<30))
			})
			f := serve(t, h2.Config{StreamTimeout: 200 * time.Millisecond, WriteTimeout: 200 * time.Millisecond}, to(o))
			c := f.dial(t)
			_ = c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: tt.window})
			_ = c.WriteSettingsAck()
			if tt.window > 0 {
				_ = c.WriteWindowUpdate(0, 1<<30)
			}
			c.send(1, true, "GET", "/")
			select {
			case <-gone:
			case <-time.After(patience):
				t.Error("the app still writes")
			}
		})
	}
}

func TestStreamNumbersGoUp(t *testing.T) {
	t.Parallel()
	for _, ids := range [][]uint32{{2}, {5, 3}, {1 << 31}} {
		f := serve(t, h2Config(), to(silent(t)))
		c := f.open(t)
		for _, id := range ids {
			var head [9]byte
			block := c.fields(":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/")
			head[2], head[3], head[4] = byte(len(block)), 1, 5
			binary.BigEndian.PutUint32(head[5:], id)
			_, _ = c.Conn.Write(append(head[:], block...))
		}
		if code, err := c.goAway(); err != nil || code != http2.ErrCodeProtocol && code != http2.ErrCodeStreamClosed {
			t.Errorf("%v: got %v %v", ids, code, err)
		}
	}
}

// Who says nothing, or not what must be said, is not waited for.
func TestSilenceEndsTheConnection(t *testing.T) {
	t.Parallel()
	cfg := h2.Config{HeadTimeout: 100 * time.Millisecond, IdleTimeout: 300 * time.Millisecond}
	for _, tt := range []struct {
		name string
		say  func(c *client)
	}{
		{"after the preface", func(*client) {}},
		{"settings never acknowledged", func(c *client) { _ = c.WriteSettings() }},
		{"in the middle of a head", func(c *client) {
			_ = c.WriteSettings()
			_ = c.WriteSettingsAck()
			_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(":method", "GET"), EndStream: true})
		}},
		{"in the middle of a frame", func(c *client) {
			_ = c.WriteSettings()
			_ = c.WriteSettingsAck()
			_, _ = c.Conn.Write([]byte{0, 1, 0, 1})
		}},
		{"between requests", func(c *client) { _ = c.WriteSettings(); _ = c.WriteSettingsAck() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := serve(t, cfg, to(silent(t)))
			c := f.dial(t)
			tt.say(c)
			for {
				if _, err := c.ReadFrame(); err != nil {
					break
				}
			}
			if err := f.ended(t); errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got %v", err)
			}
		})
	}
}
