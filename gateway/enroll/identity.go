package enroll

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"dstack.host/gateway/registry"
	"dstack.host/ratls"
)

// What a registration rested on, as the registry and the attestation document tell it.
const (
	identityAttestation = "ratls-v0"     // certificate with dstack's attestation extension
	identityLegacy      = "ratls-legacy" // certificate with the older quote and event log extensions
	identityKMS         = "kms-app-info" // certificate of the dstack KMS, without a quote
)

// identity is who a client certificate belongs to.
type identity struct {
	proof    string       // one of the identity constants
	quote    *ratls.Quote // nil when a KMS vouches
	info     ratls.AppInfo
	evidence *ratls.AppEvidence
}

// errNoAttestation is protocol: a dstack guest from 0.5.6 on that reads "no attestation provided" comes back with the
// certificate that carries its quote (dstack 0.6 dstack-util/src/system_setup.rs).
var errNoAttestation = errors.New("no attestation provided: present a client certificate with a TDX quote, or one of the KMS that this gateway trusts")

// errNoInstance is an app whose compose file has no_instance_id set.
var errNoInstance = errors.New("instance id is empty: an app with no_instance_id can't have a tunnel, because nothing names it")

// identify judges the certificate chain, of whose leaf the client proved to hold the key. Whatever the leaf carries has to
// be right: an attestation is verified even when app info would do, and app info without one only counts under the KMS root.
func (s *Server) identify(ctx context.Context, chain []*x509.Certificate) (identity, error) {
	if len(chain) == 0 {
		return identity{}, refuse(reasonIdentity, errNoAttestation)
	}
	carried, err := ratls.ReadCertificate(chain[0])
	if err != nil {
		return identity{}, refuse(reasonIdentity, fmt.Errorf("client certificate: %w", err))
	}
	switch carried.Source {
	case ratls.SourceAttestation:
		return s.fromQuote(ctx, chain[0], identityAttestation)
	case ratls.SourceLegacy:
		return s.fromQuote(ctx, chain[0], identityLegacy)
	case ratls.SourceAppInfo:
		return s.fromKMS(chain, carried)
	}
	return identity{}, refuse(reasonIdentity, errNoAttestation)
}

// fromQuote is the identity that the quote of a certificate proves.
func (s *Server) fromQuote(ctx context.Context, leaf *x509.Certificate, proof string) (identity, error) {
	quote, info, err := ratls.VerifyCertificate(ctx, s.config.Verifier, leaf)
	if err != nil {
		return identity{}, judged("invalid quote", err)
	}
	if len(info.InstanceID) == 0 {
		return identity{}, refuse(reasonIdentity, errNoInstance)
	}
	evidence, err := ratls.CertificateEvidence(leaf, quote.Kind, info)
	if err != nil {
		return identity{}, refuse(reasonIdentity, fmt.Errorf("client certificate: %w", err))
	}
	return identity{proof: proof, quote: quote, info: info, evidence: evidence}, nil
}

// fromKMS is the identity that the KMS vouches for.
func (s *Server) fromKMS(chain []*x509.Certificate, carried *ratls.CertEvidence) (identity, error) {
	if err := s.underKMS(chain, carried); err != nil {
		return identity{}, refuse(reasonIdentity, err)
	}
	info := *carried.AppInfo
	if len(info.InstanceID) == 0 {
		return identity{}, refuse(reasonIdentity, errNoInstance)
	}
	return identity{proof: identityKMS, info: info, evidence: &ratls.AppEvidence{
		InstanceID: hex.EncodeToString(info.InstanceID), Binding: ratls.BindingAppInfo,
	}}, nil
}

// judged tells evidence that is at fault from evidence that could not be judged, as when collateral can't be had.
func judged(what string, err error) error {
	if errors.As(err, new(*ratls.Refusal)) {
		return refuse(reasonQuote, fmt.Errorf("%s: %w", what, err))
	}
	return fmt.Errorf("the quote can't be judged now, try again: %w", err)
}

// instance turns a verified identity into what is registered; addresses are the registry's to give.
func (id identity) instance(r request, now time.Time) (registry.Instance, error) {
	var inst registry.Instance
	for _, part := range []struct {
		name string
		to   []byte
		from []byte
	}{
		{"app id", inst.App[:], id.info.AppID},
		{"instance id", inst.ID[:], id.info.InstanceID},
		{"compose hash", inst.Compose[:], id.info.ComposeHash},
	} {
		if len(part.from) != len(part.to) {
			return registry.Instance{}, refuse(reasonIdentity, fmt.Errorf("%s has %d bytes, want %d", part.name, len(part.from), len(part.to)))
		}
		copy(part.to, part.from)
	}
	evidence, err := json.Marshal(id.evidence)
	if err != nil {
		return registry.Instance{}, err
	}
	ports, err := effectivePorts(id.evidence.AppCompose, r.Ports)
	if err != nil {
		return registry.Instance{}, refuse(reasonRequest, err)
	}
	inst.Key, inst.Ports, inst.Identity, inst.Evidence, inst.Info = r.Key, ports, id.proof, evidence, id.info
	inst.RegisteredAt = now.UTC().Truncate(time.Second)
	return inst, nil
}
