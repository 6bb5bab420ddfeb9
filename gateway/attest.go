package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"dstack.host/gateway/certs"
	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
)

const (
	// exporterLabel derives what binds a document to one TLS connection (RFC 8446 section 7.5); the nonce is its context.
	exporterLabel = "EXPORTER-dstack-ra-https"
	// maxDocuments bounds the cache: one for each name that was asked for.
	maxDocuments = 1024
	// quoteTimeout bounds the making of one document. A TDX guest makes about one quote a second.
	quoteTimeout = 30 * time.Second
)

// attester answers /.well-known/attestation: it states which keys and instances are behind a name, and has the platform
// quote the statement.
type attester struct {
	// set by openAttester
	bases    []string
	node     string
	kind     ratls.Kind
	validity time.Duration
	prover   *ratls.Prover
	certs    *certs.Certs
	snapshot func() *registry.Snapshot
	log      *slog.Logger
	limit    *limiter
	quoting  chan struct{} // one place: quotes are made one after the other anyway

	flights singleflight.Group
	mu      sync.Mutex
	cached  map[string]*document // guarded by mu; by canonical host
}

// document is a finished document. It does not change.
type document struct {
	instances []*registry.Instance // what it states: these, and
	certs     <-chan struct{}      // the keys until this channel is closed

	body    []byte
	etag    string
	refetch time.Time // from here on a reader waits for a new one
	expires time.Time
}

func (g *Gateway) openAttester(context.Context) error {
	prover, err := ratls.NewProver(ratls.ProverConfig{Platform: g.trust.Platform, Verifier: g.trust.Verifier})
	if err != nil {
		return err
	}
	a := g.config.Attestation
	g.attester = &attester{
		bases: g.config.BaseDomains, node: g.config.Node, kind: g.trust.Platform.Kind(), validity: a.Validity, prover: prover, certs: g.certs, snapshot: g.registry.Snapshot, log: g.log,
		limit: newLimiter(a.NonceInterval, a.NonceBurst), quoting: make(chan struct{}, 1), cached: map[string]*document{},
	}
	return nil
}

// states reports whether the document says what is true of a subject now.
func (d *document) states(s subject) bool {
	select {
	case <-d.certs:
		return false
	default:
		return slices.Equal(d.instances, s.instances)
	}
}

// subject is what a host name stands for.
type subject struct {
	host      string // canonical: one spelling for all names of the same thing
	instances []*registry.Instance
}

// subjectOf finds what a host of ours stands for: the gateway itself, or the instances behind an app's name.
func (a *attester) subjectOf(host string) (subject, error) {
	host = strings.ToLower(host)
	for _, base := range a.bases {
		label, below := strings.CutSuffix(host, "."+base)
		switch {
		case host == base || below && label == gatewayLabel:
			return subject{host: host}, nil
		case !below:
			continue
		}
		name, err := registry.ParseLabel(label)
		if err != nil {
			return subject{}, proxy.Fail(proxy.UnknownApp, err)
		}
		instances := a.snapshot().Resolve(name)
		if len(instances) == 0 {
			return subject{}, proxy.Fail(proxy.UnknownApp, nil)
		}
		return subject{host: name.ID + "." + base, instances: instances}, nil
	}
	return subject{}, proxy.Fail(proxy.Misdirected, nil)
}

// statement is what there is to say of a subject now, without its times, and the evidence behind it.
func (a *attester) statement(s subject) (ratls.Statement, []ratls.AppEvidence, error) {
	st := ratls.Statement{Host: s.host, Node: a.node, ACMEAccount: a.certs.Account()}
	for _, key := range a.certs.Keys() {
		st.TLS = append(st.TLS, ratls.TLSKey{SPKI: sha256.Sum256(key.SPKI), NotAfter: key.NotAfter, Use: key.Use})
	}
	for _, record := range a.certs.CAA() {
		st.CAA = append(st.CAA, fmt.Sprintf("%d %s %q", record.Flag, record.Tag, record.Value))
	}
	if len(s.instances) == 0 {
		return st, nil, nil
	}
	st.App = &ratls.StatementApp{ID: s.instances[0].App.String()}
	var evidence []ratls.AppEvidence
	for _, inst := range s.instances {
		e, err := ratls.ParseAppEvidence(inst.Evidence)
		if err != nil {
			return st, nil, fmt.Errorf("instance %s: %w", inst.ID, err)
		}
		evidence = append(evidence, *e)
		st.App.Instances = append(st.App.Instances, ratls.StatementInstance{ID: inst.ID.String(), WGPublicKey: inst.Key.String(), EvidenceSHA256: e.SHA256()})
	}
	return st, evidence, nil
}

// prove makes a document of what there is to say now.
func (a *attester) prove(ctx context.Context, s subject, challenge *ratls.Challenge) (*document, error) {
	select {
	case a.quoting <- struct{}{}:
		defer func() { <-a.quoting }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	d := &document{instances: s.instances, certs: a.certs.Changed()}
	st, evidence, err := a.statement(s)
	if err != nil {
		return nil, err
	}
	st.IssuedAt = time.Now()
	st.ExpiresAt = st.IssuedAt.Add(a.validity)
	proof, err := a.prover.Prove(ctx, st, challenge, evidence)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(proof)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	d.body, d.etag = append(body, '\n'), `"`+hex.EncodeToString(sum[:16])+`"`
	d.refetch, d.expires = st.IssuedAt.Add(a.validity/2), st.ExpiresAt
	return d, nil
}

// current is a document without a nonce: the cached one while it says what is true and is young enough, else a new one,
// made once for all who wait for it.
func (a *attester) current(ctx context.Context, s subject) (*document, error) {
	for {
		a.mu.Lock()
		held := a.cached[s.host]
		a.mu.Unlock()
		if held != nil && held.states(s) && time.Now().Before(held.refetch) {
			return held, nil
		}
		flight := a.flights.DoChan(s.host, func() (any, error) {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quoteTimeout)
			defer cancel()
			made, err := a.prove(ctx, s, nil)
			if err == nil {
				a.keep(s.host, made)
			}
			return made, err
		})
		select {
		case r := <-flight:
			if r.Err != nil {
				return nil, r.Err
			}
			if d := r.Val.(*document); d.states(s) {
				return d, nil
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// keep caches a document. When the cache is full, what has expired goes first, then anything.
func (a *attester) keep(host string, d *document) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.cached) >= maxDocuments {
		for name, old := range a.cached {
			if time.Now().After(old.refetch) {
				delete(a.cached, name)
			}
		}
		for name := range a.cached {
			if len(a.cached) < maxDocuments {
				break
			}
			delete(a.cached, name)
		}
	}
	a.cached[host] = d
}

// serve answers the well-known path.
func (a *attester) serve(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return proxy.FailWith(proxy.BadRequest, http.StatusMethodNotAllowed, "The attestation document is read with GET.")
	}
	s, err := a.subjectOf(hostOnly(r.Host))
	if err != nil {
		return err
	}
	if len(a.certs.Keys()) == 0 {
		return proxy.Fail(proxy.Starting, errors.New("no certificate is served yet"))
	}
	challenge, err := challengeOf(r)
	if err != nil {
		return proxy.FailWith(proxy.BadRequest, http.StatusBadRequest, err.Error())
	}
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.Header().Set("Vary", "Accept")
	if challenge == nil {
		d, err := a.current(r.Context(), s)
		if err != nil {
			return attestationFailure(err)
		}
		w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", max(0, int(time.Until(d.refetch).Seconds()))))
		w.Header().Set("ETag", d.etag)
		if slices.Contains(r.Header.Values("If-None-Match"), d.etag) {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
		return send(w, d)
	}
	w.Header().Set("Cache-Control", "no-store")
	if wait := a.limit.take(clientOf(r), time.Now()); wait > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(int(wait.Seconds())+1))
		return proxy.FailWith(proxy.RateLimited, http.StatusTooManyRequests, "A document with a nonce costs the gateway a quote. Wait as long as Retry-After says, or ask without a nonce.")
	}
	ctx, cancel := context.WithTimeout(r.Context(), quoteTimeout)
	defer cancel()
	d, err := a.prove(ctx, s, challenge)
	if err != nil {
		return attestationFailure(err)
	}
	return send(w, d)
}

func send(w http.ResponseWriter, d *document) error {
	w.Header().Set("Content-Type", "application/json")
	_, err := w.Write(d.body)
	return err
}

// attestationFailure is fail closed: no evidence, no document.
func attestationFailure(err error) error {
	return proxy.Fail(proxy.NoEvidence, err)
}

// challengeOf reads what the caller wants to see quoted; nil when nothing.
func challengeOf(r *http.Request) (*ratls.Challenge, error) {
	query := r.URL.Query()
	if query.Has("fresh") {
		return nil, errors.New("fresh: this gateway does not pass challenges on to apps; leave it out")
	}
	nonces, binds := query["nonce"], query["bind"]
	if len(nonces) == 0 {
		if len(binds) > 0 {
			return nil, errors.New("bind needs a nonce: add nonce=<64 hex digits>")
		}
		return nil, nil
	}
	nonce, err := hex.DecodeString(nonces[0])
	if err != nil || len(nonce) != ratls.NonceSize || len(nonces) > 1 {
		return nil, fmt.Errorf("nonce: give exactly one of %d random bytes, as %d hex digits", ratls.NonceSize, 2*ratls.NonceSize)
	}
	c := &ratls.Challenge{Nonce: nonce}
	switch {
	case len(binds) == 0:
	case len(binds) > 1 || binds[0] != "tls-exporter":
		return nil, errors.New("bind: only tls-exporter is known")
	case r.TLS == nil || r.TLS.Version != tls.VersionTLS13 || r.TLS.DidResume:
		return nil, errors.New("bind=tls-exporter needs a TLS 1.3 connection that was not resumed")
	default:
		if c.Exporter, err = r.TLS.ExportKeyingMaterial(exporterLabel, nonce, ratls.ExporterSize); err != nil {
			return nil, fmt.Errorf("bind=tls-exporter: %w", err)
		}
	}
	return c, nil
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
