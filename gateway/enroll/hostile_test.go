package enroll_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"net/http"
	"testing"
	"time"

	"dstack.host/gateway/enroll"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// resident registers an instance for hostile rows to run into, and returns its domain.
func (w *world) resident(t testing.TB) *simtdx.TD {
	t.Helper()
	td := w.boot(t, simtdx.VM{AppCompose: `{"name":"resident"}`})
	if a := register(t, w.at, attested(t, td), body(newKey())); a.status != http.StatusOK {
		t.Fatalf("resident: %d %s", a.status, a.body)
	}
	return td
}

// tampered makes a certificate whose quote is damaged, in a copy, after the attestation was made.
func tampered(t testing.TB, td *simtdx.TD, damage func(quote []byte) []byte) tls.Certificate {
	t.Helper()
	return carrying(t, td, func(a *ratls.Attestation) { a.Quote = damage(bytes.Clone(a.Quote)) })
}

// Offsets in a quote of version 4 and 5 (Intel TDX DCAP Quoting Library API, appendix A).
const (
	signedSizeV4 = 48 + 584
	signedSizeV5 = 48 + 6 + 648
	authSizeV4   = signedSizeV4 + 4 + 64 + 64 + 6 + 384 + 64
)

func TestCertificatesWhoseQuoteDoesNotHold(t *testing.T) {
	w := newWorld(t)
	resident := w.resident(t)
	machine := func(o simtdx.MachineOptions) *simtdx.TD {
		return must(must(w.vendor.Machine(o))(t).Boot(simtdx.VM{AppCompose: "{}"}))(t)
	}
	good := w.boot(t, simtdx.VM{AppCompose: "{}"})
	stranger := must(simtdx.New(simtdx.Options{}))(t)
	edit := func(f func(*ratls.Attestation)) tls.Certificate { return carrying(t, good, f) }
	tests := []struct {
		name string
		cert tls.Certificate
		text string
	}{
		{"debug TD", carrying(t, w.boot(t, simtdx.VM{AppCompose: "{}", Debug: true}), keep), "invalid quote: td-attributes"},
		{"revoked platform with a versioned module", carrying(t, machine(simtdx.MachineOptions{Platform: ratls.StatusRevoked}), keep), "invalid quote: tcb: platform is Revoked"},
		{"out-of-date platform with a versioned module", carrying(t, machine(simtdx.MachineOptions{Platform: ratls.StatusOutOfDate}), keep), "invalid quote: tcb: platform is OutOfDate"},
		{"out-of-date module", carrying(t, machine(simtdx.MachineOptions{Module: ratls.StatusOutOfDate}), keep), "invalid quote: tcb: TDX module is OutOfDate"},
		{"Processor CA", carrying(t, machine(simtdx.MachineOptions{ProcessorCA: true}), keep), "invalid quote: quote-root"},
		{"another vendor's root", carrying(t, must(must(stranger.Machine(simtdx.MachineOptions{}))(t).Boot(simtdx.VM{AppCompose: "{}"}))(t), keep), "invalid quote: quote-root"},
		{"flipped bit", tampered(t, good, func(q []byte) []byte { q[100] ^= 1; return q }), "invalid quote: quote-signature"},
		{"something after the quote", tampered(t, good, func(q []byte) []byte { return append(q, 1) }), "invalid quote: quote-parse"},
		{"panic: signed data of size 0", tampered(t, good, func(q []byte) []byte {
			binary.LittleEndian.PutUint32(q[signedSizeV4:], 0)
			return q
		}), "invalid quote: quote-parse"},
		{"panic: authentication data of size 0xffff", tampered(t, good, func(q []byte) []byte {
			binary.LittleEndian.PutUint16(q[authSizeV4:], 0xffff)
			return q
		}), "invalid quote: quote-parse"},
		{"panic: version 5 with signed data of size -1", tampered(t, machine(simtdx.MachineOptions{Version: 5}), func(q []byte) []byte {
			binary.LittleEndian.PutUint32(q[signedSizeV5:], 0xffffffff)
			return q
		}), "invalid quote: quote-parse"},
		{"empty quote", tampered(t, good, func([]byte) []byte { return nil }), "invalid quote: quote-parse"},
		{"quote of 33 KiB", tampered(t, good, func(q []byte) []byte { return append(q, make([]byte, 33<<10)...) }), "invalid quote: quote-parse"},
		{"quote of another TD, over its own key", edit(func(a *ratls.Attestation) { *a = attestation(t, resident, ratls.ReportData{7}) }), "invalid quote: report-data"},
		{"quote of the resident's certificate", leaf(t, nil, func([]byte) []pkix.Extension { return evidenceOf(attested(t, resident)) }), "invalid quote: report-data"},
		{"report data of another tag", leaf(t, nil, func(spki []byte) []pkix.Extension {
			a := attestation(t, good, ratls.TaggedReportData(ratls.TagWireGuard, spki))
			return []pkix.Extension{ext(t, 8, must(a.MarshalBinary())(t))}
		}), "invalid quote: report-data"},
		{"other report data stated than quoted", edit(func(a *ratls.Attestation) { a.ReportData[0] ^= 1 }), "invalid quote: report-data"},
		{"truncated event log", edit(func(a *ratls.Attestation) { a.RuntimeEvents = a.RuntimeEvents[:len(a.RuntimeEvents)-1] }), "invalid quote: rtmr3-replay"},
		{"no event log", edit(func(a *ratls.Attestation) { a.RuntimeEvents = nil }), "invalid quote: rtmr3-replay"},
		{"event log of the resident", edit(func(a *ratls.Attestation) { a.RuntimeEvents = attestation(t, resident, a.ReportData).RuntimeEvents }), "invalid quote: rtmr3-replay"},
		{"RTMR3 that does not replay", carrying(t, w.boot(t, simtdx.VM{AppCompose: "{}", Unlogged: true}), keep), "invalid quote: rtmr3-replay"},
		{"no instance id", carrying(t, w.boot(t, simtdx.VM{AppCompose: "{}", NoInstanceID: true}), keep), "instance id is empty"},
		{"legacy quote without event log", leaf(t, nil, func(spki []byte) []pkix.Extension {
			return []pkix.Extension{ext(t, 1, attestation(t, good, ratls.TaggedReportData(ratls.TagCertificate, spki)).Quote)}
		}), "only one of legacy quote and event log"},
		{"both forms", leaf(t, nil, func([]byte) []pkix.Extension {
			return append(evidenceOf(attested(t, good)), ext(t, 1, nil), ext(t, 2, []byte("[]")))
		}), "both the current and the legacy form"},
		{"AMD SEV-SNP", leaf(t, nil, func([]byte) []pkix.Extension { return []pkix.Extension{ext(t, 8, []byte{0, 3, 0})} }), "not supported yet: AMD SEV-SNP"},
		{"truncated attestation of version 1", leaf(t, nil, func([]byte) []pkix.Extension { return []pkix.Extension{ext(t, 8, []byte{0x83})} }), "client certificate: "},
		{"truncated attestation", leaf(t, nil, func([]byte) []pkix.Extension {
			e := evidenceOf(attested(t, good))[0]
			e.Value = e.Value[:len(e.Value)-1]
			return []pkix.Extension{e}
		}), "client certificate: "},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w.unchanged(t, func() answer { return register(t, w.at, test.cert, body(newKey())) }, http.StatusBadRequest, test.text)
		})
	}
}

func keep(*ratls.Attestation) {}

// evidenceOf is the attestation of a certificate, as it stands there.
func evidenceOf(c tls.Certificate) (list []pkix.Extension) {
	for _, e := range c.Leaf.Extensions {
		if e.Id[len(e.Id)-1] == 8 && len(e.Id) == 9 {
			list = append(list, pkix.Extension{Id: e.Id, Value: e.Value})
		}
	}
	return list
}

func TestCollateralThatDoesNotHold(t *testing.T) {
	w := newWorld(t)
	w.resident(t)
	cert := attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	for _, test := range []struct {
		name   string
		faults simtdx.Faults
		status int
		text   string
	}{
		// An answer that has expired is never taken for collateral: nothing is known then.
		{"expired", simtdx.Faults{Expired: true}, http.StatusServiceUnavailable, "the quote can't be judged now"},
		{"from the future", simtdx.Faults{Future: true}, http.StatusBadRequest, "invalid quote: collateral"},
		{"forged", simtdx.Faults{ForgedTCB: true}, http.StatusBadRequest, "invalid quote: collateral"},
		{"revoked machine", simtdx.Faults{RevokedMachine: w.host}, http.StatusBadRequest, "invalid quote: pck-revocation"},
		{"revoked Platform CA", simtdx.Faults{RevokedPlatformCA: true}, http.StatusBadRequest, "invalid quote: pck-revocation"},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := w.serve(t, func(c *enroll.Config) { c.Verifier = w.verifier(t, w.vendor.Faulty(test.faults)) })
			w.unchanged(t, func() answer { return register(t, at, cert, body(newKey())) }, test.status, test.text)
		})
	}
	t.Run("expired, without a cache", func(t *testing.T) {
		verifier := must(ratls.NewVerifier(ratls.VerifierConfig{Root: w.vendor.Root(), Getter: w.vendor.Faulty(simtdx.Faults{Expired: true})}))(t)
		at := w.serve(t, func(c *enroll.Config) { c.Verifier = verifier })
		w.unchanged(t, func() answer { return register(t, at, cert, body(newKey())) }, http.StatusBadRequest, "invalid quote: collateral")
	})
}

// TestCertificatesThatNameNobody are those without a quote. The words "no attestation provided" make a dstack guest come
// back with its quote; they stand where that would help.
func TestCertificatesThatNameNobody(t *testing.T) {
	w := newWorld(t)
	resident := w.resident(t)
	td := w.boot(t, simtdx.VM{AppCompose: "{}"})
	info := fromKMS(t, td)
	packed, theirs := must(info.MarshalBinary())(t), fromKMS(t, resident)
	stated := func(more ...pkix.Extension) func([]byte) []pkix.Extension {
		return func([]byte) []pkix.Extension {
			return append([]pkix.Extension{ext(t, 9, packed)}, more...)
		}
	}
	custom := ext(t, 4, []byte("app:custom"))
	copied := authority(t, nil, "Dstack KMS CA", 1)
	noInstance := info
	noInstance.InstanceID = ratls.Hex{}
	const again = "no attestation provided"
	tests := []struct {
		name string
		cert tls.Certificate
		text string
	}{
		{"no certificate", tls.Certificate{}, again},
		{"nothing in it", leaf(t, nil, func([]byte) []pkix.Extension { return nil }), again},
		{"nothing in it, below the KMS root", leaf(t, w.kms.root, func([]byte) []pkix.Extension { return nil }), again},
		{"app id alone, below the KMS root", leaf(t, w.kms.appCA(t, info.AppID), func([]byte) []pkix.Extension { return []pkix.Extension{ext(t, 3, info.AppID), custom} }), again},
		{"app info, signed by itself", leaf(t, nil, stated(ext(t, 3, info.AppID), custom)), again},
		{"app info of the temporary CA", leaf(t, w.kms.temp, stated(ext(t, 3, info.AppID), custom)), again},
		{"app info of a CA that copies the root's subject", leaf(t, copied, stated(ext(t, 3, info.AppID), custom)), again},
		{"the same, below an app CA", leaf(t, authority(t, copied, "Dstack App CA", 0), stated(ext(t, 3, info.AppID), custom)), again},
		{"the same, with the true root behind it", with(leaf(t, copied, stated()), w.kms.root.Certificate...), again},
		{"app info below the true root, signed by nobody there", with(leaf(t, nil, stated()), w.kms.root.Certificate...), again},
		{"below an app leaf that plays CA", leaf(t, ptr(w.kms.guest(t, info)), stated()), again},
		{"below a second CA that an app CA made", leaf(t, authority(t, w.kms.appCA(t, info.AppID), "Sub", 0), stated()), again},
		{"for servers only", leaf(t, w.kms.appCA(t, info.AppID), stated(custom), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), again},
		{"expired", leaf(t, w.kms.appCA(t, info.AppID), stated(custom), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), again},
		{"not yet valid", leaf(t, w.kms.appCA(t, info.AppID), stated(custom), func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), again},
		{"app id beside app info of another app", leaf(t, w.kms.root, stated(ext(t, 3, theirs.AppID), custom)), "is for app"},
		{"app info of another app than its CA", leaf(t, w.kms.appCA(t, theirs.AppID), stated(ext(t, 3, info.AppID), custom)), "is for app"},
		{"of the KMS itself", leaf(t, w.kms.root, stated(ext(t, 4, []byte("kms:rpc")))), `is for "kms:rpc"`},
		{"of an app CA", leaf(t, w.kms.root, stated(ext(t, 4, []byte("app:ca")))), `is for "app:ca"`},
		{"empty quote beside the KMS's app info", leaf(t, w.kms.appCA(t, info.AppID), stated(custom, ext(t, 8, []byte{0, 0, 0, 0, 0}))), "client certificate"},
		{"empty legacy quote beside the KMS's app info", leaf(t, w.kms.appCA(t, info.AppID), stated(custom, ext(t, 1, nil), ext(t, 2, []byte("[]")))), "invalid quote"},
		{"no instance id", w.kms.guest(t, noInstance), "instance id is empty"},
		{"app info that is cut short", leaf(t, w.kms.appCA(t, info.AppID), func([]byte) []pkix.Extension { return []pkix.Extension{ext(t, 9, packed[:40])} }), "client certificate: "},
		{"app info of seven elements", leaf(t, w.kms.appCA(t, info.AppID), func([]byte) []pkix.Extension { return []pkix.Extension{ext(t, 9, append([]byte{0x97}, packed[1:]...))} }), "client certificate: "},
		{"app info twice over", leaf(t, w.kms.appCA(t, info.AppID), func([]byte) []pkix.Extension { return []pkix.Extension{ext(t, 9, append(packed, packed...))} }), "client certificate: "},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w.unchanged(t, func() answer { return register(t, w.at, test.cert, body(newKey())) }, http.StatusBadRequest, test.text)
		})
	}
	t.Run("good app info, at a gateway without a KMS", func(t *testing.T) {
		at := w.serve(t, func(c *enroll.Config) { c.KMSRoot = nil })
		w.unchanged(t, func() answer { return register(t, at, w.kms.guest(t, info), body(newKey())) }, http.StatusBadRequest, again)
	})
}

// TestAQuoteIsHeldToTheWordOfTheKMS shows certificates that carry both, and contradict themselves.
func TestAQuoteIsHeldToTheWordOfTheKMS(t *testing.T) {
	w := newWorld(t)
	resident := w.resident(t)
	td := w.boot(t, simtdx.VM{AppCompose: "{}"})
	mine, theirs := fromKMS(t, td), fromKMS(t, resident)
	otherInstance, otherCompose := mine, mine
	otherInstance.InstanceID, otherCompose.ComposeHash = theirs.InstanceID, theirs.ComposeHash
	for name, change := range map[string]func(*ratls.CertOptions){
		"app id":       func(o *ratls.CertOptions) { o.AppID = theirs.AppID },
		"app info":     func(o *ratls.CertOptions) { o.AppID, o.AppInfo = mine.AppID, &theirs },
		"instance id":  func(o *ratls.CertOptions) { o.AppID, o.AppInfo = mine.AppID, &otherInstance },
		"compose hash": func(o *ratls.CertOptions) { o.AppID, o.AppInfo = mine.AppID, &otherCompose },
	} {
		t.Run(name, func(t *testing.T) {
			cert := attested(t, td, func(o *ratls.CertOptions) { o.Parent = w.kms.appCA(t, theirs.AppID) }, change)
			w.unchanged(t, func() answer { return register(t, w.at, cert, body(newKey())) }, http.StatusBadRequest, "invalid quote: app-info")
		})
	}
}

// TestTheKMSRootIsTrustedByItsKey registers under a root that the KMS made anew from the same key.
func TestTheKMSRootIsTrustedByItsKey(t *testing.T) {
	w := newWorld(t)
	info := fromKMS(t, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	template := *w.kms.root.Leaf
	template.SerialNumber.Add(template.SerialNumber, template.SerialNumber)
	template.NotBefore, template.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(48*time.Hour)
	renewed := issue(t, &tls.Certificate{Leaf: &template, PrivateKey: w.kms.root.PrivateKey}, &template, ecKey(w.kms.root))
	over := template
	over.NotAfter = time.Now().Add(-time.Hour)
	expired := issue(t, &tls.Certificate{Leaf: &over, PrivateKey: w.kms.root.PrivateKey}, &over, ecKey(w.kms.root))
	key := newKey()
	guest := (&kms{root: &renewed}).guest(t, info)
	for name, root := range map[string]*x509.Certificate{"as configured": w.kms.root.Leaf, "renewed": renewed.Leaf, "expired, the guest's renewed": expired.Leaf} {
		t.Run(name, func(t *testing.T) {
			at := w.serve(t, func(c *enroll.Config) { c.KMSRoot = root })
			if a := register(t, at, guest, body(key)); a.status != http.StatusOK {
				t.Errorf("%d %s", a.status, a.body)
			}
			short := guest
			short.Certificate = guest.Certificate[:2]
			if a := register(t, at, short, body(key)); (a.status == http.StatusOK) != (root != expired.Leaf) {
				t.Errorf("without the root in the chain: %d %s", a.status, a.body)
			}
		})
	}
}

// TestAQuoteIsAsOldAsItsCertificateMayBe shows certificates of nobody's issue whose dates are over, or are still to come.
func TestAQuoteIsAsOldAsItsCertificateMayBe(t *testing.T) {
	w := newWorld(t)
	td := w.boot(t, simtdx.VM{AppCompose: "{}"})
	for name, dates := range map[string][2]time.Duration{"over": {-48 * time.Hour, -time.Minute}, "to come": {time.Hour, 48 * time.Hour}} {
		t.Run(name, func(t *testing.T) {
			cert := attested(t, td, func(o *ratls.CertOptions) {
				o.NotBefore, o.NotAfter = time.Now().Add(dates[0]), time.Now().Add(dates[1])
			})
			w.unchanged(t, func() answer { return register(t, w.at, cert, body(newKey())) }, http.StatusBadRequest, "the client certificate is valid from")
		})
	}
	ahead := attested(t, td, func(o *ratls.CertOptions) { o.NotBefore = time.Now().Add(5 * time.Minute) })
	if a := register(t, w.at, ahead, body(newKey())); a.status != http.StatusOK {
		t.Errorf("a clock that is a little ahead: %d %s", a.status, a.body)
	}
}
