package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/caddyserver/certmagic"
)

// certificate is a served certificate with its parsed leaf; never changed once made.
type certificate = tls.Certificate

// errUnusable marks a certificate in storage that cannot be served: its parts do not belong together.
var errUnusable = errors.New("stored certificate is unusable")

// stored reads the certificate of name. The error is fs.ErrNotExist when it or its key is missing, errUnusable when they
// do not make a certificate for name.
func (c *Certs) stored(ctx context.Context, name string) (*certificate, error) {
	chain, err := c.storage.Load(ctx, certmagic.StorageKeys.SiteCert(c.issuer.IssuerKey(), name))
	if err != nil {
		return nil, err
	}
	key, err := c.storage.Load(ctx, certmagic.StorageKeys.SitePrivateKey(c.issuer.IssuerKey(), name))
	if err != nil {
		return nil, err
	}
	cert, err := parseCertificate(name, chain, key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnusable, err)
	}
	return cert, nil
}

// parseCertificate accepts a PEM chain and key that belong together and are for name, with a P-256 key.
func parseCertificate(name string, chain, key []byte) (*certificate, error) {
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, err
	}
	if cert.Leaf == nil {
		return nil, errors.New("leaf is not parsed")
	}
	if !slices.Contains(cert.Leaf.DNSNames, name) {
		return nil, fmt.Errorf("leaf is for %q", cert.Leaf.DNSNames)
	}
	if pub, ok := cert.Leaf.PublicKey.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("leaf's key is not ECDSA P-256")
	}
	return &cert, nil
}

// discard deletes a certificate that is unusable, as a write that was cut short leaves it behind. It looks once more
// under the lock that certmagic holds while it writes, for the parts do not match either while another node is writing.
func (c *Certs) discard(ctx context.Context, name string) error {
	lock := "issue_cert_" + name
	if err := c.storage.Lock(ctx, lock); err != nil {
		return err
	}
	defer c.storage.Unlock(ctx, lock)
	switch _, err := c.stored(ctx, name); {
	case err == nil || errors.Is(err, fs.ErrNotExist):
		return nil
	case !errors.Is(err, errUnusable):
		return err
	}
	c.cfg.Logger.Warn("replacing unusable stored certificate", "name", name)
	return c.storage.Delete(ctx, certmagic.StorageKeys.CertsSitePrefix(c.issuer.IssuerKey(), name))
}

// renewAt is when a certificate is due: when the last third of its life begins.
func renewAt(leaf *x509.Certificate) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotAfter.Add(-time.Duration(float64(life) * renewalWindow))
}
