package ratls

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"slices"
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

// ProverConfig is what a [Prover] goes by.
type ProverConfig struct {
	// Platform is the environment that the gateway runs in.
	Platform Platform
	// Verifier supplies the collateral to staple, for the platform's own quotes and those of the applications.
	Verifier QuoteVerifier
	// ReferenceValues is passed on to relying parties; nil for none.
	ReferenceValues *ReferenceValues
}

// Prover makes attestation documents. Its methods may be called concurrently; quotes are as slow as the platform makes them.
type Prover struct {
	// set by NewProver
	platform   Platform
	collateral QuoteVerifier
	reference  *ReferenceValues
}

// NewProver checks the configuration. It makes no quote.
func NewProver(c ProverConfig) (*Prover, error) {
	var errs []error
	if c.Platform == nil {
		errs = append(errs, errors.New("prover needs a platform"))
	}
	if c.Verifier == nil {
		errs = append(errs, errors.New("prover needs a verifier for its collateral"))
	}
	if r := c.ReferenceValues; r != nil {
		if u, err := url.Parse(r.URL); err != nil || u.Scheme != "https" || u.Host == "" {
			errs = append(errs, fmt.Errorf("reference values %q are not at an https URL", r.URL))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &Prover{platform: c.Platform, collateral: c.Verifier, reference: c.ReferenceValues}, nil
}

// Prove makes a document of statement, bound to challenge unless it is nil, with the evidence of the instances behind the host.
// The instances in the statement and in apps have to be the same, with the same evidence; whoever has no evidence has nothing
// to prove. It costs one quote, and fails when the collateral of any quote cannot be had.
func (p *Prover) Prove(ctx context.Context, statement Statement, challenge *Challenge, apps []AppEvidence) (*Document, error) {
	d := &Document{Format: Format, Challenge: ChallengeProof{Path: []PathStep{}}, Apps: append([]AppEvidence{}, apps...), ReferenceValues: p.reference}
	if err := covers(&statement, d.Apps); err != nil {
		return nil, err
	}
	if challenge != nil {
		leaf, err := challenge.Leaf()
		if err != nil {
			return nil, err
		}
		d.Challenge = answer(*challenge, leaf)
	}
	var err error
	if d.Statement, err = statement.Text(); err != nil {
		return nil, err
	}
	data := GatewayReportData(d.Challenge.Root, []byte(d.Statement))
	raw, events, err := gather(ctx, p.platform, data)
	if err != nil {
		return nil, err
	}
	d.Gateway = GatewayEvidence{Kind: p.platform.Kind(), Quote: raw, EventLog: append([]Event{}, events...), VMConfig: p.platform.VMConfig()}
	if d.Collateral, err = p.staple(ctx, d); err != nil {
		return nil, err
	}
	return d, d.check()
}

// answer is the proof of the only challenge of a tree.
func answer(c Challenge, leaf [32]byte) ChallengeProof {
	proof := ChallengeProof{Nonce: (*Digest)(bytes.Clone(c.Nonce)), Path: []PathStep{}, Root: leaf}
	if len(c.Exporter) > 0 {
		proof.TLSExporter = (*Digest)(bytes.Clone(c.Exporter))
	}
	return proof
}

// covers reports why apps is not the evidence of exactly the instances that the statement names.
func covers(s *Statement, apps []AppEvidence) error {
	var instances []StatementInstance
	if s.App != nil {
		instances = s.App.Instances
	}
	if len(instances) != len(apps) {
		return fmt.Errorf("evidence of %d instances for a statement that names %d", len(apps), len(instances))
	}
	for _, i := range instances {
		at := slices.IndexFunc(apps, func(e AppEvidence) bool { return e.InstanceID == i.ID })
		if at < 0 {
			return fmt.Errorf("instance %s has no evidence", shorten(i.ID))
		}
		if got := apps[at].SHA256(); got != i.EvidenceSHA256 {
			return fmt.Errorf("evidence of instance %s has SHA-256 %q, the statement names %q", shorten(i.ID), got, shorten(i.EvidenceSHA256))
		}
	}
	return nil
}

// staple collects the collateral of all quotes, each answer once.
func (p *Prover) staple(ctx context.Context, d *Document) ([]Collateral, error) {
	stapled := []Collateral{}
	seen := make(map[string]bool)
	quotes := [][]byte{d.Gateway.Quote}
	for _, e := range d.Apps {
		if len(e.Quote) > 0 {
			quotes = append(quotes, e.Quote)
		}
	}
	for _, raw := range quotes {
		answers, err := p.collateral.Collateral(ctx, raw)
		if err != nil {
			return nil, fmt.Errorf("collateral of quote %x: %w", sha256.Sum256(raw), err)
		}
		for _, a := range answers {
			if !seen[a.URL] {
				seen[a.URL] = true
				stapled = append(stapled, a)
			}
		}
	}
	return stapled, nil
}
