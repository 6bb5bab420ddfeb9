package verify_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/verify"
	"dstack.host/ratls"
)

// sample is a bundle without a document, small enough to be changed by hand.
func sample(t testing.TB) *verify.Bundle {
	t.Helper()
	c := issue(t, nil)
	return &verify.Bundle{
		Format: verify.BundleFormat, URL: "https://" + strings.Repeat("0", 40) + ".dstack.example.com", Time: time.Now().UTC().Round(0),
		Nonce: make(ratls.Hex, 32), Exporter: ratls.Hex{}, TLS: verify.Session{Version: "TLS 1.3", Certificates: []ratls.Base64{c.Certificate[0]}},
		Document: verify.Answer{Status: 503}, ACMEInfo: verify.Answer{Error: "away"},
		Resolvers: []string{"192.0.2.53:53"}, DNS: []verify.DNSAnswer{{Name: "x", Type: "CAA", Error: "away"}},
	}
}

func TestABundleIsReadAsItWasWritten(t *testing.T) {
	b := sample(t)
	text := must(b.Encode())(t)
	again := must(verify.ParseBundle(text))(t)
	if diff := cmp.Diff(string(text), string(must(again.Encode())(t))); diff != "" {
		t.Errorf("-first +again:\n%s", diff)
	}
}

func TestABundleIsReadStrictly(t *testing.T) {
	good := string(must(sample(t).Encode())(t))
	edit := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the bundle has no %s", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	with := func(change func(*verify.Bundle)) string {
		b := sample(t)
		change(b)
		return string(must(b.Encode())(t))
	}
	for _, row := range []struct{ name, text, want string }{
		{"empty", "", "bundle"},
		{"a list", "[]", "bundle"},
		{"too large", strings.Repeat(" ", 33<<20), "longer than the limit"},
		{"trailing data", good + "{}", "followed by more data"},
		{"unknown member", edit(`"nonce"`, `"trusted": true, "nonce"`), "trusted"},
		{"member twice", edit(`"nonce"`, `"time": "2026-11-24T00:00:00Z", "nonce"`), "twice"},
		{"member missing", edit(`"unbound": "",`, ``), "unbound is missing"},
		{"null", edit(`"unbound": ""`, `"unbound": null`), "null"},
		{"another format", edit("/v1", "/v2"), "format is"},
		{"not https", edit(`"https://0`, `"http://0`), "url"},
		{"passthrough name", edit(".dstack.", "s.dstack."), "passthrough"},
		{"no time", with(func(b *verify.Bundle) { b.Time = time.Time{} }), "no time"},
		{"short nonce", with(func(b *verify.Bundle) { b.Nonce = b.Nonce[1:] }), "nonce has 31 bytes"},
		{"short exporter", with(func(b *verify.Bundle) { b.Exporter = b.Nonce[1:] }), "exporter has 31 bytes"},
		{"no certificate", with(func(b *verify.Bundle) { b.TLS.Certificates = nil }), "0 certificates"},
		{"certificate that is none", with(func(b *verify.Bundle) { b.TLS.Certificates[0] = ratls.Base64{1} }), "certificate 0"},
		{"many certificates", with(func(b *verify.Bundle) {
			for range 16 {
				b.TLS.Certificates = append(b.TLS.Certificates, b.TLS.Certificates[0])
			}
		}), "17 certificates"},
		{"many DNS answers", with(func(b *verify.Bundle) { b.DNS = make([]verify.DNSAnswer, 65) }), "65 answers"},
		{"long DNS answer", with(func(b *verify.Bundle) { b.DNS[0].Message = make([]byte, 1<<17) }), "DNS answer"},
		{"much collateral", with(func(b *verify.Bundle) {
			for range 257 {
				b.Collateral = append(b.Collateral, ratls.Collateral{Body: []byte{}})
			}
		}), "257 pieces"},
		{"long document", with(func(b *verify.Bundle) { b.Document.Body = make([]byte, 17<<20) }), "document has"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := verify.ParseBundle([]byte(row.text)); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q in it", err, row.want)
			}
		})
	}
}

func TestPrintShowsATreeAndNothingThatATerminalObeys(t *testing.T) {
	r := &verify.Result{URL: "https://x\x1b[2J", Verdict: ratls.Fail}
	r.Checks = []ratls.Check{
		{Hop: "certificate", Name: "tls-certificate", Status: ratls.Pass, Detail: "fine"},
		{Hop: "certificate", Name: "sct", Status: ratls.Skip, Detail: "not needed"},
		{Hop: "gateway", Name: "document", Status: ratls.Fail, Detail: "bad \x1b[31m\u009b\xff" + strings.Repeat("x", 3000)},
	}
	var out strings.Builder
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	want := "https://x?[2J\ncertificate\n  ✓ pass  tls-certificate       fine\n  – skip  sct                   not needed\n" +
		"gateway\n  ✗ fail  document              bad ?[31m??" + strings.Repeat("x", 2000-len("bad ?[31m??")) + "…\nNOT VERIFIED: document\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	out.Reset()
	if err := r.PrintColour(&out); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "\x1b[32m✓ pass\x1b[0m") || strings.Contains(got, "\x1b[2J") {
		t.Errorf("%q", got)
	}
	r.Verdict, r.Checks, r.Simulated = ratls.Pass, r.Checks[:2], true
	out.Reset()
	if err := r.Print(&out); err != nil || !strings.HasSuffix(out.String(), "\nverified, but the TEE is SIMULATED: this proves nothing about hardware\n") {
		t.Errorf("%v %q", err, out.String())
	}
}

// TestTheJSONIsStable holds the members that programs read.
func TestTheJSONIsStable(t *testing.T) {
	r := must(sample(t).Verify(t.Context(), verify.Options{}))(t)
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(jsonText(t, r)), &members); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"url", "verdict", "time", "replayed", "collected", "checks", "simulated", "claims"} {
		if members[name] == nil {
			t.Errorf("no member %s", name)
		}
		delete(members, name)
	}
	for name := range members {
		t.Errorf("a member more: %s", name)
	}
	var checks []map[string]string
	if err := json.Unmarshal(members["checks"], &checks); members["checks"] != nil && err != nil {
		t.Error(err)
	}
}

func TestClaimsSayWhereTheyAreFrom(t *testing.T) {
	w := newWorld(t)
	r := must(w.demo.Verify(t.Context(), w.demo.Apps()[0].URL))(t)
	app := ratls.HopApp + " " + w.demo.Apps()[0].Instance.String()
	for _, want := range []struct{ hop, name, source, value string }{
		{"certificate", "spki_sha256", "certificate", ""},
		{"certificate", "caa", "DNS", `issue ";"`},
		{"gateway", "mrtd", "quote", ""},
		{"gateway", "rtmr3", "quote", ""},
		{"gateway", "app_id", "event log", ""},
		{"gateway", "tcb_platform", "collateral", "UpToDate"},
		{"gateway", "os_image_hash", "vm configuration", ""},
		{"statement", "node", "statement", "demo"},
		{app, "compose_hash", "event log", ""},
		{app, "wg_public_key", "quote", ""},
		{app, "tunnel_wg_public_key", "statement", ""},
		{app, "named_id", "host name", w.demo.Apps()[0].ID.String()},
	} {
		found := false
		for _, c := range r.Claims {
			found = found || c.Hop == want.hop && c.Name == want.name && c.Source == want.source && c.Value != "" && (want.value == "" || c.Value == want.value)
		}
		if !found {
			t.Errorf("no claim %+v among %+v", want, r.Claims)
		}
	}
}

// kept is a bundle that was made by an earlier version, of a demo, and what its maker accepted.
func kept(t testing.TB) ([]byte, verify.Options) {
	t.Helper()
	o := verify.Options{CAs: x509.NewCertPool()}
	o.CAs.AppendCertsFromPEM(must(os.ReadFile("testdata/ca.pem"))(t))
	block, _ := pem.Decode(must(os.ReadFile("testdata/simulated-tdx-root.pem"))(t))
	o.Chain.Roots = []ratls.VerifierConfig{{}, {Root: must(x509.ParseCertificate(block.Bytes))(t)}}
	return must(os.ReadFile("testdata/bundle.json"))(t), o
}

func TestABundleIsJudgedYearsLaterAsItWas(t *testing.T) {
	text, o := kept(t)
	b := must(verify.ParseBundle(text))(t)
	r := must(b.Verify(t.Context(), o))(t)
	expect(t, r, "", "")
	if !r.Time.Equal(b.Time) || !r.Simulated || len(r.Checks) < 25 {
		t.Errorf("judged as of %s, of %s; simulated %t, %d checks", r.Time, b.Time, r.Simulated, len(r.Checks))
	}
	if r := must(b.Verify(t.Context(), verify.Options{CAs: o.CAs}))(t); r.OK() {
		t.Error("a bundle brought its own root of trust")
	}
}

// FuzzParseBundle reads bundles: what can be read is written as it was read.
func FuzzParseBundle(f *testing.F) {
	f.Add(must(sample(f).Encode())(f))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := verify.ParseBundle(text)
		if err != nil {
			return
		}
		first := must(b.Encode())(t)
		if again := must(must(verify.ParseBundle(first))(t).Encode())(t); string(first) != string(again) {
			t.Errorf("first %s\nagain %s", first, again)
		}
	})
}

// FuzzBundle judges what can be read: whatever it holds, there is a verdict, and the same one for what is written of it.
func FuzzBundle(f *testing.F) {
	text, o := kept(f)
	f.Add(text)
	f.Add(must(sample(f).Encode())(f))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := verify.ParseBundle(text)
		if err != nil {
			return
		}
		first, err := b.Verify(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		again, err := verify.ParseBundle(must(b.Encode())(t))
		if err != nil {
			t.Fatal(err)
		}
		second, err := again.Verify(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := fmt.Sprint(first.Checks), fmt.Sprint(second.Checks); a != b {
			t.Errorf("first %s\nagain %s", a, b)
		}
	})
}
