package ratls_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

func TestCollateralVerifiesOffline(t *testing.T) {
	authority := vendor(t)
	raw := quote(t, boot(t, authority, machine{}, vm{}))
	list, err := verifier(t, authority, authority.Getter(), ratls.Policy{}).Collateral(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 4 {
		t.Fatalf("%d answers, want 4", len(list))
	}
	// As the document carries it.
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var carried []ratls.Collateral
	if err := json.Unmarshal(text, &carried); err != nil {
		t.Fatal(err)
	}
	if _, err := verifier(t, authority, ratls.Stapled(carried), ratls.Policy{}).Verify(t.Context(), raw); err != nil {
		t.Errorf("offline: %v", err)
	}
	for i, missing := range carried {
		t.Run("without "+missing.URL, func(t *testing.T) {
			rest := slices.Delete(slices.Clone(carried), i, i+1)
			_, err := verifier(t, authority, ratls.Stapled(rest), ratls.Policy{}).Verify(t.Context(), raw)
			if err == nil || !strings.Contains(err.Error(), missing.URL) {
				t.Errorf("error %v, want the missing URL in it", err)
			}
		})
	}
	for i := range carried {
		if carried[i].Headers == nil {
			continue
		}
		t.Run("without the issuers of "+carried[i].URL, func(t *testing.T) {
			bare := slices.Clone(carried)
			bare[i].Headers = nil
			if _, err := verifier(t, authority, ratls.Stapled(bare), ratls.Policy{}).Verify(t.Context(), raw); refusedBy(err) != ratls.CheckCollateral {
				t.Errorf("error %v, want a refusal by %s", err, ratls.CheckCollateral)
			}
		})
	}
}

// rewriting answers as getter does, with every body that contains marker changed.
func rewriting(getter ratls.Getter, marker string, change func([]byte) []byte) ratls.Getter {
	return ratls.GetterFunc(func(ctx context.Context, url string) (http.Header, []byte, error) {
		header, body, err := getter.Get(ctx, url)
		if err == nil && bytes.Contains(body, []byte(marker)) {
			body = change(body)
		}
		return header, body, err
	})
}

// TestVerifyRefusesSmuggledMembers: go-tdx-guest verifies the signature over the member "tcbInfo" but believes what
// encoding/json merged from every spelling of that name.
func TestVerifyRefusesSmuggledMembers(t *testing.T) {
	authority := vendor(t)
	outOfDate := quote(t, boot(t, authority, machine{Module: ratls.StatusOutOfDate}, vm{}))
	forged := func(body []byte) []byte { // the signed object with every status changed
		inner, _, _ := bytes.Cut(bytes.TrimPrefix(body, []byte(`{"tcbInfo":`)), []byte(`,"signature"`))
		return bytes.ReplaceAll(inner, []byte(`"OutOfDate"`), []byte(`"UpToDate"`))
	}
	tests := map[string]func(body []byte) []byte{
		"other spelling behind": func(b []byte) []byte {
			return slices.Concat(b[:len(b)-1], []byte(`,"TCBINFO":`), forged(b), []byte(`}`))
		},
		"other spelling before": func(b []byte) []byte { return slices.Concat([]byte(`{"tcbinfo":`), forged(b), []byte(`,`), b[1:]) },
		"same name twice":       func(b []byte) []byte { return slices.Concat([]byte(`{"tcbInfo":`), forged(b), []byte(`,`), b[1:]) },
		"unknown member":        func(b []byte) []byte { return slices.Concat(b[:len(b)-1], []byte(`,"more":1}`)) },
		"trailing object":       func(b []byte) []byte { return append(b, "{}"...) },
		"signature missing":     func(b []byte) []byte { return append(b[:bytes.Index(b, []byte(`,"signature"`))], '}') },
		"signature null": func(b []byte) []byte {
			return append(b[:bytes.Index(b, []byte(`"signature"`))], `"signature":null}`...)
		},
		"null":     func([]byte) []byte { return []byte("null") },
		"empty":    func([]byte) []byte { return nil },
		"an array": func(b []byte) []byte { return slices.Concat([]byte("["), b, []byte("]")) },
		"cut":      func(b []byte) []byte { return b[:len(b)/2] },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			v := verifier(t, authority, rewriting(authority.Getter(), `"tcbInfo"`, change), ratls.Policy{})
			if _, err := v.Verify(t.Context(), outOfDate); refusedBy(err) != ratls.CheckCollateral {
				t.Errorf("error %v, want a refusal by %s", err, ratls.CheckCollateral)
			}
		})
	}
	t.Run("sound collateral", func(t *testing.T) {
		v := verifier(t, authority, authority.Getter(), ratls.Policy{})
		if _, err := v.Verify(t.Context(), outOfDate); refusedBy(err) != ratls.CheckTCB {
			t.Errorf("error %v, want a refusal by %s", err, ratls.CheckTCB)
		}
	})
}

func TestVerifyRefusesSwappedLists(t *testing.T) {
	authority := vendor(t)
	raw := quote(t, boot(t, authority, machine{}, vm{}))
	list, err := verifier(t, authority, authority.Getter(), ratls.Policy{}).Collateral(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	list[2].Body, list[3].Body = list[3].Body, list[2].Body
	if _, err := verifier(t, authority, ratls.Stapled(list), ratls.Policy{}).Verify(t.Context(), raw); refusedBy(err) != ratls.CheckCollateral {
		t.Errorf("revocation lists swapped: %v", err)
	}
	list[2].Body = []byte("no list")
	if _, err := verifier(t, authority, ratls.Stapled(list), ratls.Policy{}).Verify(t.Context(), raw); refusedBy(err) != ratls.CheckCollateral {
		t.Errorf("revocation list unreadable: %v", err)
	}
}

func TestStapledTakesTheFirst(t *testing.T) {
	getter := ratls.Stapled([]ratls.Collateral{{URL: "a", Body: []byte("first")}, {URL: "a", Body: []byte("second")}})
	if _, body, err := getter.Get(t.Context(), "a"); err != nil || string(body) != "first" {
		t.Errorf("body %q, %v", body, err)
	}
	if _, _, err := getter.Get(t.Context(), "b"); err == nil {
		t.Error("answered for a URL that nothing was stapled for")
	}
}

func TestCollateralNamesTheVendorsPlaces(t *testing.T) {
	authority := vendor(t)
	list, err := verifier(t, authority, authority.Getter(), ratls.Policy{}).Collateral(t.Context(), quote(t, boot(t, authority, machine{}, vm{})))
	if err != nil {
		t.Fatal(err)
	}
	want := []struct{ url, header string }{
		{"https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc=" + simtdx.FMSPC, "Tcb-Info-Issuer-Chain"},
		{"https://api.trustedservices.intel.com/tdx/certification/v4/qe/identity", "Sgx-Enclave-Identity-Issuer-Chain"},
		{"https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=platform&encoding=der", "Sgx-Pck-Crl-Issuer-Chain"},
		{"https://" + simtdx.Host + "/root.crl", ""},
	}
	for i, w := range want {
		if list[i].URL != w.url {
			t.Errorf("URL %q, want %q", list[i].URL, w.url)
		}
		if chain := list[i].Headers[w.header]; (w.header != "") != strings.HasPrefix(chain, "-----BEGIN%20CERTIFICATE-----%0A") {
			t.Errorf("%s: issuer chain %.60q", w.url, chain)
		}
	}
}
