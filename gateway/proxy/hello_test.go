package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"dstack.host/gateway/proxy"
)

// clientHello is what crypto/tls sends first.
func clientHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer client.Close()
		tls.Client(client, cfg).Handshake() //nolint:errcheck // there is no answer
	}()
	buf := make([]byte, 64<<10)
	server.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := io.ReadAtLeast(server, buf, 5)
	for err == nil && n < 5+int(buf[3])<<8+int(buf[4]) {
		var more int
		more, err = server.Read(buf[n:])
		n += more
	}
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	<-done
	return buf[:n]
}

// records puts the handshake message in a single record into records of size bytes.
func records(hello []byte, size int) []byte {
	var out []byte
	for piece := range slices.Chunk(hello[5:], size) {
		out = append(out, 22, 3, 1, byte(len(piece)>>8), byte(len(piece)))
		out = append(out, piece...)
	}
	return out
}

// message builds a ClientHello of extensions, each a type and a body.
func message(extensions ...[]byte) []byte {
	m := append([]byte{3, 3}, make([]byte, 32)...)
	m = append(m, 0, 0, 2, 0x13, 1, 1, 0)
	if extensions != nil {
		all := slices.Concat(extensions...)
		m = append(m, byte(len(all)>>8), byte(len(all)))
		m = append(m, all...)
	}
	return record(append([]byte{1, byte(len(m) >> 16), byte(len(m) >> 8), byte(len(m))}, m...))
}

func record(b []byte) []byte { return append([]byte{22, 3, 1, byte(len(b) >> 8), byte(len(b))}, b...) }

func extension(kind uint16, body ...byte) []byte {
	return append([]byte{byte(kind >> 8), byte(kind), byte(len(body) >> 8), byte(len(body))}, body...)
}

// sni is a server_name extension with names of type 0.
func sni(names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(list, 0, byte(len(n)>>8), byte(len(n)))
		list = append(list, n...)
	}
	return extension(0, append([]byte{byte(len(list) >> 8), byte(len(list))}, list...)...)
}

func TestHelloIsReadHoweverItIsCut(t *testing.T) {
	plain := clientHello(t, &tls.Config{ServerName: "A.Example", NextProtos: []string{"h2", "http/1.1"}})
	for name, raw := range map[string][]byte{
		"one record": plain, "two records": records(plain, len(plain)-200), "records of 1 byte": records(plain, 1), "records of 7 bytes": records(plain, 7),
	} {
		for how, r := range map[string]io.Reader{
			"whole": bytes.NewReader(raw), "byte by byte": iotest.OneByteReader(bytes.NewReader(raw)), "with error at the end": iotest.DataErrReader(bytes.NewReader(raw)),
		} {
			got, protocols, read, err := proxy.Hello(r)
			if err != nil || got != "a.example" || !slices.Equal(protocols, []string{"h2", "http/1.1"}) || !bytes.Equal(read, raw) {
				t.Errorf("%s, %s: %q %q, %d of %d bytes: %v", name, how, got, protocols, len(read), len(raw), err)
			}
		}
	}
}

func TestHelloKeepsWhatFollowsIt(t *testing.T) {
	raw := append(clientHello(t, &tls.Config{ServerName: "a.example"}), "early data"...)
	if _, _, read, err := proxy.Hello(bytes.NewReader(raw)); err != nil || !bytes.Equal(read, raw) {
		t.Errorf("read %d of %d bytes: %v", len(read), len(raw), err)
	}
}

func TestHostileHellosAreRefused(t *testing.T) {
	good := message(sni("a.example"))
	for name, raw := range map[string][]byte{
		"nothing":                      {},
		"half a header":                good[:3],
		"half a hello":                 good[:40],
		"no extensions":                message(),
		"no SNI":                       message(extension(43, 2, 3, 4)),
		"empty SNI list":               message(extension(0, 0, 0)),
		"empty SNI extension":          message(extension(0)),
		"two names":                    message(sni("a.example", "b.example")),
		"two SNI extensions":           message(sni("a.example"), sni("b.example")),
		"two unknown extensions":       message(sni("a.example"), extension(0xfafa), extension(0xfafa)),
		"another name type":            message(extension(0, 0, 6, 1, 0, 3, 'a', '.', 'b')),
		"bytes after the name list":    message(extension(0, 0, 6, 0, 0, 3, 'a', '.', 'b', 0)),
		"name length beyond the list":  message(extension(0, 0, 6, 0, 0, 9, 'a', '.', 'b')),
		"empty name":                   message(sni("")),
		"trailing dot":                 message(sni("a.example.")),
		"two dots":                     message(sni("a..example")),
		"underscore":                   message(sni("a_b.example")),
		"NUL":                          message(sni("a\x00.example")),
		"space":                        message(sni("a .example")),
		"not ASCII":                    message(sni("ä.example")),
		"colon":                        message(sni("a.example:443")),
		"leading hyphen":               message(sni("-a.example")),
		"trailing hyphen":              message(sni("a-.example")),
		"label of 64":                  message(sni(strings.Repeat("a", 64) + ".example")),
		"name of 254":                  message(sni(strings.Repeat("a.", 126) + "aa")),
		"empty ALPN list":              message(sni("a.example"), extension(16, 0, 0)),
		"empty ALPN name":              message(sni("a.example"), extension(16, 0, 1, 0)),
		"ALPN name beyond the list":    message(sni("a.example"), extension(16, 0, 2, 5, 'h')),
		"extension beyond the message": message(sni("a.example"), []byte{0, 1, 0, 9}),
		"bytes after the extensions":   record(append([]byte{1, 0, 0, byte(len(good) - 9 + 1)}, append(bytes.Clone(good[9:]), 0)...)),
		"ServerHello":                  append([]byte{22, 3, 1, byte(len(good[5:]) >> 8), byte(len(good[5:])), 2}, good[6:]...),
		"alert record":                 {21, 3, 1, 0, 2, 1, 0},
		"SSLv2":                        {0x80, 0x2e, 1, 0, 2},
		"major version 2":              {22, 2, 0, 0, 5, 1},
		"empty record":                 append([]byte{22, 3, 1, 0, 0}, good...),
		"record of 16385 bytes":        append([]byte{22, 3, 1, 0x40, 1, 1}, make([]byte, 100)...),
		"message of 16 MiB":            {22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff},
		"message of 16 KiB":            append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc}, make([]byte, 16<<10)...),
		"garbage":                      bytes.Repeat([]byte{0xa5}, 100),
		"records of 1 byte, endless":   bytes.Repeat([]byte{22, 3, 1, 0, 1, 1}, 8<<10),
	} {
		if got, _, read, err := proxy.Hello(bytes.NewReader(raw)); err == nil || len(read) > proxy.MaxHello {
			t.Errorf("%s: accepted as %q after %d bytes", name, got, len(read))
		}
	}
}

func TestHelloReportsWhyReadingFailed(t *testing.T) {
	boom := errors.New("boom")
	if _, _, _, err := proxy.Hello(iotest.ErrReader(boom)); err != boom {
		t.Errorf("got %v", err)
	}
	if _, _, _, err := proxy.Hello(bytes.NewReader([]byte{22, 3})); err != io.ErrUnexpectedEOF {
		t.Errorf("got %v", err)
	}
}

// errSeen ends crypto/tls's handshake once it has parsed the ClientHello.
var errSeen = errors.New("seen")

// reference is crypto/tls's reading of a ClientHello; ok is false when it refuses it.
func reference(raw []byte) (serverName string, protocols []string, ok bool) {
	server := tls.Server(replay{bytes.NewReader(raw)}, &tls.Config{
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			serverName, protocols, ok = info.ServerName, info.SupportedProtos, true
			return nil, errSeen
		},
	})
	server.HandshakeContext(context.Background()) //nolint:errcheck // ends with errSeen at best
	return serverName, protocols, ok
}

// replay is a connection that says something and swallows what it is told.
type replay struct{ *bytes.Reader }

func (replay) Write(b []byte) (int, error)      { return len(b), nil }
func (replay) Close() error                     { return nil }
func (replay) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (replay) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (replay) SetDeadline(time.Time) error      { return nil }
func (replay) SetReadDeadline(time.Time) error  { return nil }
func (replay) SetWriteDeadline(time.Time) error { return nil }

func FuzzClientHello(f *testing.F) {
	for _, cfg := range []*tls.Config{
		{ServerName: "a.example"},
		{ServerName: "B.Example", NextProtos: []string{"h2", "http/1.1"}},
		{ServerName: "c.example", MaxVersion: tls.VersionTLS12},
		{InsecureSkipVerify: true},
	} {
		hello := clientHello(f, cfg)
		f.Add(hello)
		f.Add(records(hello, 50))
	}
	f.Add(message())
	f.Add(message(sni("a.example", "b.example")))
	f.Add(message(sni("a.example"), extension(16, 0, 3, 2, 'h', '2')))
	f.Fuzz(func(t *testing.T, raw []byte) {
		name, protocols, read, err := proxy.Hello(bytes.NewReader(raw))
		if !bytes.HasPrefix(raw, read) {
			t.Fatalf("read %x of %x", read, raw)
		}
		if err != nil {
			return
		}
		if _, ok := proxy.CanonicalHost(name); !ok || name != strings.ToLower(name) {
			t.Fatalf("accepted server name %q", name)
		}
		theirs, theirProtocols, ok := reference(raw)
		if ok && (!strings.EqualFold(theirs, name) || !slices.Equal(theirProtocols, protocols)) {
			t.Fatalf("we read %q %q, crypto/tls reads %q %q", name, protocols, theirs, theirProtocols)
		}
	})
}
