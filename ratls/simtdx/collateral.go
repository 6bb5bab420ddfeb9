package simtdx

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"time"

	"dstack.host/ratls"
)

// Faults are defects of the collateral, for tests of those who rely on it. The zero value has none.
type Faults struct {
	// Expired is collateral whose next update has passed; Future is issued tomorrow.
	Expired, Future bool
	// EvaluationNumber replaces the constant of that name when it is not 0.
	EvaluationNumber uint32
	// RevokedMachine is on the PCK revocation list.
	RevokedMachine *Machine
	// RevokedPlatformCA and RevokedSigning are on the root revocation list: the issuer of PCKs, and the signer of TCB info.
	RevokedPlatformCA, RevokedSigning bool
	// ForgedTCB says in the TCB info, ForgedQE in the QE identity, something else than was signed.
	ForgedTCB, ForgedQE bool
	// OtherQE is the identity of another quoting enclave than the machines have; OtherFMSPC of another family.
	OtherQE, OtherFMSPC bool
}

// issue is the collateral of one time, by URL.
type issue struct {
	at      time.Time
	answers map[string]answer
}

type answer struct {
	header http.Header
	body   []byte
}

// Lifetimes: as Intel's, an issue is good for 30 days; a new one is made every day.
const (
	issuedFor   = 30 * 24 * time.Hour
	issuedEvery = 24 * time.Hour
)

// Getter answers as the vendor's provisioning service does.
func (a *Authority) Getter() ratls.Getter { return a.Faulty(Faults{}) }

// Faulty answers with the faults that f names.
func (a *Authority) Faulty(f Faults) ratls.Getter {
	return ratls.GetterFunc(func(ctx context.Context, url string) (http.Header, []byte, error) {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		current, err := a.current(f)
		if err != nil {
			return nil, nil, err
		}
		found, ok := current.answers[url]
		if !ok {
			return nil, nil, fmt.Errorf("the simulated provisioning service has nothing at %s", url)
		}
		return found.header.Clone(), append([]byte(nil), found.body...), nil
	})
}

// current returns today's issue.
func (a *Authority) current(f Faults) (*issue, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if made := a.issued[f]; made != nil && now.Sub(made.at).Abs() < issuedEvery {
		return made, nil
	}
	made, err := a.issue(f, now)
	if err == nil {
		a.issued[f] = made
	}
	return made, err
}

// dates of an issue made at now.
func (f Faults) dates(now time.Time) (issued, next time.Time) {
	issued = now.UTC().Truncate(time.Second).Add(-time.Hour)
	switch {
	case f.Expired:
		issued = issued.Add(-issuedFor)
	case f.Future:
		issued = issued.Add(25 * time.Hour)
	}
	return issued, issued.Add(issuedFor)
}

// issue makes and signs everything.
func (a *Authority) issue(f Faults, now time.Time) (*issue, error) {
	issued, next := f.dates(now)
	number := f.EvaluationNumber
	if number == 0 {
		number = EvaluationNumber
	}
	info, qe := newTCBInfo(issued, next, number), newQEIdentity(issued, next, number)
	if f.OtherFMSPC {
		info.FMSPC = "00000000000f"
	}
	if f.OtherQE {
		qe.MRSigner = hex.EncodeToString(make([]byte, 32))
	}
	tcbBody, err := a.signed("tcbInfo", info, f.ForgedTCB)
	if err != nil {
		return nil, err
	}
	qeBody, err := a.signed("enclaveIdentity", qe, f.ForgedQE)
	if err != nil {
		return nil, err
	}
	pckCRL, rootCRL, err := a.revocations(f, issued, next)
	if err != nil {
		return nil, err
	}
	chain := func(header string, certs ...*x509.Certificate) http.Header {
		return http.Header{http.CanonicalHeaderKey(header): {escape(chainPEM(certs...))}}
	}
	const pcs = "https://api.trustedservices.intel.com/"
	return &issue{at: now, answers: map[string]answer{
		pcs + "tdx/certification/v4/tcb?fmspc=" + FMSPC: {chain("TCB-Info-Issuer-Chain", a.sign.cert, a.root.cert), tcbBody},
		pcs + "tdx/certification/v4/qe/identity":        {chain("SGX-Enclave-Identity-Issuer-Chain", a.sign.cert, a.root.cert), qeBody},
		pcs + "sgx/certification/v4/pckcrl?ca=platform&encoding=der": {
			chain("SGX-PCK-CRL-Issuer-Chain", a.platformCA.cert, a.root.cert), pckCRL},
		rootCRLURL: {http.Header{}, rootCRL},
	}}, nil
}

// signed wraps value as {"name":value,"signature":"r‖s in hex"}, signed over the exact bytes of value.
func (a *Authority) signed(name string, value any, forge bool) ([]byte, error) {
	inner, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	signature, err := sign(a.sign.key, inner)
	if err != nil {
		return nil, err
	}
	if forge {
		inner[len(inner)-1] = ' '
		inner = append(inner, '}')
	}
	return fmt.Appendf(nil, `{%q:%s,"signature":"%x"}`, name, inner, signature), nil
}

// revocations makes the PCK and the root revocation list.
func (a *Authority) revocations(f Faults, issued, next time.Time) (pck, root []byte, err error) {
	var pckSerials, rootSerials []*big.Int
	if f.RevokedMachine != nil {
		pckSerials = append(pckSerials, f.RevokedMachine.pck.SerialNumber)
	}
	if f.RevokedPlatformCA {
		rootSerials = append(rootSerials, a.platformCA.cert.SerialNumber)
	}
	if f.RevokedSigning {
		rootSerials = append(rootSerials, a.sign.cert.SerialNumber)
	}
	if pck, err = a.platformCA.revoke(pckSerials, issued, next); err != nil {
		return nil, nil, err
	}
	root, err = a.root.revoke(rootSerials, issued, next)
	return pck, root, err
}

// revoke makes a revocation list.
func (i issuer) revoke(serials []*big.Int, issued, next time.Time) ([]byte, error) {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: issued, NextUpdate: next, SignatureAlgorithm: x509.ECDSAWithSHA256}
	for _, serial := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial, RevocationTime: issued})
	}
	return x509.CreateRevocationList(rand.Reader, list, i.cert, i.key)
}

// chainPEM concatenates certificates.
func chainPEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, cert := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return out
}

// escape percent-encodes as Intel's service does, with %20 for a space.
func escape(text []byte) string { return strings.ReplaceAll(url.QueryEscape(string(text)), "+", "%20") }

// sign returns the ECDSA signature of message as r‖s, 64 bytes, big endian.
func sign(key *ecdsa.PrivateKey, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return nil, err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signature, nil
}
