package certs

import (
	"context"
	"crypto/x509"
	"fmt"

	"github.com/caddyserver/certmagic"
)

// attesting is an issuer that is asked only for keys that are attested, so that no authority, and no log of certificate
// transparency, ever sees one that has no record.
type attesting struct {
	certmagic.Issuer
	attestor Attestor
}

// Issue has the key of csr attested, then has the certificate issued.
func (a attesting) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	if err := a.attestor.AttestKey(ctx, csr.RawSubjectPublicKeyInfo); err != nil {
		return nil, fmt.Errorf("the new key is not attested, so no certificate is requested: %w", err)
	}
	return a.Issuer.Issue(ctx, csr)
}
