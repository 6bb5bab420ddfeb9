package ratls_test

import (
	"testing"

	"dstack.host/ratls"
)

// quoteSeeds are sound quotes of every form.
func quoteSeeds(f *testing.F) {
	f.Helper()
	a := vendor(f)
	for _, o := range []machine{{}, {Version: 5}, {UnversionedModule: true}} {
		raw, err := boot(f, a, o, vm{AppCompose: "{}"}).Quote(f.Context(), quoted)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte{})
}

func FuzzParseQuote(f *testing.F) {
	quoteSeeds(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := ratls.ParseQuote(raw)
		if (q == nil) == (err == nil) {
			t.Errorf("quote %v and error %v", q, err)
		}
		if err != nil && refusedBy(err) != ratls.CheckQuoteParse {
			t.Errorf("refused by %q: %v", refusedBy(err), err)
		}
	})
}

// FuzzVerify changes quotes of a vendor whose root is not the trusted one, so that nothing may ever be accepted: what is
// looked for is a panic, in this package or below it.
func FuzzVerify(f *testing.F) {
	quoteSeeds(f)
	trusted := vendor(f)
	v, err := ratls.NewVerifier(ratls.VerifierConfig{Root: trusted.Root(), Getter: trusted.Getter()})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if q, err := v.Verify(t.Context(), raw); err == nil {
			t.Errorf("verified below a foreign root: %+v", q)
		}
	})
}
