package certs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/mail"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"

	"dstack.host/gateway/store"
)

// The values of Config.Issuer.
const (
	// IssuerInternal signs with a certificate authority of our own, one per base domain, kept in the store.
	IssuerInternal = "internal"
	// IssuerACME obtains certificates from an ACME directory (RFC 8555) with the dns-01 challenge only.
	IssuerACME = "acme"
)

const (
	// maxLifetime bounds leaf certificates of the internal issuer, and is their lifetime by default.
	maxLifetime = 30 * 24 * time.Hour
	// minLifetime leaves room for a renewal and its retries in the last third of a certificate's life.
	minLifetime = 10 * time.Minute
	// defaultCAAIdentity is the issuer domain name that CAA records name (RFC 8659 section 4.2) unless configured.
	defaultCAAIdentity = "letsencrypt.org"
	// challengeLabel is prepended to a domain to name its dns-01 records (RFC 8555 section 8.4).
	challengeLabel = "_acme-challenge"
)

// Challenges publishes dns-01 answers in the zone that the gateway itself serves.
type Challenges interface {
	// SetTXT adds value to the TXT records at fqdn (lower case, no trailing dot) beside the values that are there
	// already, and returns when every DNS server of ours that is alive answers it. Adding a value twice is no error.
	SetTXT(ctx context.Context, fqdn, value string) error
	// DeleteTXT removes value, and only value, from the TXT records at fqdn. A value that is not there is no error.
	DeleteTXT(ctx context.Context, fqdn, value string) error
}

// Attestor has the TEE of this gateway quote what relying parties must know before it is used.
type Attestor interface {
	// AttestKey returns when the quote over a public key (DER SubjectPublicKeyInfo) is on record and published. Asking for
	// one that is on record costs nothing.
	AttestKey(ctx context.Context, spki []byte) error
	// AttestAccount does so for the URI of an ACME account.
	AttestAccount(ctx context.Context, uri string) error
}

// Config says which certificates to keep and who issues them.
type Config struct {
	// Domains are the base domains, in lower case and without trailing dot ("dstack.host"). Each gets a certificate for
	// itself and one for its wildcard. At least one.
	Domains []string
	// Issuer is IssuerInternal or IssuerACME.
	Issuer string
	// Directory is the URL of the ACME directory; empty is Let's Encrypt. IssuerACME only.
	Directory string
	// CARoots verify the TLS certificate of the ACME directory; nil is the system's pool. IssuerACME only.
	CARoots *x509.CertPool
	// Email is given as contact when the ACME account is registered; empty registers without contact.
	Email string
	// CAAIdentity is the issuer domain name that the ACME authority looks for in CAA records; empty is
	// "letsencrypt.org".
	CAAIdentity string
	// Lifetime of leaf certificates of the internal issuer, from ten minutes to 30 days; zero is 30 days.
	Lifetime time.Duration
	// Attestor is asked before a certificate is requested and once more before it serves. Required: what it refuses is not
	// served.
	Attestor Attestor
	// Lead is how long the key of a renewed certificate is told (Key.Use is UseNext) before it serves, unless the one before
	// ends earlier: as long as statements about keys are valid, so that no valid one lacks a key that serves. Zero is no
	// time at all.
	Lead time.Duration
	// Storage keeps keys, certificates and the ACME account below "certs/". Required.
	Storage *store.Store
	// Challenges publishes dns-01 answers. Required with IssuerACME.
	Challenges Challenges
	// Logger receives what this package and its libraries log; nil discards it.
	Logger *slog.Logger
}

// withDefaults returns c with the documented defaults in place of zero values.
func (c Config) withDefaults() Config {
	if c.Directory == "" {
		c.Directory = certmagic.LetsEncryptProductionCA
	}
	if c.CAAIdentity == "" {
		c.CAAIdentity = defaultCAAIdentity
	}
	if c.Lifetime == 0 {
		c.Lifetime = maxLifetime
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// check returns every fault of c, defaults already in place, joined; nil when there is none.
func (c Config) check() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	if len(c.Domains) == 0 {
		fault("domains: none given; name at least one base domain, such as \"dstack.localhost\"")
	}
	seen := make(map[string]bool)
	for _, d := range c.Domains {
		if err := checkDomain(d); err != nil {
			fault("domains: %q: %w", d, err)
		} else if seen[d] {
			fault("domains: %q is given twice", d)
		}
		seen[d] = true
	}
	if c.Storage == nil {
		fault("storage: required")
	}
	if c.Attestor == nil {
		fault("attestor: required")
	}
	if c.Lead < 0 {
		fault("lead: %s is negative", c.Lead)
	}
	switch c.Issuer {
	case IssuerInternal:
		if c.Lifetime < minLifetime || c.Lifetime > maxLifetime {
			fault("lifetime: %s is not between %s and %s", c.Lifetime, minLifetime, maxLifetime)
		}
	case IssuerACME:
		faults = append(faults, c.checkACME()...)
	default:
		fault("issuer: %q is neither %q nor %q", c.Issuer, IssuerInternal, IssuerACME)
	}
	return errors.Join(faults...)
}

// checkACME returns the faults of the fields that only IssuerACME uses.
func (c Config) checkACME() []error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	if u, err := url.Parse(c.Directory); err != nil {
		fault("directory: %w", err)
	} else if u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		fault("directory: %q is not an https URL of an ACME directory", c.Directory)
	}
	if c.Email != "" {
		if a, err := mail.ParseAddress(c.Email); err != nil || a.Address != c.Email {
			fault("email: %q is not a plain mail address", c.Email)
		}
	}
	if err := checkDomain(c.CAAIdentity); err != nil {
		fault("caa identity: %q: %w", c.CAAIdentity, err)
	}
	if c.Challenges == nil {
		fault("challenges: required with issuer %q", IssuerACME)
	}
	if c.Directory == certmagic.LetsEncryptProductionCA || c.Directory == certmagic.LetsEncryptStagingCA {
		for _, d := range c.Domains {
			if !certmagic.SubjectQualifiesForPublicCert("*." + d) {
				fault("domains: %q is a private name that no public authority signs; use issuer %q", d, IssuerInternal)
			}
		}
	}
	return faults
}

// checkDomain accepts a canonical DNS name of two or more labels: lower-case letters, digits and hyphens (RFC 952,
// RFC 1123 section 2.1), short enough for the challenge label in front.
func checkDomain(name string) error {
	if max := 253 - len(challengeLabel) - 1; len(name) > max {
		return fmt.Errorf("longer than %d octets", max)
	}
	labels := strings.Split(name, ".")
	if len(labels) < 2 {
		return errors.New("needs at least two labels")
	}
	for _, l := range labels {
		if err := checkLabel(l); err != nil {
			return err
		}
	}
	return nil
}

// checkLabel accepts one canonical host name label.
func checkLabel(l string) error {
	if l == "" || len(l) > 63 {
		return errors.New("has a label that is empty or longer than 63 octets")
	}
	for _, r := range l {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return fmt.Errorf("has %q, which is not a lower-case letter, digit or hyphen", r)
		}
	}
	if l[0] == '-' || l[len(l)-1] == '-' {
		return errors.New("has a label that begins or ends with a hyphen")
	}
	return nil
}
