package h1

import (
	"net/http"
	"net/netip"
	"strings"
)

// Rewrite does to the fields of a request that came another way than through a Relay, over HTTP/2 say, what a Relay does: it removes those that
// belong to one connection and those that only a gateway may set, look-alikes included, and then sets the latter. TE is left, and framing is
// the business of whoever sends the request. The authority must be a checked host and port.
func Rewrite(h http.Header, client netip.AddrPort, proto, authority, requestID string) {
	Strip(h)
	id := newIdentity(client, proto)
	for line := range strings.Lines(string(id.fields)) {
		setLine(h, line)
	}
	setLine(h, string(id.forwarded)+authority+`"`)
	h["X-Forwarded-Host"] = []string{authority}
	h["X-Request-Id"] = []string{requestID}
}

// Strip does the first half of Rewrite, which is all that trailers need.
func Strip(h http.Header) {
	for name := range h {
		if c := classify([]byte(name)); c != ordinary && c != te {
			delete(h, name)
		}
	}
}

func setLine(h http.Header, line string) {
	name, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), ": ")
	h[http.CanonicalHeaderKey(name)] = []string{value}
}
