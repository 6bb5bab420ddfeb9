package certs_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/certs"
)

func TestInternalIssuerServesBaseAndWildcard(t *testing.T) {
	c, _ := start(t, certs.Config{
		Domains: []string{"dstack.localhost", "other.localhost"}, Issuer: certs.IssuerInternal, Attestor: new(attestor),
		Storage: openStore(t, t.TempDir()),
	})
	await(t, "certificates", c.Ready())
	roots := pool(t, c.Root())

	for _, name := range []string{"dstack.localhost", "gateway.dstack.localhost", "other.localhost", "x.other.localhost"} {
		chain := handshake(t, c, name, roots)
		got := chain[0]
		if life := got.NotAfter.Sub(got.NotBefore); life > 30*24*time.Hour+time.Hour {
			t.Errorf("%s: valid for %s", name, life)
		}
		if got.IsCA || len(got.IPAddresses) != 0 || len(got.DNSNames) != 1 {
			t.Errorf("%s: CA %v, names %q %v", name, got.IsCA, got.DNSNames, got.IPAddresses)
		}
	}
	forbidden := []certs.CAA{{Tag: "issue", Value: ";"}, {Tag: "issuewild", Value: ";"}}
	if diff := cmp.Diff(forbidden, c.CAA()); diff != "" {
		t.Errorf("CAA (-want +got)\n%s", diff)
	}
	if c.Account() != "" {
		t.Errorf("account %q", c.Account())
	}
}

// Whoever trusts our root trusts it for one domain, even if its key is stolen.
func TestInternalRootSignsForItsDomainOnly(t *testing.T) {
	c, _ := start(t, certs.Config{Domains: []string{"dstack.localhost"}, Issuer: certs.IssuerInternal, Attestor: new(attestor), Storage: openStore(t, t.TempDir())})
	await(t, "certificates", c.Ready())
	root := leafOf(t, c.Root())

	if years := root.NotAfter.Year() - root.NotBefore.Year(); years != 10 {
		t.Errorf("root is valid for %d years", years)
	}
	if !root.PermittedDNSDomainsCritical || !root.MaxPathLenZero {
		t.Errorf("constraints critical %v, path length zero %v", root.PermittedDNSDomainsCritical, root.MaxPathLenZero)
	}
	if diff := cmp.Diff([]string{"dstack.localhost"}, root.PermittedDNSDomains); diff != "" {
		t.Errorf("permitted domains (-want +got)\n%s", diff)
	}
	if len(root.ExcludedIPRanges) != 2 {
		t.Errorf("excluded addresses: %v", root.ExcludedIPRanges)
	}
}

func TestRequestIsHeldToTheConfiguredDomains(t *testing.T) {
	p256 := ecKey(t, elliptic.P256())
	names := func(n ...string) *x509.CertificateRequest { return &x509.CertificateRequest{DNSNames: n} }
	u := &url.URL{Scheme: "https", Host: "dstack.host"}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}

	for _, tt := range []struct {
		name string
		csr  *x509.CertificateRequest
		key  crypto.Signer
		want string // the domain, "" when refused
	}{
		{"base", names("dstack.host"), p256, "dstack.host"},
		{"wildcard", names("*.dstack.host"), p256, "dstack.host"},
		{"both", names("dstack.host", "*.dstack.host"), p256, "dstack.host"},
		{"second base", names("*.other.host"), p256, "other.host"},
		{"foreign domain", names("example.com"), p256, ""},
		{"foreign wildcard", names("*.example.com"), p256, ""},
		{"top-level wildcard", names("*.host"), p256, ""},
		{"bare wildcard", names("*"), p256, ""},
		{"app name", names("app.dstack.host"), p256, ""},
		{"wildcard below", names("*.app.dstack.host"), p256, ""},
		{"double wildcard", names("*.*.dstack.host"), p256, ""},
		{"suffix of the string only", names("evildstack.host"), p256, ""},
		{"upper case", names("DSTACK.host"), p256, ""},
		{"trailing dot", names("dstack.host."), p256, ""},
		{"two bases", names("dstack.host", "other.host"), p256, ""},
		{"foreign beside ours", names("dstack.host", "example.com"), p256, ""},
		{"no name", &x509.CertificateRequest{}, p256, ""},
		{"common name only", &x509.CertificateRequest{Subject: pkix.Name{CommonName: "dstack.host"}}, p256, ""},
		{"common name beside", &x509.CertificateRequest{Subject: pkix.Name{CommonName: "example.com"}, DNSNames: []string{"dstack.host"}}, p256, ""},
		{"address", &x509.CertificateRequest{DNSNames: []string{"dstack.host"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, p256, ""},
		{"mail", &x509.CertificateRequest{DNSNames: []string{"dstack.host"}, EmailAddresses: []string{"a@dstack.host"}}, p256, ""},
		{"URI", &x509.CertificateRequest{DNSNames: []string{"dstack.host"}, URIs: []*url.URL{u}}, p256, ""},
		{"CA extension", &x509.CertificateRequest{DNSNames: []string{"dstack.host"}, ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}},
		}}, p256, ""},
		{"P-384", names("dstack.host"), ecKey(t, elliptic.P384()), ""},
		{"Ed25519", names("dstack.host"), ed, ""},
		{"RSA", names("dstack.host"), rsaKey, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := certs.CheckRequest(request(t, tt.csr, tt.key), []string{"dstack.host", "other.host"})
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}

	t.Run("signature of another key", func(t *testing.T) {
		csr := request(t, names("dstack.host"), p256)
		csr.PublicKey = ecKey(t, elliptic.P256()).Public()
		if _, err := certs.CheckRequest(csr, []string{"dstack.host"}); err == nil {
			t.Error("accepted")
		}
	})
}

func TestRenewalMakesNewKeysAndKeepsTheRoot(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := certs.NewInDirectory(certs.Config{Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: new(attestor), Lifetime: 12 * time.Hour}, dir)
		stop := run(t, c)
		await(t, "certificates", c.Ready())
		root, first := c.Root(), c.Keys()
		if len(first) != 2 {
			t.Fatalf("%d keys", len(first))
		}

		due := certs.RenewAt(leaf(t, c, "dstack.host"))
		time.Sleep(time.Until(due) - time.Minute)
		synctest.Wait()
		if diff := cmp.Diff(first, c.Keys()); diff != "" {
			t.Fatalf("renewed before it was due (-was +is)\n%s", diff)
		}
		changed := c.Changed()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		await(t, "change", changed)
		second := c.Keys()
		for i := range first {
			if bytes.Equal(first[i].SPKI, second[i].SPKI) {
				t.Errorf("%q: renewed with the old key", first[i].Names)
			}
			if !second[i].NotAfter.After(first[i].NotAfter) {
				t.Errorf("%q: expires at %s, before that at %s", first[i].Names, second[i].NotAfter, first[i].NotAfter)
			}
		}
		// A fortnight later it is still being renewed, under the same root.
		time.Sleep(14 * 24 * time.Hour)
		handshake(t, c, "app.dstack.host", pool(t, root))
		if !bytes.Equal(root, c.Root()) {
			t.Error("the root has changed")
		}
		stop()
	})
}

func TestRestartKeepsCertificatesAndRoot(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	cfg := certs.Config{Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: new(attestor), Storage: s}
	c, stop := start(t, cfg)
	await(t, "certificates", c.Ready())
	root, keys := c.Root(), c.Keys()
	stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	cfg.Storage = openStore(t, dir)
	c, _ = start(t, cfg)
	await(t, "certificates after restart", c.Ready())
	if !bytes.Equal(root, c.Root()) {
		t.Error("another root")
	}
	if diff := cmp.Diff(keys, c.Keys()); diff != "" {
		t.Errorf("keys (-before +after)\n%s", diff)
	}
}

func TestNodesShareRootAndCertificates(t *testing.T) {
	cfg := certs.Config{Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: new(attestor), Storage: openStore(t, t.TempDir())}
	one, _ := start(t, cfg)
	other, _ := start(t, cfg)
	await(t, "certificates", one.Ready())
	await(t, "certificates", other.Ready())
	if !bytes.Equal(one.Root(), other.Root()) {
		t.Error("roots differ")
	}
	if diff := cmp.Diff(one.Keys(), other.Keys()); diff != "" {
		t.Errorf("keys (-one +other)\n%s", diff)
	}
}

func ecKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(t *testing.T, template *x509.CertificateRequest, key crypto.Signer) *x509.CertificateRequest {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}
