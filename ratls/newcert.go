package ratls

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// CertOptions says what [NewCertificate] puts into a certificate beside evidence.
type CertOptions struct {
	// CommonName is the subject, "dstack" when empty.
	CommonName string
	// Names are the subject alternative names: IP addresses as such, anything else as a DNS name. May be empty.
	Names []string
	// Usage are the extended key usages; client and server authentication when nil.
	Usage []x509.ExtKeyUsage
	// NotBefore and NotAfter default to an hour before now and ten days after, the lifetime of dstack's client certificates.
	NotBefore, NotAfter time.Time
	// Legacy writes the quote and the whole event log as dstack before 0.5.6 did, instead of an encoded attestation.
	Legacy bool
	// AppID and AppInfo are the issuer's word on the application, left out when nil. AppUsage is what the certificate is for,
	// as "app:custom"; left out when empty.
	AppID    []byte
	AppInfo  *AppInfo
	AppUsage string
	// Parent signs the certificate and is appended to its chain; without it the certificate signs itself.
	Parent *tls.Certificate
}

// NewCertificate makes a fresh P-256 key and an RA-TLS certificate for it, with a quote of p over the key. p may be nil for a
// certificate that carries only the issuer's word, which needs a parent and application info.
func NewCertificate(ctx context.Context, p Platform, o CertOptions) (tls.Certificate, error) {
	if p == nil && (o.Parent == nil || o.AppInfo == nil) {
		return tls.Certificate{}, errors.New("certificate without a platform needs a parent and application info")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template, err := o.template()
	if err != nil {
		return tls.Certificate{}, err
	}
	if p != nil {
		evidence, err := quoteExtensions(ctx, p, key.Public(), o.Legacy)
		if err != nil {
			return tls.Certificate{}, err
		}
		template.ExtraExtensions = append(template.ExtraExtensions, evidence...)
	}
	return o.sign(template, key)
}

// quoteExtensions has the key quoted and returns the extensions that carry the evidence.
func quoteExtensions(ctx context.Context, p Platform, key crypto.PublicKey, legacy bool) ([]pkix.Extension, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	data := TaggedReportData(TagCertificate, spki)
	raw, events, err := gather(ctx, p, data)
	if err != nil {
		return nil, err
	}
	if legacy {
		log, err := marshal(events)
		if err != nil {
			return nil, err
		}
		return extensions(content{oidQuote, raw}, content{oidEventLog, log})
	}
	a := Attestation{Quote: raw, Events: StripEvents(events), RuntimeEvents: RuntimeEvents(events), ReportData: data, Config: p.VMConfig()}
	encoded, err := a.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return extensions(content{oidAttestation, encoded})
}

// content is what one extension carries.
type content struct {
	id   asn1.ObjectIdentifier
	data []byte
}

// extensions wraps each content into an OCTET STRING.
func extensions(contents ...content) ([]pkix.Extension, error) {
	var list []pkix.Extension
	for _, c := range contents {
		value, err := asn1.Marshal(c.data)
		if err != nil {
			return nil, err
		}
		list = append(list, pkix.Extension{Id: c.id, Value: value})
	}
	return list, nil
}

// template returns the certificate without its evidence.
func (o CertOptions) template() (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	statements, err := o.statements()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject:      pkix.Name{CommonName: o.CommonName},
		NotBefore:    o.NotBefore, NotAfter: o.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: o.Usage,
		BasicConstraintsValid: true,
		ExtraExtensions:       statements,
	}
	if t.Subject.CommonName == "" {
		t.Subject.CommonName = "dstack"
	}
	if t.ExtKeyUsage == nil {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	if t.NotBefore.IsZero() {
		t.NotBefore = time.Now().Add(-time.Hour)
	}
	if t.NotAfter.IsZero() {
		t.NotAfter = time.Now().AddDate(0, 0, 10)
	}
	for _, name := range o.Names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	return t, nil
}

// statements returns the extensions that are the issuer's word.
func (o CertOptions) statements() ([]pkix.Extension, error) {
	var contents []content
	if o.AppID != nil {
		if len(o.AppID) != appIDSize {
			return nil, fmt.Errorf("app id has %d bytes, want %d", len(o.AppID), appIDSize)
		}
		contents = append(contents, content{oidAppID, o.AppID})
	}
	if o.AppUsage != "" {
		contents = append(contents, content{oidUsage, []byte(o.AppUsage)})
	}
	if o.AppInfo != nil {
		encoded, err := o.AppInfo.MarshalBinary()
		if err != nil {
			return nil, err
		}
		contents = append(contents, content{oidAppInfo, encoded})
	}
	return extensions(contents...)
}

// sign returns the signed certificate with its chain.
func (o CertOptions) sign(template *x509.Certificate, key *ecdsa.PrivateKey) (tls.Certificate, error) {
	issuer, signer, chain := template, crypto.PrivateKey(key), [][]byte(nil)
	if o.Parent != nil {
		if len(o.Parent.Certificate) == 0 {
			return tls.Certificate{}, errors.New("parent has no certificate")
		}
		parent, err := x509.ParseCertificate(o.Parent.Certificate[0])
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("parent: %w", err)
		}
		issuer, signer, chain = parent, o.Parent.PrivateKey, o.Parent.Certificate
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: append([][]byte{der}, chain...), PrivateKey: key, Leaf: leaf}, nil
}
