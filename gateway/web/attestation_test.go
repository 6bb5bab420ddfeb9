package web_test

import (
	"crypto/sha256"
	"encoding/base64"
	"regexp"
	"strings"
	"testing"

	"dstack.host/gateway/web"
)

// full is a page with something of everything.
func full() web.Attestation {
	a := web.Attestation{
		Host: "app.dstack.example.com:8443", Node: "node-1", TEE: "tdx",
		Facts: []web.Fact{{Station: "app", Instance: "00aa", Name: "RTMR3", Value: "ff"}, {Station: "key", Name: "key", Value: "ee"}},
		Apps:  []web.App{{Instance: "00aa", Compose: `{"name":"hello","docker_compose_file":"services:\n  web: {}\n"}`}, {Instance: "00bb"}},
	}
	for _, name := range []string{"document", "gateway-quote", "gateway-tcb", "gateway-event-log", "challenge", "statement", "freshness", "certificate-key", "host"} {
		a.Checks = append(a.Checks, web.Check{Hop: "gateway", Name: name, Status: web.Pass, Detail: "about " + name})
	}
	a.Checks = append(a.Checks, web.Check{Hop: "gateway", Name: "gateway-measurements", Status: web.Skip, Detail: "not pinned"})
	return a
}

func TestAttestationPageEscapesEverything(t *testing.T) {
	const hostile = `"></script><script>alert(1)</script><style>`
	page := render(t, web.Attestation{
		Host: hostile, Node: hostile, TEE: hostile, Simulated: true,
		Checks: []web.Check{{Name: hostile, Status: hostile, Detail: hostile, Hop: hostile}, {Name: "host", Status: hostile, Detail: hostile}},
		Facts:  []web.Fact{{Station: "app", Instance: hostile, Name: hostile, Value: hostile}}, Apps: []web.App{{Instance: hostile, Compose: hostile}, {Compose: `{"x":"\n` + `</pre><script>alert(1)</script>"}`}},
		SimulatedRoot: []byte(hostile),
	})
	if strings.Contains(page, "<script>alert") || strings.Contains(page, `"><style`) {
		t.Errorf("hostile text gets through:\n%s", page)
	}
}

func TestAttestationPageFailsClosed(t *testing.T) {
	for name, row := range map[string]struct {
		page    web.Attestation
		verdict string
		station string // in which something fails
	}{
		"no checks":      {web.Attestation{TEE: "tdx"}, "fail", ""},
		"unknown status": {web.Attestation{Checks: []web.Check{{Name: "host", Status: "fine"}}}, "fail", "name"},
		"unknown link":   {web.Attestation{Checks: []web.Check{{Name: "host", Status: web.Pass}, {Name: "new", Status: web.Fail}}}, "fail", "gateway"},
		"one of two":     {web.Attestation{Checks: []web.Check{{Name: "instance", Status: web.Pass}, {Name: "instance", Status: web.Fail}}}, "fail", "app"},
		"all":            {full(), "pass", ""},
	} {
		page := render(t, row.page)
		if !strings.Contains(page, `data-verdict="`+row.verdict+`"`) {
			t.Errorf("%s: the verdict is not %s", name, row.verdict)
		}
		for _, station := range web.Stations() {
			if failed := strings.Contains(page, `<section class="station fail" id="`+station+`"`); failed != (station == row.station) {
				t.Errorf("%s: station %s fails is %t", name, station, failed)
			}
		}
	}
}

func TestAttestationPageTellsStates(t *testing.T) {
	page := render(t, full())
	for station, want := range map[string]string{"machine": "pass", "gateway": "pass", "key": "pass", "name": "pass", "tunnel": "skip", "app": "skip"} {
		if !strings.Contains(page, `<li class="`+want+`" data-station="`+station+`">`) || !strings.Contains(page, `<section class="station `+want+`" id="`+station+`"`) {
			t.Errorf("station %s is not in state %s", station, want)
		}
	}
	for _, want := range []string{"about freshness", "<dt>RTMR3</dt>", "of instance <code>00aa</code>", "services:\n  web: {}\n", "own verdict", "https://app.dstack.example.com:8443/.well-known/attestation"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for _, row := range []struct {
		page web.Attestation
		loud bool
	}{{full(), false}, {web.Attestation{TEE: "simulated-tdx"}, true}, {web.Attestation{TEE: "tdx", Simulated: true}, true}, {web.Attestation{}, true}} {
		page := render(t, row.page)
		if loud := strings.Contains(page, `data-mark="simulated"`) && strings.Contains(page, `<p id="simulated" class="banner" role="note">`); loud != row.loud {
			t.Errorf("TEE %q, simulated %t: loud is %t", row.page.TEE, row.page.Simulated, loud)
		}
	}
}

func TestAttestationPolicyAllowsItsScriptAndItsStyle(t *testing.T) {
	policy, page := web.AttestationPolicy(), render(t, full())
	for directive, tag := range map[string]string{"style-src": "<style>", "script-src": `<script type="module">`} {
		_, rest, _ := strings.Cut(page, tag)
		text, _, _ := strings.Cut(rest, "</"+strings.Fields(strings.Trim(tag, "<>"))[0]+">")
		sum := sha256.Sum256([]byte(text))
		if want := directive + " 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "';"; text == "" || !strings.Contains(policy, want) {
			t.Errorf("policy %s has no %s", policy, want)
		}
		if n := strings.Count(page, tag); n != 1 {
			t.Errorf("the page has %s %d times", tag, n)
		}
	}
	if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") || strings.Contains(policy, "http") {
		t.Errorf("policy %s", policy)
	}
}

// fetches matches whatever makes a browser fetch something, or run what is not the one script.
var fetches = regexp.MustCompile(`(?i)<script [^t]|<iframe|<object|<embed|<img|<base|<form|@import|@font-face|url\(|srcset|\ssrc=|\son[a-z]+\s*=\s*["']|\sstyle\s*=|javascript:|import\(`)

func TestAttestationPageIsSelfContained(t *testing.T) {
	page := render(t, full())
	if found := fetches.FindString(page); found != "" {
		t.Errorf("the page contains %q", found)
	}
	markup, _, _ := strings.Cut(page, "<script")
	for _, m := range link.FindAllStringSubmatch(markup, -1) {
		if m[1] != "data:," && !strings.HasPrefix(m[1], "#") {
			t.Errorf("the page refers to %q", m[1])
		}
	}
	if found := fetches.FindString(`<img src="x">`); found == "" {
		t.Error("the rule cannot fail")
	}
}
