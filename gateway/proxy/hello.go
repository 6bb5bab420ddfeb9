package proxy

import (
	"encoding/binary"
	"errors"
	"io"
)

// maxHello bounds the bytes read before a ClientHello must be whole, record headers included. Browsers send about 2 KiB with a
// post-quantum key share; nothing legitimate comes near 16 KiB.
const maxHello = 16 << 10

// usualHello is what a browser's ClientHello fits in.
const usualHello = 2 << 10

const (
	recordHeaderLen    = 5
	handshakeHeaderLen = 4
	recordHandshake    = 22
	typeClientHello    = 1
	maxRecordPayload   = 1 << 14 // RFC 8446 section 5.1
)

var (
	errHelloTooLarge = errors.New("ClientHello is larger than 16 KiB")
	errNotTLS        = errors.New("first bytes are no TLS handshake record")
	errHelloSyntax   = errors.New("malformed ClientHello")
	errNoServerName  = errors.New("ClientHello names no server")
	errServerName    = errors.New("ClientHello names an invalid server")
)

// hello is what routing needs of a ClientHello.
type hello struct {
	serverName string   // lower case, letters, digits, hyphens and dots
	protocols  []string // ALPN, as offered
}

// readHello reads from r until it has one whole ClientHello, however it is spread over records and segments. It returns every byte it
// read (a little more than the message may have come along) and the message within, without record headers. On an error the bytes read
// so far are returned too. A client that says little costs little memory: the buffer begins at usualHello and grows with what arrives.
func readHello(r io.Reader) (raw, message []byte, err error) {
	raw = make([]byte, 0, usualHello)
	for {
		message, need, err := assembleHello(raw)
		if message != nil || err != nil {
			return raw, message, err
		}
		if need > maxHello {
			return raw, nil, errHelloTooLarge
		}
		for len(raw) < need {
			if len(raw) == cap(raw) {
				raw = append(make([]byte, 0, min(2*cap(raw), maxHello)), raw...)
			}
			n, err := r.Read(raw[len(raw):cap(raw)])
			raw = raw[:len(raw)+n]
			if n == 0 && err != nil {
				if err == io.EOF && len(raw) > 0 {
					err = io.ErrUnexpectedEOF
				}
				return raw, nil, err
			}
		}
	}
}

// assembleHello joins the handshake records at the start of raw into the first handshake message. No message and no error mean that
// raw is a good beginning and worth another look once it has need bytes. The message aliases raw when one record holds it.
func assembleHello(raw []byte) (message []byte, need int, err error) {
	for at := 0; ; {
		size, err := recordSize(raw[at:])
		if err != nil {
			return nil, 0, err
		}
		if size == 0 {
			return nil, len(raw) + 1, nil
		}
		at += recordHeaderLen
		payload := raw[at:min(at+size, len(raw))]
		if message == nil {
			message = payload[:len(payload):len(payload)]
		} else {
			message = append(message, payload...)
		}
		at += size
		want, err := helloSize(message)
		switch {
		case err != nil:
			return nil, 0, err
		case len(raw) < at:
			return nil, at, nil
		case want > 0 && len(message) >= want:
			return message[:want], 0, nil
		}
	}
}

// recordSize is the size of the handshake record that begins b, without its header, or 0 while the header is not whole. It looks at as
// much of the header as there is, so that a stranger is told at the first wrong byte.
func recordSize(b []byte) (int, error) {
	if len(b) > 0 && b[0] != recordHandshake || len(b) > 1 && b[1] != 3 {
		return 0, errNotTLS
	}
	if len(b) < recordHeaderLen {
		return 0, nil
	}
	// A handshake record is never empty (RFC 8446 section 5.1): else a stream of nothing could be fed for ever.
	size := int(binary.BigEndian.Uint16(b[3:]))
	if size == 0 || size > maxRecordPayload {
		return 0, errHelloSyntax
	}
	return size, nil
}

// helloSize is the size of the handshake message that begins b, header included, or 0 while the header is not whole.
func helloSize(b []byte) (int, error) {
	if len(b) > 0 && b[0] != typeClientHello {
		return 0, errHelloSyntax
	}
	if len(b) < handshakeHeaderLen {
		return 0, nil
	}
	size := handshakeHeaderLen + (int(b[1])<<16 | int(b[2])<<8 | int(b[3]))
	if size > maxHello {
		return 0, errHelloTooLarge
	}
	return size, nil
}

// parseHello reads a ClientHello message (RFC 8446 section 4.1.2), header included. It is strict where routing depends on it: a
// second extension of one type, a second name or a name of another type than host_name is refused, so that nobody behind this
// listener can read another name out of the same bytes.
func parseHello(message []byte) (hello, error) {
	var h hello
	p := parser(message)
	p.skip(handshakeHeaderLen + 2 + 32) // header, legacy_version, random
	p.vector8()                         // legacy_session_id
	p.vector16()                        // cipher_suites
	p.vector8()                         // legacy_compression_methods
	if p != nil && len(p) == 0 {
		return h, errNoServerName // no extensions at all: TLS 1.2 permits it
	}
	extensions := p.vector16()
	if p == nil || len(p) != 0 {
		return h, errHelloSyntax
	}
	seen := make(map[uint16]struct{}, 16)
	for len(extensions) > 0 {
		kind, body := extensions.uint16(), extensions.vector16()
		if extensions == nil {
			return h, errHelloSyntax
		}
		if _, twice := seen[kind]; twice {
			return h, errHelloSyntax
		}
		seen[kind] = struct{}{}
		if err := h.extension(kind, body); err != nil {
			return h, err
		}
	}
	if h.serverName == "" {
		return h, errNoServerName
	}
	return h, nil
}

const (
	extensionServerName = 0  // RFC 6066 section 3
	extensionALPN       = 16 // RFC 7301 section 3.1
)

func (h *hello) extension(kind uint16, body parser) error {
	switch kind {
	case extensionServerName:
		list := body.vector16()
		nameType, name := list.uint8(), list.vector16()
		if body == nil || list == nil || len(body) != 0 {
			return errHelloSyntax
		}
		if len(list) != 0 || nameType != 0 {
			return errServerName
		}
		var ok bool
		if h.serverName, ok = canonicalHost(string(name)); !ok {
			return errServerName
		}
	case extensionALPN:
		list := body.vector16()
		if body == nil || len(body) != 0 || len(list) == 0 {
			return errHelloSyntax
		}
		for len(list) > 0 {
			name := list.vector8()
			if list == nil || len(name) == 0 {
				return errHelloSyntax
			}
			h.protocols = append(h.protocols, string(name))
		}
	}
	return nil
}

// parser takes length-prefixed values off the front of a byte string. After any short read it is nil and stays so, and every value
// taken from it is empty: check once, at the end.
type parser []byte

func (p *parser) skip(n int) parser {
	if *p == nil || len(*p) < n {
		*p = nil
		return nil
	}
	head := (*p)[:n:n]
	*p = (*p)[n:]
	return head
}

func (p *parser) uint8() uint8 {
	if b := p.skip(1); b != nil {
		return b[0]
	}
	return 0
}

func (p *parser) uint16() uint16 {
	if b := p.skip(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (p *parser) vector8() parser  { return p.skip(int(p.uint8())) }
func (p *parser) vector16() parser { return p.skip(int(p.uint16())) }
