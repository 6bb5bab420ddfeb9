package ratls

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-tdx-guest/pcs"
	tdx "github.com/google/go-tdx-guest/verify"
)

// pckPlatformCA is the common name of the only issuer of PCKs whose platforms have TDX.
const pckPlatformCA = "Intel SGX PCK Platform CA"

// VerifierConfig is what a [Verifier] goes by.
type VerifierConfig struct {
	// Root is the root of trust; nil is Intel's SGX Root CA. Any other makes the evidence KindSimulatedTDX.
	Root *x509.Certificate
	// Getter fetches collateral. It is asked only after the signatures of a quote have been verified up to Root, so that a
	// stranger cannot choose what is fetched.
	Getter Getter
	// Policy judges what was verified.
	Policy Policy
	// Now is the time at which everything is judged; nil is time.Now.
	Now func() time.Time
}

// Verifier verifies TDX quotes. Its methods may be called concurrently.
type Verifier struct {
	// set by NewVerifier
	kind   Kind
	root   *x509.Certificate
	roots  *x509.CertPool
	getter Getter
	policy Policy
	now    func() time.Time
}

// NewVerifier checks the configuration. It fetches nothing.
func NewVerifier(c VerifierConfig) (*Verifier, error) {
	root := c.Root
	if root == nil {
		root = IntelRoot()
	}
	now := c.Now
	if now == nil {
		now = time.Now
	}
	var noGetter error
	if c.Getter == nil {
		noGetter = errors.New("no getter of collateral")
	}
	if err := errors.Join(checkRoot(root), noGetter, c.Policy.check()); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	return &Verifier{kind: kindOf(root), root: root, roots: roots, getter: c.Getter, policy: c.Policy, now: now}, nil
}

// Kind says what the quotes that v verifies chain to: KindTDX only below Intel's root.
func (v *Verifier) Kind() Kind { return v.kind }

// Verify verifies a raw quote in full: its signatures up to the root, its domain's attributes, the vendor's collateral with
// revocation, the quoting enclave, and the TCB statuses against the policy. The checks are made in the order of
// [QuoteChecks]. An error is a [*Refusal] where the evidence is at fault; any other error means that the collateral could not
// be had, or that ctx ended, and that nothing is known.
func (v *Verifier) Verify(ctx context.Context, raw []byte) (*Quote, error) {
	now := v.now()
	pck, err := v.authenticate(raw, now)
	if err != nil {
		return nil, err
	}
	set, err := v.gather(ctx, pck.FMSPC)
	if err != nil {
		return nil, err
	}
	q, err := v.appraise(raw, set, pck, now)
	if refused, ok := errors.AsType[*Refusal](err); ok && refused.Check == CheckCollateral {
		v.forget(set)
	}
	return q, err
}

// forgetter is a Getter that holds answers, as [Cache] does.
type forgetter interface{ Forget(url string) }

// forget has collateral that did not hold fetched anew the next time: a bad answer of the vendor's must not refuse everybody for
// as long as it says that it lives.
func (v *Verifier) forget(set *endorsements) {
	if held, ok := v.getter.(forgetter); ok {
		for _, answer := range set.answers {
			held.Forget(answer.URL)
		}
	}
}

// authenticate verifies everything that needs no collateral, and returns what the PCK certificate says of the platform.
//
// go-tdx-guest logs to standard output through a global logger. With roots of our own and at the default verbosity it has
// nothing to say (held by a test), so that global state need not be touched.
func (v *Verifier) authenticate(raw []byte, now time.Time) (*pcs.PckExtensions, error) {
	w, err := parseWire(raw)
	if err != nil {
		return nil, err
	}
	pck, err := v.chain(w)
	if err != nil {
		return nil, err
	}
	options := &tdx.Options{Now: instant(now), TrustedRoots: v.roots}
	if err := guard(func() error { return tdx.TdxQuote(w.proto, options) }); err != nil {
		return nil, &Refusal{Check: CheckQuoteSignature, Err: err}
	}
	return pck, v.policy.validate(w)
}

// chain checks whose certificates the quote carries. Their signatures are not verified yet.
func (v *Verifier) chain(w *wireQuote) (pck *pcs.PckExtensions, err error) {
	err = guard(func() error {
		chain, err := tdx.ExtractChainFromQuote(w.proto)
		if err != nil {
			return err
		}
		if !bytes.Equal(chain.RootCertificate.RawSubjectPublicKeyInfo, v.root.RawSubjectPublicKeyInfo) {
			return fmt.Errorf("the quote descends from another root, %q, than the trusted %q",
				chain.RootCertificate.Subject, v.root.Subject)
		}
		if name := chain.PCKCertificate.Issuer.CommonName; name != pckPlatformCA {
			return fmt.Errorf("the PCK was issued by %q, want %q", name, pckPlatformCA)
		}
		pck, err = pcs.PckCertificateExtensions(chain.PCKCertificate)
		return err
	})
	if err != nil {
		return nil, &Refusal{Check: CheckQuoteRoot, Err: err}
	}
	return pck, nil
}

// appraise verifies raw once more, in fresh values, with the collateral in set, and applies the policy.
func (v *Verifier) appraise(raw []byte, set *endorsements, pck *pcs.PckExtensions, now time.Time) (*Quote, error) {
	w, err := parseWire(raw)
	if err != nil {
		return nil, err
	}
	options := &tdx.Options{Now: instant(now), TrustedRoots: v.roots, GetCollateral: true, CheckRevocations: true, Getter: set}
	err = guard(func() error { return tdx.TdxQuote(w.proto, options) })
	if err != nil && !onlyStatus(err) {
		return nil, &Refusal{Check: disputed(err), Err: err}
	}
	if err := set.fresh(v.policy, now); err != nil {
		return nil, err
	}
	if err := matchQE(w.qeReport(), &set.qeIdentity); err != nil {
		return nil, err
	}
	q := w.quote()
	q.TCB, err = assess(&set.tcbInfo, &set.qeIdentity, platform{svn: q.TEETCBSVN, pck: pck.TCB,
		signer: q.MRSignerSeam[:], attributes: q.SeamAttributes[:], qeSVN: w.qeReport().GetIsvSvn()})
	if err != nil {
		return nil, err
	}
	if err := v.policy.accepts(q.TCB); err != nil {
		return nil, err
	}
	q.Kind, q.FMSPC = v.kind, strings.ToLower(pck.FMSPC)
	q.PPID, err = hex.DecodeString(pck.PPID)
	return q, err
}

// instant is the one time for all of go-tdx-guest's clocks.
func instant(t time.Time) *tdx.TimeSet {
	return &tdx.TimeSet{PckCertChain: t, TcbInfo: t, QeIdentity: t, PckCrl: t, RootCaCrl: t}
}

// Beginnings of go-tdx-guest's errors about TCB statuses. It makes that check last: signatures, revocation, validity, FMSPC,
// PCE-ID and the module's signer have all passed when an error begins so. Its errors cannot be told apart in another way.
const (
	platformStatusError = "TDX TCB info reported by Intel PCS failed TCB status check: "
	qeStatusError       = "QE Identity reported by Intel PCS failed TCB status check: "
)

// onlyStatus reports whether go-tdx-guest, which accepts only UpToDate, objected to nothing but a TCB status, which is for the
// policy to judge. If the words ever change, every status but UpToDate is refused, and tests of those statuses fail.
func onlyStatus(err error) bool {
	return strings.HasPrefix(err.Error(), platformStatusError) || strings.HasPrefix(err.Error(), qeStatusError)
}

// disputed names the check that an objection of go-tdx-guest's second pass belongs to. Only the name hangs on it.
func disputed(err error) string {
	switch text := err.Error(); {
	case strings.Contains(text, "PCK certificate chain was revoked at"):
		return CheckPCKRevocation
	case strings.Contains(text, "reported QE Identity"):
		return CheckQEIdentity
	case strings.Contains(text, "reported TDX TCB info"):
		return CheckTCB
	}
	return CheckCollateral
}
