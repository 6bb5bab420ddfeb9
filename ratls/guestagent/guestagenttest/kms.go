package guestagenttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// KMS is the authority of a dstack network: below its root, each app has a CA of its own.
type KMS struct{ root *tls.Certificate }

// NewKMS makes one with fresh keys.
func NewKMS(t testing.TB) *KMS {
	t.Helper()
	return &KMS{root: authority(t, nil, "Dstack KMS CA")}
}

// Root is the certificate that everything descends from.
func (k *KMS) Root() *x509.Certificate { return k.root.Leaf }

// Certify makes a certificate for an app's key with the KMS's word on the app, and, where asked to, the guest's quote over the
// key: what GetTlsKey answers.
func (k *KMS) Certify(ctx context.Context, t testing.TB, td *simtdx.TD, withQuote bool, o ratls.CertOptions) (tls.Certificate, error) {
	t.Helper()
	info, err := td.Info()
	if err != nil {
		return tls.Certificate{}, err
	}
	o.Parent, o.AppID, o.AppUsage = authority(t, k.root, "Dstack App CA"), info.AppID, "app:custom"
	if o.AppInfo != nil {
		o.AppInfo = &info
	}
	if !withQuote {
		return ratls.NewCertificate(ctx, nil, o)
	}
	return ratls.NewCertificate(ctx, td, o)
}

// authority makes a CA, signed by itself without a parent.
func authority(t testing.TB, parent *tls.Certificate, name string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"Dstack"}, CommonName: name},
		NotBefore: time.Date(1975, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Now().AddDate(10, 0, 0),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if parent == nil {
		parent = &tls.Certificate{Leaf: template, PrivateKey: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.Leaf, key.Public(), parent.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: append([][]byte{der}, parent.Certificate...), PrivateKey: key, Leaf: leaf}
}
