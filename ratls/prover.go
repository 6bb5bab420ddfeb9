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

// Challenges are challenges that one quote answers: a Merkle tree over them. It does not change.
type Challenges struct {
	root   Digest
	proofs []ChallengeProof
}

// NewChallenges builds the tree, of one leaf at least and of 2^32 at most, the longest path that verifiers walk.
func NewChallenges(list []Challenge) (*Challenges, error) {
	leaves := make([][32]byte, len(list))
	for i, c := range list {
		var err error
		if leaves[i], err = c.Leaf(); err != nil {
			return nil, fmt.Errorf("challenge %d: %w", i, err)
		}
	}
	root, paths, err := Tree(leaves)
	if err != nil {
		return nil, err
	}
	cs := &Challenges{root: root, proofs: make([]ChallengeProof, len(list))}
	for i, c := range list {
		cs.proofs[i] = c.proof(root, paths[i])
	}
	return cs, nil
}

// proof is what the document says of the challenge.
func (c Challenge) proof(root Digest, path []PathStep) ChallengeProof {
	proof := ChallengeProof{Nonce: (*Digest)(bytes.Clone(c.Nonce)), Path: append([]PathStep{}, path...), Root: root}
	if len(c.Exporter) > 0 {
		proof.TLSExporter = (*Digest)(bytes.Clone(c.Exporter))
	}
	return proof
}

// Root is the root of the tree: what is quoted, and what applications are challenged with where their evidence is to be fresh.
func (c *Challenges) Root() Digest { return c.root }

// Len is the number of challenges.
func (c *Challenges) Len() int { return len(c.proofs) }

// Proof is the way from challenge i to the root.
func (c *Challenges) Proof(i int) ChallengeProof { return c.proofs[i] }

// Batch is one quote and the documents that it makes: one for each challenge, which differ only in the way from the challenge to
// the root. It does not change.
type Batch struct {
	shared     Document // but for its challenge
	challenges *Challenges
	head, tail []byte // of the JSON text, around the challenge
}

// The JSON text of a document around its challenge: the members of a Document before and after it, in their order.
type (
	documentHead struct {
		Format    string `json:"format"`
		Statement string `json:"statement"`
	}
	documentTail struct {
		Gateway         GatewayEvidence  `json:"gateway"`
		Apps            []AppEvidence    `json:"apps"`
		Collateral      []Collateral     `json:"collateral"`
		ReferenceValues *ReferenceValues `json:"reference_values,omitempty"`
	}
)

// Len is the number of documents.
func (b *Batch) Len() int {
	if b.challenges == nil {
		return 1
	}
	return b.challenges.Len()
}

// Document is the document for challenge i. It shares memory with the others: read it only.
func (b *Batch) Document(i int) *Document {
	d := b.shared
	d.Challenge = ChallengeProof{Path: []PathStep{}}
	if b.challenges != nil {
		d.Challenge = b.challenges.proofs[i]
	}
	return &d
}

// Text is the JSON text of the document for challenge i in three pieces, of which the second alone is the challenge's own. The
// others are shared: they must not be modified.
func (b *Batch) Text(i int) ([3][]byte, error) {
	proof, err := marshal(b.Document(i).Challenge)
	return [3][]byte{b.head, proof, b.tail}, err
}

// render makes the shared pieces of the text: each an object of its own, whose braces give way to the challenge between them.
func (b *Batch) render() error {
	head, err := marshal(documentHead{b.shared.Format, b.shared.Statement})
	if err != nil {
		return err
	}
	tail, err := marshal(documentTail{b.shared.Gateway, b.shared.Apps, b.shared.Collateral, b.shared.ReferenceValues})
	if err != nil {
		return err
	}
	b.head = append(bytes.TrimSuffix(head, []byte("}")), `,"challenge":`...)
	b.tail = append([]byte(","), bytes.TrimPrefix(tail, []byte("{"))...)
	return nil
}

// Prove makes a document of statement, bound to challenge unless it is nil, with the evidence of the instances behind the host.
// The instances in the statement and in apps have to be the same, with the same evidence; whoever has no evidence has nothing
// to prove. It costs one quote, and fails when the collateral of any quote cannot be had.
func (p *Prover) Prove(ctx context.Context, statement Statement, challenge *Challenge, apps []AppEvidence) (*Document, error) {
	var challenges *Challenges
	if challenge != nil {
		var err error
		if challenges, err = NewChallenges([]Challenge{*challenge}); err != nil {
			return nil, err
		}
	}
	b, err := p.ProveBatch(ctx, statement, challenges, apps)
	if err != nil {
		return nil, err
	}
	return b.Document(0), nil
}

// ProveBatch is Prove for many challenges at the price of one quote, or for none when challenges is nil.
func (p *Prover) ProveBatch(ctx context.Context, statement Statement, challenges *Challenges, apps []AppEvidence) (*Batch, error) {
	b := &Batch{challenges: challenges, shared: Document{Format: Format, Apps: append([]AppEvidence{}, apps...), ReferenceValues: p.reference}}
	d := &b.shared
	if err := covers(&statement, d.Apps); err != nil {
		return nil, err
	}
	var root Digest
	if challenges != nil {
		root = challenges.root
	}
	var err error
	if d.Statement, err = statement.Text(); err != nil {
		return nil, err
	}
	if d.Gateway, err = p.Quote(ctx, GatewayReportData(root, []byte(d.Statement))); err != nil {
		return nil, err
	}
	if d.Collateral, err = p.staple(ctx, d); err != nil {
		return nil, err
	}
	if err := b.Document(0).check(); err != nil {
		return nil, err
	}
	return b, b.render()
}

// Quote has the platform quote data, and gathers what is needed to read the quote: the event log, which replays to it, and the
// configuration. It serves what is no document of ours, such as dstack's records of TLS keys.
func (p *Prover) Quote(ctx context.Context, data ReportData) (GatewayEvidence, error) {
	raw, events, err := gather(ctx, p.platform, data)
	if err != nil {
		return GatewayEvidence{}, err
	}
	return GatewayEvidence{Kind: p.platform.Kind(), Quote: raw, EventLog: append([]Event{}, events...), VMConfig: p.platform.VMConfig()}, nil
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
