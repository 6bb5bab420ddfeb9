package web_test

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"

	"dstack.host/gateway/web"
)

func TestAttestationPageEscapesEverything(t *testing.T) {
	const hostile = `"></script><script>alert(1)</script><style>`
	page := render(t, web.Attestation{
		Host: hostile, Node: hostile, TEE: hostile, Simulated: true,
		Checks: []web.Check{{Name: hostile, Status: hostile, Detail: hostile}, {Name: "host", Status: hostile, Detail: hostile}},
		Facts:  []web.Fact{{Station: "app", Name: hostile, Value: hostile}}, Apps: []web.App{{Instance: hostile, Compose: hostile}},
		SimulatedRoot: []byte(hostile),
	})
	if strings.Contains(page, "<script>alert") {
		t.Errorf("hostile text gets through:\n%s", page)
	}
}

func TestAttestationPageFailsClosed(t *testing.T) {
	for name, a := range map[string]web.Attestation{
		"no checks":      {},
		"unknown status": {Checks: []web.Check{{Name: "host", Status: "fine"}}},
		"unknown link":   {Checks: []web.Check{{Name: "host", Status: web.Pass}, {Name: "new", Status: web.Fail}}},
	} {
		if page := render(t, a); !strings.Contains(page, `data-verdict="fail"`) {
			t.Errorf("%s passes", name)
		}
	}
	if page := render(t, web.Attestation{Checks: []web.Check{{Name: "host", Status: web.Pass}}}); !strings.Contains(page, `data-verdict="pass"`) {
		t.Error("a passed check does not pass")
	}
}

func TestAttestationPolicyAllowsItsStyleAndNothingElse(t *testing.T) {
	policy := web.AttestationPolicy()
	_, rest, _ := strings.Cut(render(t, web.Attestation{}), "<style>")
	css, _, _ := strings.Cut(rest, "</style>")
	sum := sha256.Sum256([]byte(css))
	if want := "style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; css == "" || !strings.Contains(policy, want) {
		t.Errorf("policy %s, the page's style is %s", policy, want)
	}
	if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
		t.Errorf("policy %s", policy)
	}
}
