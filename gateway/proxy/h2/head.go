package h2

import (
	"crypto/rand"
	"encoding/base64"
	"net/http"

	"golang.org/x/net/http2/hpack"

	"dstack.host/gateway/proxy/h1"
)

// headReader reads a decoded header block, field by field. What RFC 9113 section 8.1.1 calls malformed is told from what is only refused.
type headReader struct {
	limit, fields int

	req      *h1.Request // nil: the block is decoded for the sake of the decoder alone
	trailer  bool        // it is a trailer section
	found    [5]bool     // pseudo-header fields
	pseudo   [5]string
	regular  bool // a field that is none has come
	size     int
	count    int
	cookies  []byte
	trailers *h1.Request // for trailer sections

	malformed string // why, the first reason
	tooLarge  bool
}

const (
	method = iota
	scheme
	authority
	path
	protocol
)

func (h *headReader) start(req *h1.Request, trailer bool) {
	*h = headReader{limit: h.limit, fields: h.fields, req: req, trailer: trailer, cookies: h.cookies[:0], trailers: h.trailers}
}

// emit takes one field.
func (h *headReader) emit(f hpack.HeaderField) {
	if h.req == nil || h.malformed != "" || h.tooLarge {
		return
	}
	h.count++
	h.size += len(f.Name) + len(f.Value) + len(": \r\n")
	switch {
	case h.count > h.fields+len(h.pseudo), h.size > h.limit:
		h.tooLarge = true
	case f.IsPseudo():
		h.takePseudo(f.Name, f.Value)
	default:
		h.regular = true
		h.take(f.Name, f.Value)
	}
}

func (h *headReader) takePseudo(name, value string) {
	var i int
	switch name {
	case ":method":
		i = method
	case ":scheme":
		i = scheme
	case ":authority":
		i = authority
	case ":path":
		i = path
	case ":protocol":
		i = protocol
	default:
		h.malformed = "an unknown pseudo-header field"
		return
	}
	if h.trailer || h.regular || h.found[i] {
		h.malformed = "a pseudo-header field is repeated or out of place"
		return
	}
	h.found[i], h.pseudo[i] = true, value
}

func (h *headReader) take(name, value string) {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		h.malformed = "a field that belongs to one connection"
		return
	case "te":
		if value != "trailers" {
			h.malformed = "TE is not trailers"
			return
		}
	case "sec-websocket-key", "sec-websocket-accept": // RFC 8441 section 5: not used
		if h.found[protocol] {
			return
		}
	case "cookie": // RFC 9113 section 8.2.3: crumbs are joined
		if len(h.cookies) > 0 {
			h.cookies = append(h.cookies, "; "...)
		}
		h.cookies = append(h.cookies, value...)
		return
	}
	if err := h.req.Add(name, value); err != nil {
		h.malformed = err.Error()
	}
}

// complete turns what was read into a request. Malformed ones are told by h.malformed.
func (h *headReader) complete(r *Request, end bool) *h1.Error {
	if h.tooLarge {
		return &h1.Error{Status: http.StatusRequestHeaderFieldsTooLarge, Reason: h1.TooLarge, Err: errHeadLong}
	}
	if h.malformed == "" && len(h.cookies) > 0 {
		if err := r.AddBytes("cookie", h.cookies); err != nil {
			h.malformed = err.Error()
		}
	}
	if h.malformed == "" {
		h.checkPseudo()
	}
	if h.malformed != "" {
		return nil
	}
	verb, extended := h.pseudo[method], h.found[protocol]
	if extended {
		r.Protocol, verb = h.pseudo[protocol], http.MethodGet
		if err := r.Add("sec-websocket-key", websocketKey()); err != nil {
			h.malformed = err.Error()
			return nil
		}
	}
	target := h.pseudo[path]
	if verb == http.MethodConnect {
		target = "/"
	}
	e := r.Complete(verb, target, h.pseudo[authority], !end && !extended)
	switch {
	case e != nil:
		return e
	case r.ContentLength > 0 && (end || extended):
		h.malformed = "a body is announced that does not come"
	case extended && r.Protocol != "websocket":
		return &h1.Error{Status: http.StatusNotImplemented, Reason: h1.MethodUnsupported, Err: errProtocol}
	case extended:
		r.Ask("websocket")
	}
	return nil
}

// checkPseudo checks which pseudo-header fields are there (RFC 9113 sections 8.3.1 and 8.5, RFC 8441 section 4).
func (h *headReader) checkPseudo() {
	connect, extended := h.pseudo[method] == http.MethodConnect, h.found[protocol]
	switch {
	case h.pseudo[method] == "":
		h.malformed = "no :method"
	case extended && !connect:
		h.malformed = ":protocol without CONNECT"
	case connect && !extended:
		if h.found[scheme] || h.found[path] || h.pseudo[authority] == "" {
			h.malformed = "CONNECT with a scheme or path, or without an authority"
		}
	case h.pseudo[scheme] != "https" && h.pseudo[scheme] != "http":
		h.malformed = ":scheme is not https"
	case h.pseudo[path] == "":
		h.malformed = "no :path"
	case extended && h.pseudo[authority] == "":
		h.malformed = "no :authority"
	}
}

func websocketKey() string {
	var b [16]byte
	rand.Read(b[:])
	return base64.StdEncoding.EncodeToString(b[:])
}

// fault is the kind of error that this package produces.
type fault string

func (f fault) Error() string { return string(f) }

const (
	errHeadLong = fault("the head is longer than the limit")
	errProtocol = fault("the protocol that CONNECT asks for is not known")
)
