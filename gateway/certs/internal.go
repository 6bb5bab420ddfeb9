package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
)

const (
	// rootYears is how long a root of the internal issuer is valid.
	rootYears = 10
	// backdate is how far a certificate's validity begins in the past, for clients whose clock is behind.
	backdate = time.Minute
)

// oidSubjectAltName is the extension of RFC 5280 section 4.2.1.6, the only one that a request may carry.
var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// internalIssuer is a certmagic.Issuer that signs with one root per base domain, kept in storage. A root may sign names
// of its domain only (critical name constraints, RFC 5280 section 4.2.1.10), so whoever trusts it trusts it for no other.
type internalIssuer struct {
	domains  []string
	lifetime time.Duration
	storage  vault
	changed  func(roots []byte) // told the roots, PEM, once they are loaded

	roots map[string]*authority // by domain; set by load, before any Issue
}

// authority is a certificate authority of one domain.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var _ issuer = (*internalIssuer)(nil)

// IssuerKey names this issuer's directory in storage.
func (i *internalIssuer) IssuerKey() string { return IssuerInternal }

// load reads the root of every domain, making those that are missing. Nodes that do so at the same time get the same.
func (i *internalIssuer) load(ctx context.Context) error {
	roots := make(map[string]*authority)
	var bundle []byte
	for _, d := range i.domains {
		a, err := i.authority(ctx, d)
		if err != nil {
			return fmt.Errorf("root of %s: %w", d, err)
		}
		roots[d] = a
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...)
	}
	i.roots = roots
	i.changed(bundle)
	return nil
}

func (i *internalIssuer) close() {}

func (i *internalIssuer) authority(ctx context.Context, domain string) (*authority, error) {
	key := "internal/" + domain + ".pem"
	value, err := i.storage.Load(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		var fresh []byte
		if fresh, err = newAuthority(domain, time.Now()); err != nil {
			return nil, err
		}
		value, err = i.storage.create(ctx, key, fresh)
	}
	if err != nil {
		return nil, err
	}
	return parseAuthority(value)
}

// Issue signs a request that this gateway made for a base domain or its wildcard, and refuses every other.
func (i *internalIssuer) Issue(_ context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	domain, err := checkRequest(csr, i.domains)
	if err != nil {
		return nil, fmt.Errorf("internal issuer: %w", err)
	}
	der, err := i.roots[domain].sign(csr, time.Now(), i.lifetime)
	if err != nil {
		return nil, fmt.Errorf("internal issuer: %w", err)
	}
	return &certmagic.IssuedCertificate{Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

// checkRequest returns the domain that csr is for. The request must be signed by its own P-256 key, have no subject and
// no extension but the names, and name nothing but that domain and its wildcard.
func checkRequest(csr *x509.CertificateRequest, domains []string) (string, error) {
	if err := csr.CheckSignature(); err != nil {
		return "", fmt.Errorf("request: %w", err)
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return "", errors.New("request: key is not ECDSA P-256")
	}
	if len(csr.Subject.Names) != 0 {
		return "", errors.New("request: subject is not empty")
	}
	if len(csr.EmailAddresses)+len(csr.IPAddresses)+len(csr.URIs) != 0 {
		return "", errors.New("request: names something other than DNS names")
	}
	for _, e := range csr.Extensions {
		if !e.Id.Equal(oidSubjectAltName) {
			return "", fmt.Errorf("request: unwanted extension %s", e.Id)
		}
	}
	if len(csr.DNSNames) == 0 {
		return "", errors.New("request: no name")
	}
	domain := strings.TrimPrefix(csr.DNSNames[0], "*.")
	if !slices.Contains(domains, domain) {
		return "", fmt.Errorf("request: %q is not a base domain of this gateway or its wildcard", csr.DNSNames[0])
	}
	for _, n := range csr.DNSNames[1:] {
		if strings.TrimPrefix(n, "*.") != domain {
			return "", fmt.Errorf("request: %q is beside %q", n, csr.DNSNames[0])
		}
	}
	return domain, nil
}

// sign returns a server certificate for the key and names of a checked request.
func (a *authority) sign(csr *x509.CertificateRequest, now time.Time, lifetime time.Duration) ([]byte, error) {
	end := now.Add(lifetime)
	if end.After(a.cert.NotAfter) {
		return nil, fmt.Errorf("root expires at %s, before the certificate would", a.cert.NotAfter.Format(time.RFC3339))
	}
	template := &x509.Certificate{
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		DNSNames:              csr.DNSNames,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	return x509.CreateCertificate(rand.Reader, template, a.cert, csr.PublicKey, a.key)
}

// newAuthority returns a fresh root for domain as PEM: certificate, then key.
func newAuthority(domain string, now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:                     pkix.Name{CommonName: "dstack-gateway internal CA for " + clip(domain, 33)},
		NotBefore:                   now.Add(-backdate),
		NotAfter:                    now.AddDate(rootYears, 0, 0),
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid:       true,
		IsCA:                        true,
		MaxPathLenZero:              true,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{domain},
		ExcludedIPRanges:            []*net.IPNet{anyAddress(net.IPv4len), anyAddress(net.IPv6len)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	pem.Encode(&out, &pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	return out.Bytes(), nil
}

// anyAddress is the range of all addresses of n octets.
func anyAddress(n int) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, n), Mask: make(net.IPMask, n)}
}

// clip shortens s to n octets; a common name holds 64 (RFC 5280 appendix A.1), and this one is for people only.
func clip(s string, n int) string { return s[:min(len(s), n)] }

// parseAuthority reads what newAuthority wrote. Errors do not show the value.
func parseAuthority(value []byte) (*authority, error) {
	certBlock, rest := pem.Decode(value)
	if certBlock == nil || certBlock.Type != "CERTIFICATE" {
		return nil, errors.New("stored value does not begin with a certificate")
	}
	keyBlock, rest := pem.Decode(rest)
	if keyBlock == nil || keyBlock.Type != "PRIVATE KEY" || len(rest) != 0 {
		return nil, errors.New("stored value is not a certificate and its key")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, errors.New("stored key is not PKCS #8")
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || !ec.PublicKey.Equal(cert.PublicKey) || !cert.IsCA {
		return nil, errors.New("stored key is not that of the stored root")
	}
	return &authority{cert: cert, key: ec}, nil
}
