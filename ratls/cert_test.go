package ratls_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"dstack.host/ratls"
)

// oid is one of dstack's (dstack 0.6 ra-tls/src/oids.rs).
func oid(last int) asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 62397, 1, last}
}

// ext is an extension with its content in the OCTET STRING that dstack puts around it.
func ext(t testing.TB, last int, content []byte) pkix.Extension {
	t.Helper()
	value, err := asn1.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oid(last), Value: value}
}

// selfSigned is a certificate with these extensions; Go's own parser refuses duplicates, so they are added after parsing.
func selfSigned(t testing.TB, key *ecdsa.PrivateKey, extensions ...pkix.Extension) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	cert.Extensions = append(cert.Extensions, extensions...)
	return cert
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestCertificatesOfBothFormsVerify(t *testing.T) {
	a := vendor(t)
	td := boot(t, a, machine{}, vm{AppCompose: "{}"})
	v := verifier(t, a, a.Getter(), ratls.Policy{})
	want, err := td.Info()
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]struct {
		options ratls.CertOptions
		source  ratls.Source
	}{
		"attestation":               {ratls.CertOptions{}, ratls.SourceAttestation},
		"legacy":                    {ratls.CertOptions{Legacy: true}, ratls.SourceLegacy},
		"with the issuer's word":    {ratls.CertOptions{AppID: want.AppID, AppInfo: &want, AppUsage: "app:custom"}, ratls.SourceAttestation},
		"for a name and an address": {ratls.CertOptions{Names: []string{"gateway.dstack.host", "127.0.0.1"}}, ratls.SourceAttestation},
	} {
		cert, err := ratls.NewCertificate(t.Context(), td, o.options)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		carried, err := ratls.ReadCertificate(cert.Leaf)
		if err != nil || carried.Source != o.source || carried.Usage != o.options.AppUsage {
			t.Errorf("%s: %v, source %q, usage %q", name, err, carried.Source, carried.Usage)
		}
		_, info, err := ratls.VerifyCertificate(t.Context(), v, cert.Leaf)
		if err != nil || !bytes.Equal(info.AppID, want.AppID) || !bytes.Equal(info.InstanceID, want.InstanceID) {
			t.Errorf("%s: %v, app %x", name, err, info.AppID)
		}
	}
}

func TestACertificateOfTheKMSCarriesItsWordWithoutAQuote(t *testing.T) {
	a := vendor(t)
	info, err := boot(t, a, machine{}, vm{AppCompose: "{}"}).Info()
	if err != nil {
		t.Fatal(err)
	}
	parent := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Dstack KMS CA"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, parent.Public(), parent)
	if err != nil {
		t.Fatal(err)
	}
	ca := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: parent}
	cert, err := ratls.NewCertificate(t.Context(), nil, ratls.CertOptions{Parent: ca, AppInfo: &info, AppID: info.AppID})
	if err != nil {
		t.Fatal(err)
	}
	carried, err := ratls.ReadCertificate(cert.Leaf)
	if err != nil || carried.Source != ratls.SourceAppInfo || carried.Quote != nil || !bytes.Equal(carried.AppInfo.AppID, info.AppID) {
		t.Errorf("%v, %+v", err, carried)
	}
	if _, _, err := ratls.VerifyCertificate(t.Context(), verifier(t, a, a.Getter(), ratls.Policy{}), cert.Leaf); refusedBy(err) != ratls.CheckCertificate {
		t.Errorf("verified without a quote: %v", err)
	}
	if _, err := ratls.NewCertificate(t.Context(), nil, ratls.CertOptions{AppInfo: &info}); err == nil {
		t.Error("a self-signed certificate vouches for itself")
	}
}

func TestReadCertificateRefuses(t *testing.T) {
	a := attestation()
	encoded, err := a.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	sound, log, info := ext(t, 8, encoded), ext(t, 2, []byte("[]")), ext(t, 9, fromHex(t, dstackAppInfo))
	key := newKey(t)
	for name, row := range map[string]struct {
		extensions []pkix.Extension
		fault      string
	}{
		"an extension twice":                {[]pkix.Extension{sound, sound}, "occurs twice"},
		"app info twice":                    {[]pkix.Extension{info, info}, "occurs twice"},
		"content without its wrapping":      {[]pkix.Extension{{Id: oid(8), Value: encoded}}, "not a DER OCTET STRING"},
		"something behind the wrapping":     {[]pkix.Extension{{Id: oid(8), Value: append(bytes.Clone(sound.Value), 5, 0)}}, "more bytes"},
		"both forms":                        {[]pkix.Extension{sound, log}, "both the current and the legacy"},
		"a legacy quote without a log":      {[]pkix.Extension{ext(t, 1, []byte{1})}, "only one of"},
		"a legacy log without a quote":      {[]pkix.Extension{log}, "only one of"},
		"a legacy log that is not one":      {[]pkix.Extension{ext(t, 1, []byte{1}), ext(t, 2, []byte("null"))}, "event log"},
		"an app id of 19 bytes":             {[]pkix.Extension{ext(t, 3, make([]byte, 19))}, "19 bytes"},
		"app info that is not one":          {[]pkix.Extension{ext(t, 9, []byte{0x98})}, "app info"},
		"an attestation that is not one":    {[]pkix.Extension{ext(t, 8, []byte{9})}, "no known version"},
		"an attestation of another machine": {[]pkix.Extension{ext(t, 8, []byte{0, 3})}, "not supported yet: AMD SEV-SNP"},
	} {
		if _, err := ratls.ReadCertificate(selfSigned(t, key, row.extensions...)); !matches(err, row.fault) {
			t.Errorf("%s: %v, want %q", name, err, row.fault)
		}
	}
	if carried, err := ratls.ReadCertificate(selfSigned(t, key)); err != nil || carried.Source != ratls.SourceNone {
		t.Errorf("a certificate without evidence: %v, %q", err, carried.Source)
	}
}

func TestVerifyCertificateRefuses(t *testing.T) {
	a := vendor(t)
	td := boot(t, a, machine{}, vm{AppCompose: "{}"})
	v := verifier(t, a, a.Getter(), ratls.Policy{})
	events, err := td.EventLog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info, err := td.Info()
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	over := func(data ratls.ReportData) []byte {
		raw, err := td.Quote(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	right := ratls.TaggedReportData(ratls.TagCertificate, spki)
	make := func(edit func(*ratls.Attestation)) pkix.Extension {
		sound := ratls.Attestation{Quote: over(right), Events: ratls.StripEvents(events), RuntimeEvents: ratls.RuntimeEvents(events), ReportData: right}
		edit(&sound)
		encoded, err := sound.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return ext(t, 8, encoded)
	}
	other := info
	other.AppID = bytes.Repeat([]byte{9}, 20)
	word, err := other.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		extensions []pkix.Extension
		check      string
	}{
		"sound": {[]pkix.Extension{make(func(*ratls.Attestation) {})}, ""},
		"a quote over another key": {[]pkix.Extension{make(func(at *ratls.Attestation) {
			at.Quote = over(ratls.TaggedReportData(ratls.TagCertificate, []byte("another")))
		})}, ratls.CheckReportData},
		"a quote over the key for another purpose": {[]pkix.Extension{make(func(at *ratls.Attestation) {
			at.Quote = over(ratls.TaggedReportData(ratls.TagZTCertificate, spki))
		})}, ratls.CheckReportData},
		"a statement that contradicts the quote": {[]pkix.Extension{make(func(at *ratls.Attestation) { at.ReportData[0]++ })}, ratls.CheckReportData},
		"a truncated log":                        {[]pkix.Extension{make(func(at *ratls.Attestation) { at.RuntimeEvents = at.RuntimeEvents[1:] })}, ratls.CheckReplay},
		"an event too many": {[]pkix.Extension{make(func(at *ratls.Attestation) {
			at.RuntimeEvents = append(at.RuntimeEvents, runtimeEvent("app-id", nil))
		})}, ratls.CheckReplay},
		"an event changed": {[]pkix.Extension{make(func(at *ratls.Attestation) {
			at.RuntimeEvents = append([]ratls.Event{}, at.RuntimeEvents...)
			at.RuntimeEvents[1].Payload = bytes.Repeat([]byte{9}, 20)
		})}, ratls.CheckReplay},
		"no quote":                     {nil, ratls.CheckCertificate},
		"an empty quote":               {[]pkix.Extension{make(func(at *ratls.Attestation) { at.Quote = nil })}, ratls.CheckQuoteParse},
		"the issuer names another app": {[]pkix.Extension{make(func(*ratls.Attestation) {}), ext(t, 3, bytes.Repeat([]byte{9}, 20))}, ratls.CheckAppInfo},
		"app info of another app":      {[]pkix.Extension{make(func(*ratls.Attestation) {}), ext(t, 9, word)}, ratls.CheckAppInfo},
	} {
		_, _, err := ratls.VerifyCertificate(t.Context(), v, selfSigned(t, key, row.extensions...))
		if (err == nil) != (row.check == "") || refusedBy(err) != row.check {
			t.Errorf("%s: %v, want a refusal by %q", name, err, row.check)
		}
	}
}

func FuzzCertificate(f *testing.F) {
	a := attestation()
	encoded, err := a.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encoded, []byte{}, []byte{}, fromHex(f, dstackAppInfo))
	f.Add([]byte{}, []byte{1}, []byte(`[{"imr":3,"event_type":134217729,"digest":"","event":"app-id","event_payload":"00"}]`), []byte{})
	key := newKey(f)
	f.Fuzz(func(t *testing.T, attestation, quote, log, info []byte) {
		var extensions []pkix.Extension
		for last, content := range map[int][]byte{8: attestation, 1: quote, 2: log, 9: info} {
			if len(content) > 0 {
				extensions = append(extensions, ext(t, last, content))
			}
		}
		carried, err := ratls.ReadCertificate(selfSigned(t, key, extensions...))
		if err == nil && carried.Source == ratls.SourceNone && len(extensions) > 0 {
			t.Error("evidence was overlooked")
		}
	})
}
