package proxy

import (
	"context"
	"io"
	"net"
	"time"

	"dstack.host/gateway/proxy/h1"
	"dstack.host/gateway/registry"
)

const MaxHello = maxHello

var (
	CanonicalHost  = canonicalHost
	ParseAuthority = parseAuthority
	ReservedPath   = reservedPath
	MayBeReserved  = mayBeReserved[string]
	PrefersHTML    = prefersHTML
	ProxyHeader    = proxyHeader
	Freshest       = freshest

	ErrAuthority = errAuthority
	ErrForeign   = errForeign
	ErrIdle      = errIdle
)

// Reasons are all reasons that have a page.
func Reasons() (list []Reason) {
	for r := range kinds {
		list = append(list, r)
	}
	return list
}

// Hop is the hop of a reason.
func Hop(r Reason) string { return kinds[r].hop }

// Hello reads and parses one ClientHello.
func Hello(r io.Reader) (serverName string, protocols []string, raw []byte, err error) {
	raw, message, err := readHello(r)
	if err != nil {
		return "", nil, raw, err
	}
	h, err := parseHello(message)
	return h.serverName, h.protocols, raw, err
}

// Decide is the routing decision in words: "own", "own <path>", the name of an app, or a reason.
func Decide(bases []string, authority, path string, http2 bool) (string, registry.Name) {
	n, err := newNames(bases)
	if err != nil {
		return err.Error(), registry.Name{}
	}
	d, f := n.decide(authority, path, http2)
	switch {
	case f != nil:
		return string(f.reason), registry.Name{}
	case d.own && d.path != "":
		return "own " + d.path, registry.Name{}
	case d.own:
		return "own", registry.Name{}
	}
	return "app", d.name
}

// Route makes the HTTP/1.1 routing of one connection.
func (p *Proxy) Route() func(*h1.Request) h1.Backend {
	s := &session{c: &conn{p: p}}
	return func(r *h1.Request) h1.Backend {
		b, _ := s.Route(context.Background(), r)
		return b
	}
}

// Splice is splice.
func Splice(ctx context.Context, client, app net.Conn, idle time.Duration) (received, sent int64, err error) {
	return splice(ctx, client, app, idle)
}

// ListenOn replaces the listener of a Proxy that does not run yet.
func (p *Proxy) ListenOn(wrap func(net.Listener) net.Listener) { p.listener = wrap(p.listener) }
