package web_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"
)

// pki makes certificates of any kind.
type pki struct {
	t    *testing.T
	now  time.Time
	keys map[string]crypto.Signer
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{t: t, now: time.Now().Truncate(time.Second), keys: map[string]crypto.Signer{}}
	var err error
	for _, name := range []string{"issuer", "leaf", "other"} {
		if p.keys[name], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	if p.keys["p384"], err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if p.keys["rsa"], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	return p
}

// template is a good certificate of a name.
func (p *pki) template(name string) *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: p.now.Add(-time.Hour), NotAfter: p.now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true}
}

// authority is a good certificate of the issuer.
func (p *pki) authority() *x509.Certificate {
	c := p.template("issuer")
	c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	return c
}

func (p *pki) sign(c, parent *x509.Certificate, key, by string) []byte {
	p.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, p.keys[key].Public(), p.keys[by])
	if err != nil {
		p.t.Fatal(err)
	}
	return der
}

func (p *pki) list(c *x509.RevocationList, by string) []byte {
	p.t.Helper()
	issuer := p.authority()
	issuer.SubjectKeyId = []byte{1}
	c.Number, c.ThisUpdate, c.NextUpdate = big.NewInt(1), p.now, p.now.Add(time.Hour)
	der, err := x509.CreateRevocationList(rand.Reader, c, issuer, p.keys[by])
	if err != nil {
		p.t.Fatal(err)
	}
	return der
}

func TestThePageRefusesCertificates(t *testing.T) {
	dir, p := modules(t), newPKI(t)
	critical := pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}
	with := func(c *x509.Certificate, edit func(*x509.Certificate)) *x509.Certificate { edit(c); return c }
	issuer := func(edit func(*x509.Certificate)) []byte {
		c := with(p.authority(), edit)
		return p.sign(c, c, "issuer", "issuer")
	}
	leaf := func(edit func(*x509.Certificate)) []byte {
		return p.sign(with(p.template("leaf"), edit), p.authority(), "leaf", "issuer")
	}
	asIs := func(*x509.Certificate) {}
	good, ca := leaf(asIs), issuer(asIs)
	type one struct {
		Certificate []byte `json:"certificate"`
		Issuer      []byte `json:"issuer"`
		CRL         []byte `json:"crl,omitempty"`
		Depth       int    `json:"depth"`
		Now         int64  `json:"now"`
	}
	rows := []struct {
		name string
		one
		refused string // a part of the reason, "" for a good one
	}{
		{"good", one{Certificate: good, Issuer: ca}, ""},
		{"good list", one{CRL: p.list(&x509.RevocationList{}, "issuer"), Issuer: ca}, ""},
		{"path is long enough", one{Certificate: good, Issuer: issuer(func(c *x509.Certificate) { c.MaxPathLen = 1 }), Depth: 1}, ""},
		{"other name", one{Certificate: leaf(func(c *x509.Certificate) { c.Subject.CommonName = "leaf2" }), Issuer: ca}, "want \"leaf\""},
		{"two names", one{Certificate: leaf(func(c *x509.Certificate) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "leaf"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "other"}}
			c.Subject.CommonName = ""
		}), Issuer: ca}, "several common names"},
		{"other issuer's name", one{Certificate: p.sign(p.template("leaf"), with(p.authority(), func(c *x509.Certificate) { c.Subject.CommonName = "x" }), "leaf", "issuer"), Issuer: ca}, "another issuer"},
		{"issuer is no authority", one{Certificate: good, Issuer: issuer(func(c *x509.Certificate) { c.IsCA = false })}, "may not issue"},
		{"issuer has no constraints", one{Certificate: good, Issuer: issuer(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = false, false })}, "may not issue"},
		{"issuer may not sign", one{Certificate: good, Issuer: issuer(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })}, "may not issue"},
		{"path too long", one{Certificate: good, Issuer: issuer(func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }), Depth: 1}, "may not issue"},
		{"not signed by the issuer", one{Certificate: p.sign(p.template("leaf"), p.authority(), "leaf", "other"), Issuer: ca}, "not signed by"},
		{"expired", one{Certificate: leaf(func(c *x509.Certificate) { c.NotAfter = p.now.Add(-time.Second) }), Issuer: ca}, "is valid from"},
		{"not yet valid", one{Certificate: leaf(func(c *x509.Certificate) { c.NotBefore = p.now.Add(time.Second) }), Issuer: ca}, "is valid from"},
		{"unknown critical extension", one{Certificate: leaf(func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{critical} }), Issuer: ca}, "critical and unknown"},
		{"P-384", one{Certificate: p.sign(p.template("leaf"), p.authority(), "p384", "issuer"), Issuer: ca}, "not of P-256"},
		{"RSA", one{Certificate: p.sign(p.template("leaf"), p.authority(), "rsa", "issuer"), Issuer: ca}, "DER: tag 0x5"},
		{"signed with RSA", one{Certificate: p.sign(p.template("leaf"), p.authority(), "leaf", "rsa"), Issuer: ca}, "signature algorithm"},
		{"cut off", one{Certificate: good[:len(good)-1], Issuer: ca}, "longer than what holds it"},
		{"more follows", one{Certificate: append(append([]byte(nil), good...), 0), Issuer: ca}, "more data follows"},
		{"indefinite length", one{Certificate: append([]byte{0x30, 0x80}, good[4:]...), Issuer: ca}, "indefinite"},
		{"long form of a short length", one{Certificate: []byte{0x30, 0x81, 0x01, 0x00}, Issuer: ca}, "shortest form"},
		{"nothing", one{Certificate: []byte{}, Issuer: ca}, "cut off"},
		{"list by an issuer that may not", one{CRL: p.list(&x509.RevocationList{}, "issuer"), Issuer: issuer(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })}, "may not issue revocation lists"},
		{"list of another key", one{CRL: p.list(&x509.RevocationList{}, "other"), Issuer: ca}, "not signed by"},
		{"list of another issuer", one{CRL: p.list(&x509.RevocationList{}, "issuer"), Issuer: issuer(func(c *x509.Certificate) { c.Subject.CommonName = "x" })}, "another issuer"},
		{"list with a critical extension", one{CRL: p.list(&x509.RevocationList{ExtraExtensions: []pkix.Extension{critical}}, "issuer"), Issuer: ca}, "critical and unknown"},
		{"list with a critical extension of an entry", one{CRL: p.list(&x509.RevocationList{RevokedCertificateEntries: []x509.RevocationListEntry{
			{SerialNumber: big.NewInt(1), RevocationTime: p.now, ExtraExtensions: []pkix.Extension{critical}}}}, "issuer"), Issuer: ca}, "critical and unknown"},
		{"certificate for a list", one{CRL: good, Issuer: ca}, "DER"},
	}
	var cases []one
	for _, r := range rows {
		r.Now = p.now.UnixMilli()
		cases = append(cases, r.one)
	}
	var told []string
	node(t, "certificates.mjs", cases, &told, dir)
	for i, r := range rows {
		if (told[i] == "") != (r.refused == "") || !strings.Contains(told[i], r.refused) {
			t.Errorf("%s: %q, want %q", r.name, told[i], r.refused)
		}
	}
}
