package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	"dstack.host/gateway/certs"
)

// leafOf returns the first certificate in PEM.
func leafOf(t testing.TB, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no PEM in %q", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// served returns a running Certs for nested and separate base domains.
func served(t testing.TB) *certs.Certs {
	t.Helper()
	c, _ := start(t, certs.Config{
		Domains: []string{"dstack.host", "in.dstack.host", "other.host"}, Issuer: certs.IssuerInternal, Attestor: new(attestor),
		Storage: openStore(t, t.TempDir()),
	})
	await(t, "certificates", c.Ready())
	return c
}

func TestGetCertificateChoosesByName(t *testing.T) {
	c := served(t)
	for _, tt := range []struct {
		name string
		want string // the certificate's name, "" for none
	}{
		{"dstack.host", "dstack.host"},
		{"DStack.HOST", "dstack.host"},
		{"app.dstack.host", "*.dstack.host"},
		{"APP-8080s.dstack.host", "*.dstack.host"},
		{"other.host", "other.host"},
		{"in.dstack.host", "in.dstack.host"},
		{"app.in.dstack.host", "*.in.dstack.host"},
		{strings.Repeat("a", 63) + ".dstack.host", "*.dstack.host"},
		{"", ""},
		{".", ""},
		{"host", ""},
		{"localhost", ""},
		{"a.b.dstack.host", ""},
		{".dstack.host", ""},
		{"*.dstack.host", ""},
		{"dstack.host.", ""},
		{"evildstack.host", ""},
		{"dstack.host.evil.com", ""},
		{"app.dstack.host.evil.com", ""},
		{"127.0.0.1", ""},
		{"app.dstack.host\x00", ""},
	} {
		cert, err := c.GetCertificate(&tls.ClientHelloInfo{ServerName: tt.name})
		if (err == nil) != (tt.want != "") || errors.Is(err, certs.ErrNotReady) {
			t.Errorf("%q: %v, want %q", tt.name, err, tt.want)
		}
		if err == nil && cert.Leaf.DNSNames[0] != tt.want {
			t.Errorf("%q: served %q, want %q", tt.name, cert.Leaf.DNSNames, tt.want)
		}
	}
}

func TestGetCertificateBeforeReadySaysSo(t *testing.T) {
	c, err := certs.New(certs.Config{Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: new(attestor), Storage: openStore(t, t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"dstack.host", "app.dstack.host"} {
		if _, err := c.Lookup(name); !errors.Is(err, certs.ErrNotReady) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.Lookup("example.com"); err == nil || errors.Is(err, certs.ErrNotReady) {
		t.Errorf("example.com: %v", err)
	}
	if len(c.Keys()) != 0 || c.Root() != nil || c.Account() != "" {
		t.Errorf("keys %v, root %q, account %q", c.Keys(), c.Root(), c.Account())
	}
	select {
	case <-c.Ready():
		t.Error("ready")
	default:
	}
}

func TestGetCertificateDoesNotAllocate(t *testing.T) {
	c := served(t)
	hello := &tls.ClientHelloInfo{ServerName: "app.dstack.host"}
	if n := testing.AllocsPerRun(100, func() { c.GetCertificate(hello) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestKeysAreThoseServed(t *testing.T) {
	c := served(t)
	keys := c.Keys()
	if len(keys) != 6 {
		t.Fatalf("%d keys", len(keys))
	}
	seen := make(map[string]bool)
	for _, k := range keys {
		name := strings.Replace(k.Names[0], "*", "app", 1)
		got := leaf(t, c, name)
		if string(got.RawSubjectPublicKeyInfo) != string(k.SPKI) || !got.NotAfter.Equal(k.NotAfter) || k.Use != certs.UseCurrent {
			t.Errorf("%s: key %+v is not the one served", name, k)
		}
		if seen[string(k.SPKI)] {
			t.Errorf("%s: key is used twice", name)
		}
		seen[string(k.SPKI)] = true
	}
}

func BenchmarkGetCertificate(b *testing.B) {
	c := served(b)
	hello := &tls.ClientHelloInfo{ServerName: "app.dstack.host"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.GetCertificate(hello); err != nil {
			b.Fatal(err)
		}
	}
}

// Whatever name a client sends, the certificate it gets is for that name.
func FuzzGetCertificate(f *testing.F) {
	c := served(f)
	for _, s := range []string{"dstack.host", "app.dstack.host", "a.b.dstack.host", "*.dstack.host", "APP.dstack.host", "-.dstack.host", "a.dstack.host.", "\u212A.dstack.host", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		cert, err := c.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
		if err != nil {
			return
		}
		want := strings.ToLower(name)
		if _, base, ok := strings.Cut(cert.Leaf.DNSNames[0], "*."); ok {
			label, parent, _ := strings.Cut(want, ".")
			if want = "*." + base; label == "" || parent != base {
				t.Errorf("%q is not one label under %q", name, base)
			}
		}
		if cert.Leaf.DNSNames[0] != want {
			t.Errorf("%q is served %q", name, cert.Leaf.DNSNames)
		}
	})
}
