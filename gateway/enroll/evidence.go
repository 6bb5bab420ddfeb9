package enroll

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"

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
	id.quote, id.info, id.evidence = verified.Quote, verified.Info, e
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

// keepStronger lets an instance that refreshes its registration with weaker evidence than it brought before keep the
// stronger, and what was read from it, as long as it has the same key and runs the same code. Evidence is left out then:
// the registry keeps what it has under the same condition, which it decides in its transaction.
func keepStronger(inst, known *registry.Instance, brought ratls.Binding, reported *registry.PortPolicy) error {
	if known == nil || known.App != inst.App || known.Compose != inst.Compose || known.Key != inst.Key || len(known.Evidence) == 0 {
		return nil
	}
	e, err := ratls.ParseAppEvidence(known.Evidence)
	if err != nil || strength(e.Binding) <= strength(brought) {
		return nil
	}
	inst.Evidence, inst.Identity, inst.Info = nil, known.Identity, known.Info
	inst.Ports, err = effectivePorts(e.AppCompose, reported)
	return err
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
