package enroll

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/tunnel"
)

// identity is who a client certificate belongs to.
type identity struct {
	proof    string       // one of ratls.Identity…
	quote    *ratls.Quote // nil when a KMS vouches
	info     ratls.AppInfo
	binding  ratls.Binding
	evidence *ratls.AppEvidence // nil of one that is remembered
	tlsKey   [sha256.Size]byte  // hash of the public key of its certificate

	remembered bool // verified a while ago
}

// sameAs reports whether an instance, or nil, is the one with this identity, running the same code behind the same WireGuard key.
func (id *identity) sameAs(known *registry.Instance, key tunnel.PublicKey) bool {
	return known != nil && known.Key == key && bytes.Equal(known.App[:], id.info.AppID) && bytes.Equal(known.Compose[:], id.info.ComposeHash)
}

// errNoAttestation is protocol: a dstack guest from 0.5.6 on that reads "no attestation provided" comes back with the
// certificate that carries its quote (dstack 0.6 dstack-util/src/system_setup.rs).
var errNoAttestation = errors.New("no attestation provided: present a client certificate with a TDX quote, or one of the KMS that this gateway trusts")

// maxSkew is how far a guest's clock may be ahead. Nothing but its dates bounds the age of the quote in a certificate that nobody
// issued.
const maxSkew = 10 * time.Minute

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

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
		return s.fromQuote(ctx, chain[0], ratls.IdentityAttestation)
	case ratls.SourceAttestationV1:
		return s.fromQuote(ctx, chain[0], ratls.IdentityMessagePack)
	case ratls.SourceLegacy:
		return s.fromQuote(ctx, chain[0], ratls.IdentityLegacy)
	case ratls.SourceAppInfo:
		return s.fromKMS(chain, carried)
	}
	return identity{}, refuse(reasonIdentity, errNoAttestation)
}

// fromQuote is the identity that the quote of a certificate proves.
func (s *Server) fromQuote(ctx context.Context, leaf *x509.Certificate, proof string) (identity, error) {
	if now := s.config.Now(); now.After(leaf.NotAfter) || now.Add(maxSkew).Before(leaf.NotBefore) {
		return identity{}, refuse(reasonIdentity, fmt.Errorf("the client certificate is valid from %s to %s, and it is %s here: make one anew", stamp(leaf.NotBefore), stamp(leaf.NotAfter), stamp(now)))
	}
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
	return identity{proof: proof, quote: quote, info: info, binding: evidence.Binding, evidence: evidence, tlsKey: sha256.Sum256(leaf.RawSubjectPublicKeyInfo)}, nil
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
	return identity{
		proof: ratls.IdentityKMS, info: info, binding: ratls.BindingAppInfo, tlsKey: sha256.Sum256(carried.SPKI),
		evidence: &ratls.AppEvidence{InstanceID: hex.EncodeToString(info.InstanceID), Binding: ratls.BindingAppInfo},
	}, nil
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
	inst.IPv6 = r.IPv6
	inst.Key, inst.Ports, inst.Identity, inst.Binding, inst.Info = r.Key, r.Ports, id.proof, id.binding, id.info
	inst.RegisteredAt = now.UTC().Truncate(time.Second)
	if id.evidence == nil { // a refresh: the registry has evidence that is no weaker
		return inst, nil
	}
	var err error
	if inst.Ports, inst.Measured, err = effectivePorts(id.evidence.AppCompose, r.Ports); err != nil {
		return registry.Instance{}, refuse(reasonRequest, err)
	}
	inst.Evidence, err = json.Marshal(id.evidence)
	return inst, err
}
