package ratls_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// Short names for what most tests make.
type (
	machine = simtdx.MachineOptions
	vm      = simtdx.VM
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
func boot(t testing.TB, a *simtdx.Authority, o machine, what vm) *simtdx.TD {
	t.Helper()
	host, err := a.Machine(o)
	if err != nil {
		t.Fatal(err)
	}
	td, err := host.Boot(what)
	if err != nil {
		t.Fatal(err)
	}
	return td
}

// quote asks td for a quote over quoted.
func quote(t testing.TB, td *simtdx.TD) []byte {
	t.Helper()
	raw, err := td.Quote(t.Context(), quoted)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

var quoted = ratls.ReportData{1, 2, 3, 63: 64}

// refusedBy names the check that err is a refusal of, "" when it is none.
func refusedBy(err error) string {
	var refusal *ratls.Refusal
	if errors.As(err, &refusal) {
		return refusal.Check
	}
	return ""
}

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestVerifyAcceptsASoundQuote(t *testing.T) {
	authority := vendor(t)
	strict := ratls.Policy{MinEvaluationDataNumber: simtdx.EvaluationNumber, MaxCollateralAge: 2 * time.Hour}
	v := verifier(t, authority, authority.Getter(), strict)
	for name, o := range map[string]machine{
		"version 4":          {Name: "a"},
		"version 5":          {Name: "a", Version: 5},
		"unversioned module": {Name: "a", UnversionedModule: true},
	} {
		t.Run(name, func(t *testing.T) {
			q, err := v.Verify(t.Context(), quote(t, boot(t, authority, o, vm{AppCompose: "{}", MRTD: ratls.Measurement{7}})))
			if err != nil {
				t.Fatal(err)
			}
			if q.Version != max(4, o.Version) || q.ReportData != quoted || q.MRTD != (ratls.Measurement{7}) || q.FMSPC != simtdx.FMSPC {
				t.Errorf("quote %+v", q)
			}
			if (q.MRServiceTD != nil) != (q.Version == 5) {
				t.Errorf("service domain %v in version %d", q.MRServiceTD, q.Version)
			}
			if want := sha256Hex([]byte("ppid:a"))[:32]; hex.EncodeToString(q.PPID) != want {
				t.Errorf("PPID %x, want %s", q.PPID, want)
			}
			if q.TCB.Worst != ratls.StatusUpToDate || q.TCB.EvaluationDataNumber != simtdx.EvaluationNumber {
				t.Errorf("TCB %+v", q.TCB)
			}
		})
	}
}

func TestVerifyRefusesByName(t *testing.T) {
	authority := vendor(t)
	const (
		parse, root, signature = ratls.CheckQuoteParse, ratls.CheckQuoteRoot, ratls.CheckQuoteSignature
		attributes, qe         = ratls.CheckTDAttributes, ratls.CheckQEIdentity
	)
	tests := []struct {
		name    string
		machine machine
		vm      vm
		want    string
	}{
		{"trailing byte", machine{}, vm{Tamper: simtdx.TrailingByte}, parse},
		{"Processor CA", machine{ProcessorCA: true}, vm{}, root},
		{"expired PCK", machine{ExpiredPCK: true}, vm{}, signature},
		{"body", machine{}, vm{Tamper: simtdx.TamperBody}, signature},
		{"signature", machine{}, vm{Tamper: simtdx.TamperSignature}, signature},
		{"attestation key", machine{}, vm{Tamper: simtdx.TamperKey}, signature},
		{"QE report", machine{}, vm{Tamper: simtdx.TamperQEReport}, signature},
		{"QE signature", machine{}, vm{Tamper: simtdx.TamperQESignature}, signature},
		{"auth data", machine{}, vm{Tamper: simtdx.TamperAuthData}, signature},
		{"vendor in the header, unsigned", machine{}, vm{Tamper: simtdx.TamperVendor}, signature},
		{"body, version 5", machine{Version: 5}, vm{Tamper: simtdx.TamperBody}, signature},
		{"auth data, version 5", machine{Version: 5}, vm{Tamper: simtdx.TamperAuthData}, signature},
		{"debug", machine{}, vm{Debug: true}, attributes},
		{"debug, version 5", machine{Version: 5}, vm{Debug: true}, attributes},
		{"migratable", machine{}, vm{Attributes: 1 << 29}, attributes},
		{"reserved bit of the debug group", machine{}, vm{Attributes: 1 << 1}, attributes},
		{"reserved bit", machine{}, vm{Attributes: 1 << 40}, attributes},
		{"SEPT_VE_DISABLE clear", machine{}, vm{SEPTVE: true}, attributes},
		{"module of another signer", machine{}, vm{MRSignerSeam: ratls.Measurement{1}}, attributes},
		{"service domain", machine{Version: 5}, vm{MRServiceTD: ratls.Measurement{1}}, attributes},
		{"foreign QE", machine{ForeignQE: true}, vm{}, qe},
		{"foreign QE on a platform with another fault", machine{ForeignQE: true, Platform: ratls.StatusOutOfDate, UnversionedModule: true}, vm{}, qe},
	}
	v := verifier(t, authority, authority.Getter(), ratls.Policy{})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q, err := v.Verify(t.Context(), quote(t, boot(t, authority, test.machine, test.vm)))
			if got := refusedBy(err); got != test.want || q != nil {
				t.Errorf("refused by %q (%v), want %q", got, err, test.want)
			}
		})
	}
}

func TestVerifyRefusesCollateral(t *testing.T) {
	authority := vendor(t)
	host, err := authority.Machine(machine{})
	if err != nil {
		t.Fatal(err)
	}
	td, err := host.Boot(vm{})
	if err != nil {
		t.Fatal(err)
	}
	raw := quote(t, td)
	tests := []struct {
		name   string
		faults simtdx.Faults
		policy ratls.Policy
		want   string
	}{
		{"expired", simtdx.Faults{Expired: true}, ratls.Policy{}, ratls.CheckCollateral},
		{"from the future", simtdx.Faults{Future: true}, ratls.Policy{}, ratls.CheckCollateral},
		{"too old for the policy", simtdx.Faults{}, ratls.Policy{MaxCollateralAge: time.Minute}, ratls.CheckCollateral},
		{"low evaluation number", simtdx.Faults{EvaluationNumber: 16}, ratls.Policy{MinEvaluationDataNumber: 17}, ratls.CheckCollateral},
		{"TCB info forged", simtdx.Faults{ForgedTCB: true}, ratls.Policy{}, ratls.CheckCollateral},
		{"QE identity forged", simtdx.Faults{ForgedQE: true}, ratls.Policy{}, ratls.CheckCollateral},
		{"signer revoked", simtdx.Faults{RevokedSigning: true}, ratls.Policy{}, ratls.CheckCollateral},
		{"PCK revoked", simtdx.Faults{RevokedMachine: host}, ratls.Policy{}, ratls.CheckPCKRevocation},
		{"intermediate revoked", simtdx.Faults{RevokedPlatformCA: true}, ratls.Policy{}, ratls.CheckPCKRevocation},
		{"identity of another QE", simtdx.Faults{OtherQE: true}, ratls.Policy{}, ratls.CheckQEIdentity},
		{"TCB info of another family", simtdx.Faults{OtherFMSPC: true}, ratls.Policy{}, ratls.CheckTCB},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q, err := verifier(t, authority, authority.Faulty(test.faults), test.policy).Verify(t.Context(), raw)
			if got := refusedBy(err); got != test.want || q != nil {
				t.Errorf("refused by %q (%v), want %q", got, err, test.want)
			}
		})
	}
}

func TestVerifyRefusesCollateralOfAnotherVendor(t *testing.T) {
	authority, other := vendor(t), vendor(t)
	raw := quote(t, boot(t, authority, machine{}, vm{}))
	if _, err := verifier(t, authority, other.Getter(), ratls.Policy{}).Verify(t.Context(), raw); refusedBy(err) != ratls.CheckCollateral {
		t.Errorf("another vendor's collateral: %v", err)
	}
	if _, err := verifier(t, other, other.Getter(), ratls.Policy{}).Verify(t.Context(), raw); refusedBy(err) != ratls.CheckQuoteRoot {
		t.Errorf("another vendor's root: %v", err)
	}
}

// TestVerifyJudgesEachStatus holds the platform's half above all: with a versioned module go-tdx-guest looks only at the module.
func TestVerifyJudgesEachStatus(t *testing.T) {
	all := []string{ratls.StatusUpToDate, ratls.StatusSWHardeningNeeded, ratls.StatusConfigurationNeeded,
		ratls.StatusConfigurationAndSWHardeningNeeded, ratls.StatusOutOfDate, ratls.StatusOutOfDateConfigurationNeeded, ratls.StatusRevoked}
	authority := vendor(t)
	strict := verifier(t, authority, authority.Getter(), ratls.Policy{})
	lax := verifier(t, authority, authority.Getter(), ratls.Policy{AcceptedTCB: all[1 : len(all)-1]})
	for _, unversioned := range []bool{false, true} {
		for _, status := range append(slices.Clone(all), simtdx.Unlisted) {
			for part, o := range map[string]machine{"platform": {Platform: status}, "module": {Module: status}, "QE": {QE: status}} {
				o.UnversionedModule = unversioned
				t.Run(fmt.Sprintf("unversioned=%t/%s/%s", unversioned, part, status), func(t *testing.T) {
					raw := quote(t, boot(t, authority, o, vm{}))
					_, err := strict.Verify(t.Context(), raw)
					if got := refusedBy(err); (got == ratls.CheckTCB) != (status != ratls.StatusUpToDate) {
						t.Errorf("strict policy: refused by %q (%v)", got, err)
					}
					q, err := lax.Verify(t.Context(), raw)
					if status == ratls.StatusRevoked || status == simtdx.Unlisted {
						if refusedBy(err) != ratls.CheckTCB {
							t.Errorf("lax policy: %v", err)
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					checkStatuses(t, q.TCB, part, status, unversioned)
				})
			}
		}
	}
}

// checkStatuses checks that a fault of one part is told of that part only, and that the worst is told.
func checkStatuses(t *testing.T, tcb ratls.TCB, part, status string, unversioned bool) {
	t.Helper()
	want := map[string]string{"platform": ratls.StatusUpToDate, "module": ratls.StatusUpToDate, "QE": ratls.StatusUpToDate}
	want[part] = status
	if unversioned && part != "QE" { // the level of the platform covers such a module
		want["platform"], want["module"] = status, status
	}
	if tcb.Platform.Status != want["platform"] || tcb.Module.Status != want["module"] || tcb.QE.Status != want["QE"] || tcb.Worst != status {
		t.Errorf("TCB %+v, want %v and worst %s", tcb, want, status)
	}
	for _, got := range []ratls.TCBStatus{tcb.Platform, tcb.Module, tcb.QE} {
		if got.Date.IsZero() || (len(got.Advisories) == 0) != (got.Status == ratls.StatusUpToDate) {
			t.Errorf("status without date or advisories: %+v", got)
		}
	}
}

func TestVerifyAcceptsWhatThePolicyAllows(t *testing.T) {
	authority := vendor(t)
	v := verifier(t, authority, authority.Getter(), ratls.Policy{AllowDebug: true, AllowSEPTVE: true})
	for name, what := range map[string]vm{"debug": {Debug: true}, "#VE": {SEPTVE: true}, "PKS and performance monitoring": {Attributes: 1<<30 | 1<<63}} {
		if _, err := v.Verify(t.Context(), quote(t, boot(t, authority, machine{}, what))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := v.Verify(t.Context(), quote(t, boot(t, authority, machine{}, vm{Attributes: 1 << 2}))); refusedBy(err) != ratls.CheckTDAttributes {
		t.Errorf("reserved bit of the debug group: %v", err)
	}
}

// TestVerifyFetchesNothingForStrangers counts what is asked for while the signatures do not hold.
func TestVerifyFetchesNothingForStrangers(t *testing.T) {
	authority, other := vendor(t), vendor(t)
	getter := ratls.GetterFunc(func(_ context.Context, url string) (http.Header, []byte, error) {
		t.Errorf("asked for %s", url)
		return nil, nil, errors.New("no")
	})
	v := verifier(t, authority, getter, ratls.Policy{})
	for name, td := range map[string]*simtdx.TD{
		"other root": boot(t, other, machine{}, vm{}),
		"tampered":   boot(t, authority, machine{}, vm{Tamper: simtdx.TamperSignature}),
		"debug":      boot(t, authority, machine{}, vm{Debug: true}),
	} {
		if _, err := v.Verify(t.Context(), quote(t, td)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestVerifyTellsWhenItCouldNotTry(t *testing.T) {
	authority := vendor(t)
	raw := quote(t, boot(t, authority, machine{}, vm{}))
	away := errors.New("service is away")
	down := ratls.GetterFunc(func(context.Context, string) (http.Header, []byte, error) { return nil, nil, away })
	if _, err := verifier(t, authority, down, ratls.Policy{}).Verify(t.Context(), raw); !errors.Is(err, away) || refusedBy(err) != "" {
		t.Errorf("service away: %v, want an error that is no refusal", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := verifier(t, authority, authority.Getter(), ratls.Policy{}).Verify(ctx, raw); !errors.Is(err, context.Canceled) {
		t.Errorf("context ended: %v", err)
	}
}

func TestVerifyIsSafeForConcurrentUse(t *testing.T) {
	authority := vendor(t)
	cache := ratls.NewCache(ratls.CacheConfig{Getter: authority.Getter(), Hosts: append(ratls.IntelHosts(), simtdx.Host)})
	v := verifier(t, authority, cache, ratls.Policy{})
	td := boot(t, authority, machine{}, vm{})
	stale := quote(t, boot(t, authority, machine{Platform: ratls.StatusRevoked}, vm{}))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				raw, err := td.Quote(t.Context(), quoted)
				if err == nil {
					_, err = v.Verify(t.Context(), raw)
				}
				if err != nil {
					t.Error(err)
				}
				if _, err := v.Verify(t.Context(), stale); refusedBy(err) != ratls.CheckTCB {
					t.Errorf("revoked platform: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestNewVerifierTellsAllFaults(t *testing.T) {
	leaf := *vendor(t).Root()
	leaf.IsCA = false
	_, err := ratls.NewVerifier(ratls.VerifierConfig{Root: &leaf,
		Policy: ratls.Policy{AcceptedTCB: []string{"Revoked", "Fine"}, MaxCollateralAge: -1}})
	for _, want := range []string{"authority", "getter", "Revoked", `"Fine"`, "negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

func TestQuoteChecksAreDistinct(t *testing.T) {
	checks := ratls.QuoteChecks()
	sorted := slices.Sorted(slices.Values(checks))
	if len(slices.Compact(sorted)) != len(checks) || len(checks) != 8 {
		t.Errorf("checks %q", checks)
	}
}
