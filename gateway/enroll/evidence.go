package enroll

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"dstack.host/gateway/registry"
	"dstack.host/ratls"
)

// The challenge that a statement answers is derived from the TLS session (RFC 8446 section 7.5), without context.
const (
	exporterLabel = "EXPORTER-dstack-register"
	exporterSize  = ratls.ExporterSize
)

// challenge is that of one connection. Before TLS 1.3 two sessions may share it (RFC 7627
// section 1).
func challenge(state *tls.ConnectionState) (string, error) {
	if state.Version < tls.VersionTLS13 {
		return "", errors.New("needs TLS 1.3")
	}
	exporter, err := state.ExportKeyingMaterial(exporterLabel, nil, exporterSize)
	return hex.EncodeToString(exporter), err
}

// upgrade replaces the certificate's evidence by the stronger one of the request, once it was verified: the app's own
// statement about its WireGuard key, made for the TLS session with this challenge.
func (s *Server) upgrade(ctx context.Context, id *identity, r request, challenge string) error {
	e, err := ratls.ParseAppEvidence(r.Evidence)
	if err != nil {
		return refuse(reasonRequest, err)
	}
	if e.Binding != ratls.BindingWireGuard {
		return refuse(reasonEvidence, fmt.Errorf("evidence: binding is %q, in a request it is %q: other evidence comes with the client certificate", e.Binding, ratls.BindingWireGuard))
	}
	verified, err := e.Verify(ctx, s.config.Verifier)
	if err != nil {
		return judged("evidence", err)
	}
	if err := matches(verified, id.info, r, challenge); err != nil {
		return refuse(reasonEvidence, fmt.Errorf("evidence: %w", err))
	}
	id.quote, id.info, id.binding, id.evidence = verified.Quote, verified.Info, e.Binding, e
	return nil
}

// matches holds verified evidence to the certificate, the request and the connection that it came with.
func matches(v *ratls.AppVerification, certificate ratls.AppInfo, r request, challenge string) error {
	for _, part := range []struct {
		name string
		a, b []byte
	}{
		{"app id", v.Info.AppID, certificate.AppID},
		{"instance id", v.Info.InstanceID, certificate.InstanceID},
		{"compose hash", v.Info.ComposeHash, certificate.ComposeHash},
	} {
		if !bytes.Equal(part.a, part.b) {
			return fmt.Errorf("%s is %x, that of the client certificate %x", part.name, part.a, part.b)
		}
	}
	if got, want := v.Statement.WGPublicKey, r.Key.String(); got != want {
		return fmt.Errorf("the app statement names WireGuard key %s, the request %s", got, want)
	}
	if v.Statement.Challenge != challenge {
		return errors.New("the app statement answers another TLS session's challenge: make the evidence anew for each connection")
	}
	return nil
}

// keepStronger lets an instance that refreshes its registration with weaker evidence than it brought before, or with none, keep
// what it has, as long as it has the same key and runs the same code. It reports whether it does. Evidence is left out then: the registry keeps what it has under
// the same condition, which it decides in its transaction.
func keepStronger(inst, known *registry.Instance, id identity) bool {
	if !id.sameAs(known, inst.Key) || len(known.Evidence) == 0 {
		return false
	}
	if more := strength(known.Binding) - strength(id.binding); more < 0 || more == 0 && id.evidence != nil {
		return false
	}
	inst.Evidence, inst.Identity, inst.Binding, inst.Info = nil, known.Identity, known.Binding, known.Info
	return true
}

// askedLife is how long a guest counts as one that has no quote, after it was asked for it and came back without.
const askedLife = time.Hour

// demand refuses an identity without a quote where this gateway wants one for the attestation document, in the words that make a guest come
// back with it. Who has shown a quote for the same key before need not again; who was asked, and shows the same TLS key once more, has none.
func (s *Server) demand(id identity, req request) error {
	if s.config.Evidence == EvidenceOff || strength(id.binding) > 0 {
		return nil
	}
	known := s.config.Current(registry.InstanceID(id.info.InstanceID))
	if id.sameAs(known, req.Key) && strength(known.Binding) > 0 {
		return nil
	}
	if s.config.Evidence == EvidencePreferred && s.asked.before(id.tlsKey, s.config.Now()) {
		return nil
	}
	return refuse(reasonEvidence, fmt.Errorf("the client certificate has no quote, and this gateway wants one (enroll.evidence = %q): no attestation provided", s.config.Evidence))
}

// asked remembers which TLS keys were asked for a quote.
type asked struct {
	mu   sync.Mutex
	when map[[sha256.Size]byte]time.Time // guarded by mu
}

// before reports whether a key was asked already, and remembers that it was.
func (a *asked) before(key [sha256.Size]byte, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if when, ok := a.when[key]; ok && now.Sub(when) < askedLife {
		return true
	}
	if len(a.when) >= maxLimited { // who is forgotten is asked once more
		clear(a.when)
	}
	if a.when == nil {
		a.when = make(map[[sha256.Size]byte]time.Time)
	}
	a.when[key] = now
	return false
}

// strength orders bindings by how much of the way to the app they prove.
func strength(b ratls.Binding) int {
	switch b {
	case ratls.BindingWireGuard:
		return 2
	case ratls.BindingCertificate:
		return 1
	}
	return 0
}
