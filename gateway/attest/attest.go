package attest

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"dstack.host/gateway/certs"
	"dstack.host/gateway/registry"
	"dstack.host/gateway/store"
	"dstack.host/ratls"
)

const (
	// quoteTimeout bounds the making of one document once it is its turn. A TDX guest makes about one quote a second.
	quoteTimeout = 30 * time.Second
	// defaultPatience is how long a caller may stand in line.
	defaultPatience = 30 * time.Second
	// maxRounds is how many apps' answers are waited for at once, one round for each.
	maxRounds = 64
)

// Certificates are what the gateway serves TLS with, as [certs.Certs] has them. The channel of Changed is closed with the next
// change of any of the others' answers.
type Certificates interface {
	Keys() []certs.Key
	CAA() []certs.CAA
	Account() string
	Changed() <-chan struct{}
}

// Registry is who is registered, as [registry.Registry] has it. The channel of Changed is closed with the next snapshot.
type Registry interface {
	Snapshot() *registry.Snapshot
	Changed() <-chan struct{}
}

// Config is what an [Attester] goes by.
type Config struct {
	// Bases are the base domains, in lower case; Node is the gateway's name for itself.
	Bases []string
	Node  string
	// Validity is how long a document is valid. One without a nonce is quoted anew when half of it has gone.
	Validity time.Duration
	// A client may ask for one document with a nonce every NonceInterval, and for NonceBurst at once after a pause.
	NonceInterval time.Duration
	NonceBurst    int
	// Patience is how long a caller may wait for its document; 0 is 30 s.
	Patience time.Duration
	// Platform makes the quotes, Verifier judges those of apps and has the collateral of all.
	Platform ratls.Platform
	Verifier ratls.QuoteVerifier
	// Root is that of a simulated platform, which the page for people accepts and marks as such; nil for Intel's.
	Root *x509.Certificate
	// Certs and Registry are what there is to attest.
	Certs    Certificates
	Registry Registry
	// Dial connects to a port of an instance through the tunnel.
	Dial func(ctx context.Context, inst *registry.Instance, port uint16) (net.Conn, error)
	// Port is the one that clients use, for the page; nil means 443.
	Port func() int
	// Explorer answers at /explorer on the gateway's own names; nil for nothing there.
	Explorer http.Handler
	// Store keeps the records of attested TLS keys below "attested-keys/"; nil keeps none, and acme-info then lists none.
	Store *store.Store
	// Logger takes the log; nil discards it.
	Logger *slog.Logger
}

// check reports all faults.
func (c Config) check() error {
	var errs []error
	for _, part := range []struct {
		name string
		is   bool
	}{
		{"base domain", len(c.Bases) > 0}, {"platform", c.Platform != nil}, {"verifier", c.Verifier != nil},
		{"certificates", c.Certs != nil}, {"registry", c.Registry != nil}, {"way to dial instances", c.Dial != nil},
	} {
		if !part.is {
			errs = append(errs, fmt.Errorf("no %s", part.name))
		}
	}
	if c.Validity < time.Second {
		errs = append(errs, fmt.Errorf("validity of %s is shorter than a second, the unit of a statement's times", c.Validity))
	}
	if c.NonceInterval <= 0 || c.NonceBurst < 1 {
		errs = append(errs, errors.New("nonce interval must be longer than nothing, and the burst at least 1"))
	}
	if c.Patience < 0 {
		errs = append(errs, fmt.Errorf("patience is %s", c.Patience))
	}
	return errors.Join(errs...)
}

// Attester makes attestation documents and serves them. Its methods may be called concurrently, but Run once.
type Attester struct {
	// set by New
	config  Config
	prover  *ratls.Prover
	chain   ratls.Chain // the gateway's view of its own documents
	rootPEM []byte      // of a simulated platform; nil for hardware
	log     *slog.Logger
	limit   *limiter
	keys    atomic.Pointer[keyring] // replaced by watchKeys

	// image is that of this gateway, set by its first quote of a key
	image atomic.Pointer[ratls.Hex]

	quoting chan struct{} // one place: the right to have a quote made
	line    *line         // callers who wait
	cache   cache
}

// New checks the configuration, and starts and quotes nothing. Callers wait until Run runs.
func New(c Config) (*Attester, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	prover, err := ratls.NewProver(ratls.ProverConfig{Platform: c.Platform, Verifier: c.Verifier})
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	c.Patience = cmp.Or(c.Patience, defaultPatience)
	a := &Attester{
		config: c, prover: prover, log: c.Logger, limit: newLimiter(c.NonceInterval, c.NonceBurst),
		quoting: make(chan struct{}, 1), line: newLine(),
	}
	a.keys.Store(&keyring{changed: make(chan struct{})})
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if c.Root != nil {
		a.chain.Roots = []ratls.VerifierConfig{{}, {Root: c.Root}}
		a.rootPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Root.Raw})
	}
	return a, nil
}

// Run has quotes made until ctx ends, then returns nil.
func (a *Attester) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { a.answerAll(ctx); return nil })
	for range maxRounds {
		tasks.Go(func() error { a.answerRounds(ctx); return nil })
	}
	tasks.Go(func() error { a.renew(ctx); return nil })
	if a.config.Store != nil {
		tasks.Go(func() error { return a.watchKeys(ctx) })
		tasks.Go(func() error { a.attestKeys(ctx); return nil })
	}
	return tasks.Wait()
}

// turn waits for the right to have a quote made. It is given in the order of asking.
func (a *Attester) turn(ctx context.Context) (release func(), err error) {
	select {
	case a.quoting <- struct{}{}:
		return func() { <-a.quoting }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
