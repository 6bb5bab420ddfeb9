package ratls_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	tdxtest "github.com/google/go-tdx-guest/testing"
	"github.com/google/go-tdx-guest/testing/testdata"

	"dstack.host/ratls"
)

// intel answers with the collateral of Intel's that go-tdx-guest keeps for its own tests. It was current on intelDay.
var (
	intel = ratls.GetterFunc(func(_ context.Context, url string) (http.Header, []byte, error) {
		answer, ok := tdxtest.TestGetter.Responses[url]
		if !ok {
			return nil, nil, errors.New("not kept")
		}
		return answer.Header, answer.Body, nil
	})
	intelDay = time.Date(2023, time.July, 1, 1, 0, 0, 0, time.UTC)
)

// hardwareQuote is a quote of real hardware, without the text that go-tdx-guest put behind it. Its domain is of before dstack,
// and does not set SEPT_VE_DISABLE.
func hardwareQuote(t testing.TB) []byte {
	t.Helper()
	raw, text, ok := bytes.Cut(testdata.RawQuote, []byte("\nextra bytes"))
	if !ok || len(text) == 0 {
		t.Fatal("the fixture has changed")
	}
	return slices.Clone(raw)
}

// hardwareVerifier verifies below Intel's root on a day.
func hardwareVerifier(t testing.TB, day time.Time, policy ratls.Policy) *ratls.Verifier {
	t.Helper()
	v, err := ratls.NewVerifier(ratls.VerifierConfig{Getter: intel, Policy: policy, Now: func() time.Time { return day }})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestRealHardwareIsVerifiedUpToItsTCB: the fixture's platform is below every level of its own TCB info, as go-tdx-guest's
// tests say too, so that everything before that check has passed when it is refused for it.
func TestRealHardwareIsVerifiedUpToItsTCB(t *testing.T) {
	v := hardwareVerifier(t, intelDay, ratls.Policy{AllowSEPTVE: true})
	if v.Kind() != ratls.KindTDX {
		t.Errorf("kind %q below Intel's root", v.Kind())
	}
	for name, padding := range map[string]int{"exact": 0, "padded": 70} {
		t.Run(name, func(t *testing.T) {
			raw := append(hardwareQuote(t), make([]byte, padding)...)
			_, err := v.Verify(t.Context(), raw)
			if refusedBy(err) != ratls.CheckTCB || !strings.Contains(err.Error(), "below every level") {
				t.Errorf("refused by %v, want the TCB check", err)
			}
			list, err := v.Collateral(t.Context(), raw)
			if err != nil || len(list) != 4 {
				t.Errorf("%d answers, %v", len(list), err)
			}
		})
	}
}

func TestVerifyRefusesRealHardware(t *testing.T) {
	authority := vendor(t)
	flipped := hardwareQuote(t)
	flipped[600] ^= 1
	tests := []struct {
		name string
		v    *ratls.Verifier
		raw  []byte
		want string
	}{
		{"text behind the quote", hardwareVerifier(t, intelDay, ratls.Policy{AllowSEPTVE: true}), testdata.RawQuote, ratls.CheckQuoteParse},
		{"flipped bit", hardwareVerifier(t, intelDay, ratls.Policy{AllowSEPTVE: true}), flipped, ratls.CheckQuoteSignature},
		{"SEPT_VE_DISABLE clear", hardwareVerifier(t, intelDay, ratls.Policy{}), hardwareQuote(t), ratls.CheckTDAttributes},
		{"collateral expired", hardwareVerifier(t, intelDay.AddDate(0, 2, 0), ratls.Policy{AllowSEPTVE: true}), hardwareQuote(t), ratls.CheckCollateral},
		{"old evaluation", hardwareVerifier(t, intelDay, ratls.Policy{AllowSEPTVE: true, MinEvaluationDataNumber: 16}), hardwareQuote(t), ratls.CheckCollateral},
		{"simulated root", verifier(t, authority, intel, ratls.Policy{}), hardwareQuote(t), ratls.CheckQuoteRoot},
		// Version 5, with a TDX 1.5 body: all that needs no collateral holds; go-tdx-guest keeps none of its time.
		{"version 5", hardwareVerifier(t, time.Date(2026, 2, 3, 0, 0, 0, 0, time.UTC), ratls.Policy{}), testdata.RawQuoteV5, ratls.CheckCollateral},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q, err := test.v.Verify(t.Context(), test.raw)
			if got := refusedBy(err); got != test.want || q != nil {
				t.Errorf("refused by %q (%v), want %q", got, err, test.want)
			}
		})
	}
}

func TestSimulationIsNeverHardware(t *testing.T) {
	authority := vendor(t)
	raw := quote(t, boot(t, authority, machine{}, vm{}))
	if _, err := hardwareVerifier(t, time.Now(), ratls.Policy{AllowDebug: true}).Verify(t.Context(), raw); refusedBy(err) != ratls.CheckQuoteRoot {
		t.Errorf("Intel's verifier says %v, want a refusal by %s", err, ratls.CheckQuoteRoot)
	}
	v := verifier(t, authority, authority.Getter(), ratls.Policy{})
	q, err := v.Verify(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	if q.Kind != ratls.KindSimulatedTDX || v.Kind() != ratls.KindSimulatedTDX {
		t.Errorf("kind of the quote %q, of the verifier %q", q.Kind, v.Kind())
	}
}

func TestIntelRootIsIntels(t *testing.T) {
	// The fingerprint that Intel publishes for its SGX Root CA.
	const want = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
	if got := sha256Hex(ratls.IntelRoot().Raw); got != want {
		t.Errorf("fingerprint %s, want %s", got, want)
	}
}
