package web_test

import (
	"crypto/sha256"
	"encoding/base64"
	"io"
	"io/fs"
	"regexp"
	"strings"
	"testing"

	"dstack.host/gateway/web"
)

// loads matches whatever makes a browser fetch or run something.
var loads = regexp.MustCompile(`(?i)<script|<iframe|<object|<embed|<img|<base|<form|@import|@font-face|url\(|srcset|\son[a-z]+\s*=|style\s*=|https?:|javascript:|//[a-z0-9]`)

// link matches every reference and captures where it leads.
var link = regexp.MustCompile(`(?i)\s(?:href|src|action)\s*=\s*"([^"]*)"`)

func TestPagesAreSelfContained(t *testing.T) {
	files := 0
	err := fs.WalkDir(web.Files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || name == "attestation.html" || strings.HasPrefix(name, "verify/") {
			return err // the page with a script has a test of its own
		}
		files++
		text, err := fs.ReadFile(web.Files, name)
		checkSelfContained(t, name, string(text))
		return err
	})
	if err != nil || files < 2 {
		t.Fatalf("walked %d files: %v", files, err)
	}
	checkSelfContained(t, "error page", render(t, web.Error{Status: 404, Title: "x", Hop: "name", Evidence: "/.well-known/attestation"}))
}

func checkSelfContained(t *testing.T, name, text string) {
	t.Helper()
	if found := loads.FindString(text); found != "" {
		t.Errorf("%s contains %q", name, found)
	}
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		if m[1] != "data:," && m[1] != "{{.}}" && !strings.HasPrefix(m[1], "/") {
			t.Errorf("%s refers to %q", name, m[1])
		}
	}
}

func TestSelfContainedRuleCanFail(t *testing.T) {
	for _, bad := range []string{
		`<script>`, `<link rel=stylesheet href="https://x.example/a.css">`, `<style>@import "a"</style>`, `<p onclick="x">`, `<p style="x">`,
		`background: url(a.png)`, `<a href="//x.example">`,
	} {
		if !loads.MatchString(bad) {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestErrorPageSaysWhichHopFailed(t *testing.T) {
	for i, hop := range web.Hops() {
		page := render(t, web.Error{Status: 502, Title: "t", Hop: hop})
		if n := strings.Count(page, `class="failed"`); n != 1 {
			t.Errorf("%s: %d failed hops", hop, n)
		}
		if n := strings.Count(page, `class="passed"`); n != i {
			t.Errorf("%s: %d passed hops, want %d", hop, n, i)
		}
		if want := "<b>" + hop + "</b> <span>failed</span>"; !strings.Contains(page, want) {
			t.Errorf("%s: no %s", hop, want)
		}
	}
}

func TestErrorPageEscapesEverything(t *testing.T) {
	const hostile = `"><script>alert(1)</script><a href='javascript:x'>`
	page := render(t, web.Error{Status: 400, Title: hostile, Detail: hostile, Reason: hostile, Hop: hostile, RequestID: hostile, Node: hostile, TEE: hostile, Evidence: "javascript:alert(1)"})
	for _, bad := range []string{"<script", `href="javascript`, "<a href='"} {
		if strings.Contains(page, bad) {
			t.Errorf("page contains %s:\n%s", bad, page)
		}
	}
}

func TestErrorPageTellsTheTruthAboutTheTEE(t *testing.T) {
	for tee, want := range map[string]string{"tdx": "Intel TDX confidential VM", "simulated-tdx": "proves nothing", "": "states no TEE", "sgx": "states no TEE"} {
		if page := render(t, web.Error{TEE: tee}); !strings.Contains(page, want) {
			t.Errorf("%q: no %q", tee, want)
		}
	}
}

func TestPolicyAllowsTheStyleAndNothingElse(t *testing.T) {
	policy := web.Policy()
	_, rest, _ := strings.Cut(render(t, web.Error{}), "<style>")
	css, _, _ := strings.Cut(rest, "</style>")
	sum := sha256.Sum256([]byte(css))
	if want := "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; css == "" || !strings.Contains(policy, want) {
		t.Errorf("policy %s, the page's style is %s", policy, want)
	}
	if !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
		t.Errorf("policy %s", policy)
	}
}

// page is what can be rendered.
type page interface{ Render(io.Writer) error }

func render(t *testing.T, e page) string {
	t.Helper()
	var b strings.Builder
	if err := e.Render(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
