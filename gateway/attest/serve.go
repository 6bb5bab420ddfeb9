package attest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"dstack.host/gateway/proxy"
	"dstack.host/ratls"
)

// exporterLabel derives what binds a document to one TLS connection (RFC 8446 section 7.5); the nonce is its context.
const exporterLabel = "EXPORTER-dstack-ra-https"

// Serve answers for the gateway itself: the attestation path of every name, and everything on its own names. What it returns as
// an error the proxy turns into an answer.
func (a *Attester) Serve(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Path == proxy.AttestationPath {
		return a.serveDocument(w, r)
	}
	s, err := a.subjectOf(hostOnly(r.Host))
	if err != nil {
		return err
	}
	if !s.own() {
		return proxy.Fail(proxy.NotFound, nil)
	}
	return a.serveOwn(w, r, s)
}

// Header fields of every document, made once.
var (
	anyOrigin = []string{"*"}
	exposed   = []string{"ETag, Retry-After"}
	varyField = []string{"Accept"}
	noSniff   = []string{"nosniff"}
	noStore   = []string{"no-store"}
)

// serveDocument answers the well-known path.
func (a *Attester) serveDocument(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h["Access-Control-Allow-Origin"], h["Vary"], h["X-Content-Type-Options"] = anyOrigin, varyField, noSniff
	h["Access-Control-Expose-Headers"] = exposed
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodOptions: // a preflight (Fetch standard, CORS protocol); credentials are never allowed
		h.Set("Access-Control-Allow-Methods", "GET, HEAD")
		h.Set("Access-Control-Max-Age", "86400")
		w.WriteHeader(http.StatusNoContent)
		return nil
	default:
		h.Set("Allow", "GET, HEAD, OPTIONS")
		return proxy.FailWith(proxy.BadRequest, http.StatusMethodNotAllowed, "The attestation document is read with GET.")
	}
	kind, ok := negotiate(r.Header["Accept"])
	if !ok {
		return proxy.FailWith(proxy.BadRequest, http.StatusNotAcceptable, "The document comes as "+strings.Join(mediaTypes[:], ", ")+": accept one of them.")
	}
	s, err := a.subjectOf(hostOnly(r.Host))
	if err != nil {
		return err
	}
	if len(a.config.Certs.Keys()) == 0 {
		return proxy.Fail(proxy.Starting, errors.New("no certificate is served yet"))
	}
	c, fresh, err := challengeOf(r)
	if err != nil {
		return proxy.FailWith(proxy.BadRequest, http.StatusBadRequest, err.Error())
	}
	if c == nil {
		return a.serveHeld(w, r, s, kind)
	}
	h["Cache-Control"] = noStore
	if wait := a.limit.take(clientOf(r), time.Now()); wait > 0 {
		h.Set("Retry-After", strconv.Itoa(int(wait.Seconds())+1))
		return proxy.FailWith(proxy.RateLimited, http.StatusTooManyRequests, "A document with a nonce costs the gateway a quote. Wait as long as Retry-After says, or ask without a nonce.")
	}
	return a.serveChallenged(w, r, s, kind, *c, fresh)
}

// serveHeld answers without a nonce, from what is held.
func (a *Attester) serveHeld(w http.ResponseWriter, r *http.Request, s subject, kind formKind) error {
	d, err := a.current(r.Context(), clientOf(r), s)
	if err != nil {
		return outward(err)
	}
	f, err := d.form(kind)
	if err != nil {
		return err
	}
	h := w.Header()
	h["Cache-Control"], h["Etag"] = d.cacheControl(time.Now()), f.etag
	if matches(r.Header["If-None-Match"], f.tag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h["Content-Type"], h["Content-Length"] = contentTypes[kind], f.length
	a.protect(h, kind)
	_, err = w.Write(f.body)
	return err
}

// protect gives a page its policy.
func (a *Attester) protect(h http.Header, kind formKind) {
	if kind == formHTML {
		h["Content-Security-Policy"] = pagePolicy()
		h.Set("Referrer-Policy", "no-referrer")
	}
}

// matches reads If-None-Match (RFC 9110 section 13.1.2): any of a list of tags, weak or not, or an asterisk.
func matches(fields []string, tag string) bool {
	for _, field := range fields {
		for candidate := range strings.SplitSeq(field, ",") {
			candidate = strings.TrimSpace(candidate)
			if candidate == "*" || strings.TrimPrefix(candidate, "W/") == tag {
				return true
			}
		}
	}
	return false
}

// serveChallenged answers with a nonce: the caller stands in line for the next quote.
func (a *Attester) serveChallenged(w http.ResponseWriter, r *http.Request, s subject, kind formKind, c ratls.Challenge, fresh bool) error {
	in, t := a.line.quotes, topic{subject: s, challenged: true}
	if fresh {
		apps, err := a.canBeFresh(s)
		if err != nil {
			return err
		}
		in, t = a.line.rounds, topic{apps: apps}
	}
	o, err := a.wait(r.Context(), in, &waiter{class: challenging, client: clientOf(r), subject: s, challenge: c}, t)
	if err != nil {
		return outward(err)
	}
	pieces, err := o.batch.Text(o.index)
	if err != nil {
		return err
	}
	w.Header()["Content-Type"] = contentTypes[kind]
	if kind == formJSON {
		for _, piece := range append(pieces[:], []byte("\n")) {
			if _, err := w.Write(piece); err != nil {
				return err
			}
		}
		return nil
	}
	body, err := a.challengedForm(s, kind, o.batch.Document(o.index), append(bytes.Join(pieces[:], nil), '\n'))
	if err != nil {
		return err
	}
	a.protect(w.Header(), kind)
	_, err = w.Write(body)
	return err
}

// challengedForm is a document for one caller in a form other than JSON.
func (a *Attester) challengedForm(s subject, kind formKind, d *ratls.Document, text []byte) ([]byte, error) {
	switch kind {
	case formQuote:
		return d.Gateway.Quote, nil
	case formCMW:
		return wrap(text, d.Gateway.Quote)
	}
	return a.page(s, d, text)
}

// outward maps what went wrong in line to what a client is told. There is no document without evidence.
func outward(err error) error {
	if errors.Is(err, errCrowded) || errors.Is(err, context.DeadlineExceeded) {
		return proxy.FailWith(proxy.Overloaded, http.StatusServiceUnavailable, "More callers wait for the gateway's quotes than it can make. Try again in a few seconds.")
	}
	return err
}

// challengeOf reads what the caller wants to see quoted, and whether the app is to answer too; nil when nothing.
func challengeOf(r *http.Request) (c *ratls.Challenge, fresh bool, err error) {
	query, err := url.ParseQuery(r.URL.RawQuery) // URL.Query drops what it can't read, and with it what was asked for
	if err != nil {
		return nil, false, errors.New("the query can't be read: separate its parts with &, and write % as %25")
	}
	nonces, binds, freshes := query["nonce"], query["bind"], query["fresh"]
	if len(nonces) == 0 {
		if len(binds) > 0 || len(freshes) > 0 {
			return nil, false, errors.New("bind and fresh need a nonce: add nonce=<64 hex digits>")
		}
		return nil, false, nil
	}
	nonce, err := hex.DecodeString(nonces[0])
	if err != nil || len(nonce) != ratls.NonceSize || len(nonces) > 1 {
		return nil, false, fmt.Errorf("nonce: give exactly one of %d random bytes, as %d hex digits", ratls.NonceSize, 2*ratls.NonceSize)
	}
	if len(freshes) > 1 || len(freshes) == 1 && freshes[0] != "app" {
		return nil, false, errors.New("fresh: only app is known")
	}
	c = &ratls.Challenge{Nonce: nonce}
	switch {
	case len(binds) == 0:
	case len(binds) > 1 || binds[0] != "tls-exporter":
		return nil, false, errors.New("bind: only tls-exporter is known")
	case r.TLS == nil || r.TLS.Version != tls.VersionTLS13 || r.TLS.DidResume:
		return nil, false, errors.New("bind=tls-exporter needs a TLS 1.3 connection that was not resumed")
	default:
		if c.Exporter, err = r.TLS.ExportKeyingMaterial(exporterLabel, nonce, ratls.ExporterSize); err != nil {
			return nil, false, fmt.Errorf("bind=tls-exporter: %w", err)
		}
	}
	return c, len(freshes) == 1, nil
}

// hostOnly drops the port of an authority.
func hostOnly(authority string) string {
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && !strings.HasSuffix(authority, "]") {
		return authority[:i]
	}
	return authority
}

// clientOf is what a rate limit counts by: an IPv4 address, or the /64 that one IPv6 client commands.
func clientOf(r *http.Request) netip.Prefix {
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{} // all unknowns together
	}
	ip := addr.Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.Prefix(bits) // bits fit
	return prefix
}
