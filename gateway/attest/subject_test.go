package attest_test

import (
	"strings"
	"testing"

	"dstack.host/gateway/attest"
)

// TestABaseMayLieBelowAnother reads names below two bases, in whichever order they are configured.
func TestABaseMayLieBelowAnother(t *testing.T) {
	const outer, inner = "a.example.com", "b.a.example.com"
	app := strings.Repeat("0f", 20)
	for _, bases := range [][]string{{outer, inner}, {inner, outer}} {
		for host, want := range map[string]string{
			outer:                                outer,
			inner:                                inner,
			"gateway." + outer:                   "gateway." + outer,
			"gateway." + inner:                   "gateway." + inner,
			app + "." + outer:                    app + "." + outer,
			app + "-8080." + inner:               app + "." + inner,
			strings.ToUpper(app) + ".b." + outer: app + "." + inner,
			app + ".c." + outer:                  "",
			app + ".x." + inner:                  "",
			"x." + app + "." + outer:             "",
			"gateway.gateway." + outer:           "",
			"example.com":                        "",
			app + "." + outer + ".":              "",
			"." + outer:                          "",
			"":                                   "",
		} {
			got, err := attest.SubjectOf(host, bases...)
			if got != want || (err == nil) != (want != "") {
				t.Errorf("%q below %v is %q (%v), want %q", host, bases, got, err, want)
			}
		}
	}
}
