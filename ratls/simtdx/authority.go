// Package simtdx is a TDX platform of software: a vendor with its certificate authorities and collateral, machines, and trust
// domains that measure dstack's event log and make quotes. What it makes verifies through the same code as what hardware makes,
// with collateral and revocation on, but below a root of its own, so that it is KindSimulatedTDX and nothing else. It shows
// faults on request.
//
// It protects nothing: its keys lie in the memory of the process.
//
// Formats: Intel TDX DCAP Quoting Library API, appendix A (quotes); Intel SGX PCK Certificate and CRL Profile Specification
// 1.5; Intel PCS API v4 (TCB info, QE identity).
package simtdx

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"
)

// Host is where the simulated root says that its revocation list is. Everything else is served under the URLs of Intel's PCS,
// which go-tdx-guest has built in. A [ratls.Cache] before a Getter of this package has to allow Host beside ratls.IntelHosts.
const Host = "certificates.simulated-tdx.invalid"

// rootCRLURL is the distribution point in all certificates.
const rootCRLURL = "https://" + Host + "/root.crl"

// Options are those of an [Authority].
type Options struct {
	// Now is the clock by which certificates and collateral are issued; nil is time.Now.
	Now func() time.Time
}

// Authority is the vendor: the root, its certificate authorities, and the collateral. Its methods may be called concurrently.
type Authority struct {
	// set by New or Load
	now                                 func() time.Time
	root, platformCA, processorCA, sign issuer

	mu     sync.Mutex
	issued map[Faults]*issue // guarded by mu
}

// issuer is a certificate with its key.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Common names that go-tdx-guest demands.
const (
	rootName        = "Intel SGX Root CA"
	platformCAName  = "Intel SGX PCK Platform CA"
	processorCAName = "Intel SGX PCK Processor CA"
	signingName     = "Intel SGX TCB Signing"
	pckName         = "Intel SGX PCK Certificate"
)

// New makes a vendor with fresh keys.
func New(o Options) (*Authority, error) {
	a := newAuthority(o)
	var err error
	if a.root, err = a.certify(issuer{}, rootName, 1, 30); err != nil {
		return nil, err
	}
	if a.platformCA, err = a.certify(a.root, platformCAName, 0, 15); err != nil {
		return nil, err
	}
	if a.processorCA, err = a.certify(a.root, processorCAName, 0, 15); err != nil {
		return nil, err
	}
	a.sign, err = a.certify(a.root, signingName, -1, 15)
	return a, err
}

func newAuthority(o Options) *Authority {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Authority{now: o.Now, issued: make(map[Faults]*issue)}
}

// Root returns the certificate that verifiers have to be given as their root.
func (a *Authority) Root() *x509.Certificate { return a.root.cert }

// Save returns the authority as PEM, private keys included.
func (a *Authority) Save() ([]byte, error) {
	var out []byte
	for _, i := range []issuer{a.root, a.platformCA, a.processorCA, a.sign} {
		key, err := x509.MarshalPKCS8PrivateKey(i.key)
		if err != nil {
			return nil, err
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})...)
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	}
	return out, nil
}

// Load restores what Save returned.
func Load(data []byte, o Options) (*Authority, error) {
	a := newAuthority(o)
	for _, part := range []struct {
		to   *issuer
		name string
	}{{&a.root, rootName}, {&a.platformCA, platformCAName}, {&a.processorCA, processorCAName}, {&a.sign, signingName}} {
		var err error
		if *part.to, data, err = loadIssuer(data, part.name); err != nil {
			return nil, fmt.Errorf("simulated TDX authority, %q: %w", part.name, err)
		}
	}
	if len(data) > 0 {
		return nil, errors.New("simulated TDX authority: more data follows")
	}
	return a, nil
}

// loadIssuer reads a certificate and its key, and returns what follows.
func loadIssuer(data []byte, name string) (issuer, []byte, error) {
	certBlock, data := pem.Decode(data)
	keyBlock, data := pem.Decode(data)
	if certBlock == nil || keyBlock == nil || certBlock.Type != "CERTIFICATE" || keyBlock.Type != "PRIVATE KEY" {
		return issuer{}, nil, errors.New("want a PEM certificate and a PEM private key")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return issuer{}, nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return issuer{}, nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) || cert.Subject.CommonName != name {
		return issuer{}, nil, errors.New("certificate and key do not belong together")
	}
	return issuer{cert, key}, data, nil
}

// certify makes a key and a certificate of it, signed by parent, or by itself when parent is zero. A pathLen below 0 makes an
// end entity.
func (a *Authority) certify(parent issuer, name string, pathLen, years int) (issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return issuer{}, err
	}
	template, err := a.template(&key.PublicKey, name, years)
	if err != nil {
		return issuer{}, err
	}
	if pathLen >= 0 {
		template.IsCA, template.MaxPathLen, template.MaxPathLenZero = true, pathLen, pathLen == 0
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	cert, err := create(template, parent, key)
	return issuer{cert, key}, err
}

// template is common to all certificates. Subject key identifiers are made here, for crypto/x509 gives none to end entities.
func (a *Authority) template(key *ecdsa.PublicKey, name string, years int) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 158))
	if err != nil {
		return nil, err
	}
	point, err := key.Bytes()
	if err != nil {
		return nil, err
	}
	id := sha1.Sum(point) // RFC 5280 section 4.2.1.2, method 1: an identifier, no security rests on it
	now := a.now().UTC().Truncate(time.Second)
	return &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject: pkix.Name{CommonName: name, Organization: []string{"Software TDX platform, not Intel"},
			Country: []string{"XX"}},
		NotBefore:             now.Add(-24 * time.Hour),
		NotAfter:              now.AddDate(years, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment,
		BasicConstraintsValid: true,
		SubjectKeyId:          id[:],
		CRLDistributionPoints: []string{rootCRLURL},
		SignatureAlgorithm:    x509.ECDSAWithSHA256,
	}, nil
}

// create signs template, by itself when parent is zero: crypto/x509 then leaves out the authority key identifier.
func create(template *x509.Certificate, parent issuer, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	if parent.cert == nil {
		parent = issuer{template, key}
		template.AuthorityKeyId = template.SubjectKeyId
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, &key.PublicKey, parent.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
