package ratls

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The checks that a quote passes, in their order. A [Refusal] names one of them.
const (
	// CheckQuoteParse: the bytes are one quote of a known form, and zero padding.
	CheckQuoteParse = "quote-parse"
	// CheckQuoteRoot: its certificates descend from the root that is trusted, by way of the PCK Platform CA.
	CheckQuoteRoot = "quote-root"
	// CheckQuoteSignature: every signature holds, from the root over PCK and quoting enclave to the report.
	CheckQuoteSignature = "quote-signature"
	// CheckTDAttributes: the domain cannot be debugged or migrated, and no service domain is bound to it.
	CheckTDAttributes = "td-attributes"
	// CheckCollateral: the vendor's collateral is signed, current, and not older than the policy allows.
	CheckCollateral = "collateral"
	// CheckPCKRevocation: neither the PCK nor its issuer is revoked.
	CheckPCKRevocation = "pck-revocation"
	// CheckQEIdentity: the quoting enclave is the vendor's.
	CheckQEIdentity = "qe-identity"
	// CheckTCB: the statuses of platform, module and quoting enclave are acceptable.
	CheckTCB = "tcb"
)

// QuoteChecks lists the checks of [Verifier.Verify] in the order in which they are made.
func QuoteChecks() []string {
	return []string{CheckQuoteParse, CheckQuoteRoot, CheckQuoteSignature, CheckTDAttributes,
		CheckCollateral, CheckPCKRevocation, CheckQEIdentity, CheckTCB}
}

// Policy is a relying party's appraisal policy for quotes. The zero value is the strict one.
type Policy struct {
	// AcceptedTCB lists statuses that are acceptable beside UpToDate, for platform, module and quoting enclave alike. Revoked
	// never is.
	AcceptedTCB []string
	// MinEvaluationDataNumber refuses collateral of an older TCB evaluation: the vendor keeps serving older ones for a while.
	MinEvaluationDataNumber uint32
	// MaxCollateralAge refuses collateral that was issued longer ago, although it has not expired; 0 is no limit.
	MaxCollateralAge time.Duration
	// AllowDebug accepts domains whose memory the host can read. For development only: such a quote proves nothing.
	AllowDebug bool
	// AllowSEPTVE accepts domains that the host can interrupt at any page, because SEPT_VE_DISABLE is clear. dstack's guests set
	// it; some guests of public clouds do not.
	AllowSEPTVE bool
}

// check reports all faults of the policy itself.
func (p Policy) check() error {
	var errs []error
	for _, status := range p.AcceptedTCB {
		switch {
		case status == StatusRevoked:
			errs = append(errs, errors.New("accepted TCB status Revoked: a revoked platform is never acceptable"))
		case !slices.Contains(statuses, status):
			errs = append(errs, fmt.Errorf("accepted TCB status %q is unknown, want one of %s", status,
				strings.Join(statuses[:len(statuses)-1], ", ")))
		}
	}
	if p.MaxCollateralAge < 0 {
		errs = append(errs, fmt.Errorf("maximum age of collateral %s is negative", p.MaxCollateralAge))
	}
	return errors.Join(errs...)
}

// accepts judges the statuses of a TCB.
func (p Policy) accepts(tcb TCB) error {
	for _, part := range []struct {
		name string
		TCBStatus
	}{{"platform", tcb.Platform}, {"TDX module", tcb.Module}, {"quoting enclave", tcb.QE}} {
		if part.Status == StatusUpToDate || part.Status != StatusRevoked && slices.Contains(p.AcceptedTCB, part.Status) {
			continue
		}
		return refuse(CheckTCB, "%s is %s at the level of %s%s", part.name, part.Status,
			part.Date.Format(time.DateOnly), advisories(part.Advisories))
	}
	return nil
}

// advisories renders ids for a message.
func advisories(ids []string) string {
	if len(ids) == 0 {
		return ""
	}
	return " (" + strings.Join(ids, ", ") + ")"
}
