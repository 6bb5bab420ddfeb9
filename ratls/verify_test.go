package ratls_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// vendor makes a simulated vendor.
func vendor(t testing.TB) *simtdx.Authority {
	t.Helper()
	authority, err := simtdx.New(simtdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

// verifier makes a verifier below the vendor's root.
func verifier(t testing.TB, a *simtdx.Authority, getter ratls.Getter, policy ratls.Policy) *ratls.Verifier {
	t.Helper()
	v, err := ratls.NewVerifier(ratls.VerifierConfig{Root: a.Root(), Getter: getter, Policy: policy})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// boot starts a domain on a new machine.
func boot(t testing.TB, a *simtdx.Authority, o simtdx.MachineOptions, vm simtdx.VM) *simtdx.TD {
	t.Helper()
	machine, err := a.Machine(o)
	if err != nil {
		t.Fatal(err)
	}
	td, err := machine.Boot(vm)
	if err != nil {
		t.Fatal(err)
	}
	return td
}

// quote asks td for a quote.
func quote(t testing.TB, td *simtdx.TD) []byte {
	t.Helper()
	raw, err := td.Quote(t.Context(), ratls.ReportData{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// refusedBy names the check that err is a refusal of, "" when it is none.
func refusedBy(err error) string {
	var refusal *ratls.Refusal
	if errors.As(err, &refusal) {
		return refusal.Check
	}
	return ""
}

func TestVerifyAcceptsASoundQuote(t *testing.T) {
	authority := vendor(t)
	v := verifier(t, authority, authority.Getter(), ratls.Policy{MinEvaluationDataNumber: simtdx.EvaluationNumber, MaxCollateralAge: 2 * time.Hour})
	for _, o := range []simtdx.MachineOptions{{}, {Version: 5}, {UnversionedModule: true}} {
		q, err := v.Verify(context.Background(), quote(t, boot(t, authority, o, simtdx.VM{AppCompose: "{}"})))
		if err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
		t.Logf("%+v", q)
	}
}
