package ratls

import (
	"errors"
	"fmt"
)

// Format names the attestation document's form. A verifier that does not know it refuses the document.
const Format = "https://dstack.host/ra-https/v1"

// Bounds of a document.
const (
	maxDocument   = 16 << 20
	maxCollateral = 64
	maxPath       = 32
)

// Document is what the gateway answers at /.well-known/attestation: everything that a relying party needs to verify, offline
// but for its own roots, what runs on both sides of the tunnel.
type Document struct {
	// Format is the constant of that name.
	Format string `json:"format"`
	// Statement is the exact text of a [Statement]. It is hashed as received.
	Statement string `json:"statement"`
	// Challenge is the way from the relying party's challenge to the root that the gateway's quote is over.
	Challenge ChallengeProof `json:"challenge"`
	// Gateway is the evidence of the gateway; Apps that of the instances that the statement names.
	Gateway GatewayEvidence `json:"gateway"`
	Apps    []AppEvidence   `json:"apps"`
	// Collateral is the vendor's, verbatim, for every quote of the document.
	Collateral []Collateral `json:"collateral"`
	// ReferenceValues says where the gateway's operator publishes the measurements to expect; nil when not configured.
	ReferenceValues *ReferenceValues `json:"reference_values,omitempty"`
}

// ChallengeProof shows that a challenge is in the Merkle tree below Root. Without a challenge Nonce, TLSExporter and Path are
// empty, and Root is zero.
type ChallengeProof struct {
	Nonce       *Digest    `json:"nonce"`
	TLSExporter *Digest    `json:"tls_exporter"`
	Path        []PathStep `json:"path"`
	Root        Digest     `json:"root"`
}

// GatewayEvidence is the evidence of the gateway itself.
type GatewayEvidence struct {
	Kind     Kind    `json:"kind"`
	Quote    Base64  `json:"quote"`
	EventLog []Event `json:"event_log"`
	VMConfig string  `json:"vm_config"`
}

// ReferenceValues is a published list of measurements: where it is and the SHA-256 of its bytes.
type ReferenceValues struct {
	URL    string `json:"url"`
	SHA256 Digest `json:"sha256"`
}

// ParseDocument reads a document strictly: at most 16 MiB, unknown, missing and repeated members refused, its parts within
// their bounds. Nothing is verified.
func ParseDocument(data []byte) (*Document, error) {
	d := new(Document)
	if err := DecodeStrict(data, maxDocument, false, d); err != nil {
		return nil, fmt.Errorf("document: %w", err)
	}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("document: %w", err)
	}
	return d, nil
}

// check reports all faults of the document's form.
func (d *Document) check() error {
	var errs []error
	if d.Format != Format {
		errs = append(errs, fmt.Errorf("format is %q, want %q", shorten(d.Format), Format))
	}
	if n := len(d.Challenge.Path); n > maxPath {
		errs = append(errs, fmt.Errorf("challenge path has %d steps, at most %d are walked", n, maxPath))
	}
	if n := len(d.Gateway.Quote); n == 0 || n > maxQuoteSize {
		errs = append(errs, fmt.Errorf("gateway quote has %d bytes, want 1 to %d", n, maxQuoteSize))
	}
	if n := len(d.Apps); n > maxInstances {
		errs = append(errs, fmt.Errorf("evidence of %d instances, at most %d are read", n, maxInstances))
	}
	if n := len(d.Collateral); n > maxCollateral {
		errs = append(errs, fmt.Errorf("%d pieces of collateral, at most %d are read", n, maxCollateral))
	}
	errs = append(errs, checkEvents(d.Gateway.EventLog))
	for i := range d.Apps {
		if err := d.Apps[i].check(); err != nil {
			errs = append(errs, fmt.Errorf("app %d: %w", i, err))
		}
	}
	return errors.Join(errs...)
}
