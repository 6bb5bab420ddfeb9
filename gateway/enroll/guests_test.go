package enroll_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"math/big"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
)

// kms makes certificates as dstack's does (dstack 0.6 kms/src/main_service.rs, ra-tls/src/cert.rs).
type kms struct {
	root, temp *tls.Certificate
}

func newKMS(t testing.TB) *kms {
	t.Helper()
	return &kms{root: authority(t, nil, "Dstack KMS CA", 1), temp: authority(t, nil, "Dstack Client Temp CA", 1)}
}

// authority makes a CA, signed by itself without a parent.
func authority(t testing.TB, parent *tls.Certificate, name string, pathLen int, extra ...pkix.Extension) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"Dstack"}, CommonName: name},
		NotBefore: time.Date(1975, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2999, 1, 1, 0, 0, 0, 0, time.UTC),
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: pathLen, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, ExtraExtensions: extra,
	}
	c := issue(t, parent, template, newECKey(t))
	return &c
}

// issue signs a certificate; its chain is that of the parent.
func issue(t testing.TB, parent *tls.Certificate, template *x509.Certificate, key *ecdsa.PrivateKey) tls.Certificate {
	t.Helper()
	if parent == nil {
		parent = &tls.Certificate{Leaf: template, PrivateKey: key}
	}
	der := must(x509.CreateCertificate(rand.Reader, template, parent.Leaf, key.Public(), parent.PrivateKey))(t)
	return tls.Certificate{
		Certificate: append([][]byte{der}, parent.Certificate...), PrivateKey: key, Leaf: must(x509.ParseCertificate(der))(t),
	}
}

func newECKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

// ext is an extension of dstack's, by the last number of its identifier.
func ext(t testing.TB, n int, content []byte) pkix.Extension {
	t.Helper()
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 62397, 1, n}, Value: must(asn1.Marshal(content))(t)}
}

// appCA is the KMS's authority for one app.
func (k *kms) appCA(t testing.TB, app []byte) *tls.Certificate {
	t.Helper()
	return authority(t, k.root, "Dstack App CA", 0, ext(t, 3, app), ext(t, 4, []byte("app:ca")))
}

// guest is the client certificate of an instance, without a quote.
func (k *kms) guest(t testing.TB, info ratls.AppInfo) tls.Certificate {
	t.Helper()
	return must(ratls.NewCertificate(t.Context(), nil, ratls.CertOptions{
		CommonName: "dstack-guest-agent", Usage: clientAuth, Parent: k.appCA(t, info.AppID),
		AppID: info.AppID, AppUsage: "app:custom", AppInfo: &info,
	}))(t)
}

var clientAuth = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}

// leaf makes a client certificate by hand, for what no honest code makes. The extensions are made for its key.
func leaf(t testing.TB, parent *tls.Certificate, build func(spki []byte) []pkix.Extension, change ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	return leafFor(t, newECKey(t), parent, build, change...)
}

// leafFor is leaf for a key that is there.
func leafFor(t testing.TB, key *ecdsa.PrivateKey, parent *tls.Certificate, build func(spki []byte) []pkix.Extension, change ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "dstack-guest-agent"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: clientAuth,
		ExtraExtensions: build(must(x509.MarshalPKIXPublicKey(key.Public()))(t)),
	}
	for _, f := range change {
		f(template)
	}
	return issue(t, parent, template, key)
}

// carrying makes a self-signed certificate with an attestation of a domain over its key, that edit changes.
func carrying(t testing.TB, td *simtdx.TD, edit func(*ratls.Attestation)) tls.Certificate {
	t.Helper()
	return leaf(t, nil, func(spki []byte) []pkix.Extension {
		a := attestation(t, td, ratls.TaggedReportData(ratls.TagCertificate, spki))
		edit(&a)
		return []pkix.Extension{ext(t, 8, must(a.MarshalBinary())(t))}
	})
}

func attestation(t testing.TB, td *simtdx.TD, data ratls.ReportData) ratls.Attestation {
	t.Helper()
	events := must(td.EventLog(t.Context()))(t)
	return ratls.Attestation{
		Quote: must(td.Quote(t.Context(), data))(t), Events: ratls.StripEvents(events), RuntimeEvents: ratls.RuntimeEvents(events),
		ReportData: data, Config: td.VMConfig(),
	}
}

// attested is the certificate that a guest makes itself.
func attested(t testing.TB, td *simtdx.TD, change ...func(*ratls.CertOptions)) tls.Certificate {
	t.Helper()
	o := ratls.CertOptions{CommonName: "dstack-guest-agent", Usage: clientAuth}
	for _, f := range change {
		f(&o)
	}
	return must(ratls.NewCertificate(t.Context(), td, o))(t)
}

// statement is what a domain says of a WireGuard key and a session.
func statement(t testing.TB, td *simtdx.TD, key tunnel.PublicKey, challenge string) ratls.AppStatement {
	t.Helper()
	id := idOf(t, td)
	return ratls.AppStatement{
		AppID: id.App.String(), InstanceID: id.ID.String(), WGPublicKey: key.String(), Challenge: challenge, IssuedAt: time.Now(),
	}
}

// evidence has a statement quoted, and returns what goes into the request.
func evidence(t testing.TB, td *simtdx.TD, s ratls.AppStatement, edit ...func(*ratls.AppEvidence)) string {
	t.Helper()
	e := must(ratls.NewAppEvidence(t.Context(), td, s))(t)
	for _, f := range edit {
		f(e)
	}
	return string(must(json.Marshal(e))(t))
}

// idOf is who a domain is.
func idOf(t testing.TB, td *simtdx.TD) registry.Instance {
	t.Helper()
	info := must(td.Info())(t)
	return registry.Instance{
		ID: registry.InstanceID(info.InstanceID), App: registry.AppID(info.AppID), Compose: registry.ComposeHash(info.ComposeHash), Info: info,
	}
}

// fromKMS is what the KMS says of a domain: its device is not known.
func fromKMS(t testing.TB, td *simtdx.TD) ratls.AppInfo {
	t.Helper()
	info := must(td.Info())(t)
	none := sha256.Sum256(nil)
	info.DeviceID = none[:]
	return info
}

// shortInfo is app info as dstack up to 0.5.11 writes it: eight elements.
func shortInfo(t testing.TB, info ratls.AppInfo) []byte {
	t.Helper()
	info.InitScriptHashes = nil
	long := must(info.MarshalBinary())(t)
	if !bytes.HasPrefix(long, []byte{0x99}) || !bytes.HasSuffix(long, []byte{0xc0}) {
		t.Fatalf("app info %x is no array of nine that ends with nil", long)
	}
	return append([]byte{0x98}, long[1:len(long)-1]...)
}

// with puts certificates behind the chain of c.
func with(c tls.Certificate, more ...[]byte) tls.Certificate {
	c.Certificate = append(c.Certificate[:len(c.Certificate):len(c.Certificate)], more...)
	return c
}

func ptr[T any](v T) *T { return &v }

func ecKey(c *tls.Certificate) *ecdsa.PrivateKey { return c.PrivateKey.(*ecdsa.PrivateKey) }

// messagePack is version 1 of an attestation (dstack 0.6 dstack-attest/src/v1.rs): maps with named members.
func messagePack(t testing.TB, a ratls.Attestation) []byte {
	t.Helper()
	type runtimeEvent struct {
		Event   string `msgpack:"event"`
		Payload []byte `msgpack:"payload"`
		Version int    `msgpack:"version"`
	}
	type tdx struct {
		Quote    []byte `msgpack:"quote"`
		EventLog []any  `msgpack:"event_log"`
	}
	type stack struct {
		ReportData    []byte         `msgpack:"report_data"`
		RuntimeEvents []runtimeEvent `msgpack:"runtime_events"`
		Config        string         `msgpack:"config"`
	}
	type tagged struct {
		Kind string `msgpack:"kind"`
		Data any    `msgpack:"data"`
	}
	s := stack{ReportData: a.ReportData[:], Config: a.Config}
	for _, e := range a.RuntimeEvents {
		s.RuntimeEvents = append(s.RuntimeEvents, runtimeEvent{e.Name, append([]byte{}, e.Payload...), e.Version})
	}
	return must(msgpack.Marshal(struct {
		Version  int    `msgpack:"version"`
		Platform tagged `msgpack:"platform"`
		Stack    tagged `msgpack:"stack"`
	}{1, tagged{"tdx", tdx{Quote: a.Quote, EventLog: []any{}}}, tagged{"dstack", s}}))(t)
}
