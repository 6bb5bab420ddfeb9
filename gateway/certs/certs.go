// Package certs keeps the TLS certificates of the gateway: for every base domain one for the domain and one for its
// wildcard, each with a P-256 key that is made anew on every renewal. certmagic drives obtaining and renewing; the
// issuer is an internal certificate authority or an ACME directory whose dns-01 challenges our own DNS server answers.
// Keys, certificates and the ACME account live in the store, so that nodes share them and a restart keeps them.
//
// Serving reads an immutable snapshot: a TLS handshake takes no lock and does no I/O.
package certs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"golang.org/x/sync/errgroup"
)

const (
	// checkInterval is how often storage is looked at anyhow; what another node renews is told by the store.
	checkInterval = 10 * time.Minute
	// attemptTimeout bounds one attempt to obtain or renew, waiting for another node's attempt included.
	attemptTimeout = 5 * time.Minute
	// firstRetry and lastRetry are the shortest and longest pause after a failed attempt.
	firstRetry = 15 * time.Second
	lastRetry  = time.Hour
	// renewalWindow is the part of a certificate's life, at its end, in which it is renewed.
	renewalWindow = 1.0 / 3
	// switchMargin is how long before its end a certificate is replaced at the latest, though the next was not told for long.
	switchMargin = time.Minute
)

// Certs obtains, renews and serves the certificates of the base domains. Its methods are safe for concurrent use.
type Certs struct {
	cfg     Config // set by New
	storage vault
	issuer  issuer
	woken   map[string]chan struct{} // by name; holds one: storage has another certificate
	serving serving
}

// issuer is what Run needs of an issuer beyond certmagic's.
type issuer interface {
	certmagic.Issuer
	// load reads from storage what the issuer keeps there. It is called, until it succeeds, before any Issue.
	load(ctx context.Context) error
	// close releases connections. It is called when no Issue runs any more.
	close()
}

// New checks cfg, reports all its faults together, and prepares to serve. Nothing is read or started before Run.
func New(cfg Config) (*Certs, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("certs: %w", err)
	}
	return build(cfg, newStorage(cfg.Storage)), nil
}

// build makes a Certs of a checked cfg, over storage in place of cfg.Storage.
func build(cfg Config, storage vault) *Certs {
	c := &Certs{cfg: cfg, storage: storage, woken: make(map[string]chan struct{})}
	c.serving.init(cfg.Domains)
	for _, name := range c.serving.names {
		c.woken[name] = make(chan struct{}, 1)
	}
	switch cfg.Issuer {
	case IssuerACME:
		c.issuer = newACMEIssuer(cfg, c.storage, c.serving.setAccount)
	default:
		c.issuer = &internalIssuer{domains: cfg.Domains, lifetime: cfg.Lifetime, storage: c.storage, changed: c.serving.setRoots}
	}
	return c
}

// Run obtains what is missing, renews what comes near its end, and follows what other nodes do, until ctx ends; it then
// waits for everything it started and returns nil. Failures are logged and tried again, ever more slowly. Run may be
// called once.
func (c *Certs) Run(ctx context.Context) error {
	magic, stop := c.magic()
	defer stop()
	defer c.issuer.close()

	if !c.retry(ctx, nil, "issuer state not loaded", func(ctx context.Context) (time.Duration, error) {
		return 0, c.issuer.load(ctx)
	}) {
		return nil
	}
	var g errgroup.Group
	g.Go(func() error { return c.storage.watch(ctx, c.wake) })
	for _, name := range c.serving.names {
		g.Go(func() error {
			for c.retry(ctx, c.woken[name], "certificate not renewed", func(ctx context.Context) (time.Duration, error) {
				return c.maintain(ctx, magic, name)
			}, slog.String("name", name)) {
			}
			return nil
		})
	}
	return g.Wait()
}

// magic returns the certmagic configuration, independent of certmagic's defaults.
//
// Its cache stays empty and is there because certmagic demands one: serving reads our snapshot, and the renewals that a
// cache starts in the background belong to a queue of the whole process that nobody can wait for.
func (c *Certs) magic() (cfg *certmagic.Config, stop func()) {
	logger := zapLogger(c.cfg.Logger)
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return cfg, nil },
		// certmagic also takes a certificate for due that expires within five of these intervals.
		RenewCheckInterval: minLifetime / 20,
		OCSPCheckInterval:  24 * time.Hour,
		Logger:             logger,
	})
	cfg = certmagic.New(cache, certmagic.Config{
		RenewalWindowRatio: renewalWindow,
		Issuers:            []certmagic.Issuer{attesting{c.issuer, c.cfg.Attestor}},
		KeySource:          certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
		OCSP:               certmagic.OCSPConfig{DisableStapling: true},
		Storage:            c.storage,
		DisableARI:         true,
		Logger:             logger,
	})
	return cfg, cache.Stop
}

// wake has the certificate looked at whose file in storage changed.
func (c *Certs) wake(key string) {
	for name, woken := range c.woken {
		if strings.HasSuffix(key, "/"+certmagic.StorageKeys.Safe(name)+".crt") {
			select {
			case woken <- struct{}{}:
			default:
			}
		}
	}
}

// retry calls do until it succeeds, pausing after each failure, and then pauses as long as do said; woken ends a pause. It
// reports false when ctx ended meanwhile.
func (c *Certs) retry(ctx context.Context, woken <-chan struct{}, failure string, do func(context.Context) (time.Duration, error), args ...any) bool {
	for attempt := 0; ; attempt++ {
		pause, err := do(ctx)
		if ctx.Err() != nil {
			return false
		}
		if err != nil {
			pause = backoff(attempt)
			c.cfg.Logger.With(args...).Error(failure, slog.Any("error", err), slog.Duration("retry_in", pause))
		}
		if !sleep(ctx, pause, woken) {
			return false
		}
		if err == nil {
			return true
		}
	}
}

// backoff returns the pause after failed attempt n (0 is the first): doubling from firstRetry to lastRetry, less up to a
// fifth at random so that nodes do not fail in step.
//
// certmagic's own retries are not used: they hold the cluster's lock for as long as they go on, up to 30 days, so that a
// node that cannot reach the authority would keep those that can from trying.
func backoff(n int) time.Duration {
	d := min(lastRetry, firstRetry<<min(n, 20))
	return d - rand.N(d/5)
}

// sleep waits for d, or until woken, and reports whether ctx lasted.
func sleep(ctx context.Context, d time.Duration, woken <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-woken:
	}
	return true
}

// maintain makes the certificate of name what it should be and serves it: one look at storage, and at most one attempt
// to obtain or renew. It returns when to look again.
func (c *Certs) maintain(ctx context.Context, magic *certmagic.Config, name string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()

	cert, err := c.stored(ctx, name)
	switch now := time.Now(); {
	case err == nil && now.Before(renewAt(cert.Leaf)):
		return c.serve(ctx, name, cert)
	case err == nil:
		if now.Before(cert.Leaf.NotAfter) {
			if _, err := c.serve(ctx, name, cert); err != nil {
				return 0, err
			}
		}
		err = magic.RenewCertSync(ctx, name, false)
	case errors.Is(err, fs.ErrNotExist):
		err = magic.ObtainCertSync(ctx, name)
	case errors.Is(err, errUnusable):
		if err = c.discard(ctx, name); err == nil {
			err = magic.ObtainCertSync(ctx, name)
		}
	}
	if err != nil {
		return 0, err
	}
	if cert, err = c.stored(ctx, name); err != nil {
		return 0, err
	}
	return c.serve(ctx, name, cert)
}

// serve makes cert the one that is served for name, once its key is attested and was told for long enough. It returns when to
// look again. Until then, and when the key can't be attested, what was served goes on serving.
func (c *Certs) serve(ctx context.Context, name string, cert *certificate) (time.Duration, error) {
	if !c.serving.serves(name, cert) {
		if err := c.cfg.Attestor.AttestKey(ctx, cert.Leaf.RawSubjectPublicKeyInfo); err != nil {
			return 0, fmt.Errorf("the new key is not attested, so it does not serve: %w", err)
		}
		if wait := c.serving.announce(name, cert, c.cfg.Lead); wait > 0 {
			return min(wait, checkInterval), nil
		}
		c.serving.set(name, cert)
		c.cfg.Logger.Info("serving certificate", slog.String("name", name), slog.Time("not_after", cert.Leaf.NotAfter),
			slog.String("issuer", cert.Leaf.Issuer.String()), slog.String("serial", cert.Leaf.SerialNumber.Text(16)))
	}
	return min(checkInterval, max(time.Second, time.Until(renewAt(cert.Leaf)))), nil
}
