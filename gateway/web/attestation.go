package web

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Statuses of a check, as the page spells them. Any other text is shown as a failure.
const (
	Pass = "pass"
	Fail = "fail"
	Skip = "skip"
)

// Attestation is the page about what stands behind one name: the chain of trust as a picture, every link with its state and the
// values behind it. What it is given is the server's own verdict, which the page calls so; with JavaScript the page fetches the
// document with a nonce of its own, verifies it in the browser, and replaces the verdict by what it found. Every text is escaped.
type Attestation struct {
	// Host is the host that was asked for, without port; Node the gateway's name for itself.
	Host, Node string
	// TEE is the kind of the gateway's TEE, "tdx" or "simulated-tdx"; any other is told as not attested. Simulated says that some of
	// the evidence is not of hardware, which the page says loudly.
	TEE       string
	Simulated bool
	// Checks are the server's own verdict, in the order in which they were made, under the names of the links of ratls.Chain. Without
	// any the page says that the server tells none.
	Checks []Check
	// Facts are the values behind the verdict.
	Facts []Fact
	// Apps are the instances behind the name, none for a name of the gateway's own.
	Apps []App
	// SimulatedRoot is the certificate (PEM) that simulated evidence descends from, nil when there is none to accept: the page then
	// accepts Intel's root alone. Whatever descends from it is marked as simulated.
	SimulatedRoot []byte
}

// Check is one link of the chain and what became of it.
type Check struct {
	Name   string // of the link
	Status string // Pass, Fail or Skip
	Detail string // what was compared, or why it failed
}

// Fact is a value that stands behind a link: a measurement, a key, a hash.
type Fact struct {
	Station string // one of Stations
	Name    string // what it is, for people
	Value   string
}

// App is one instance behind the name.
type App struct {
	Instance string // its id
	Compose  string // the exact text of its app-compose.json, "" when it sent none
}

// Stations are the parts of the picture, in the order from the root of trust to the app. They are the values of Fact.Station.
func Stations() []string {
	names := make([]string, 0, len(stations))
	for _, s := range stations {
		names = append(names, s.Name)
	}
	return names
}

// station is one part of the picture.
type station struct {
	Name, Title, About string
	Links              []string // names of the checks that belong to it
}

// stations divide the links of ratls.Chain. The browser's verifier has the same division (verify/page.js), held by a test.
var stations = []station{
	{"machine", "Machine", "A processor that keeps the host out, vouched for by its maker.", []string{"gateway-quote", "gateway-tcb"}},
	{"gateway", "Gateway", "The program in that machine, as it was measured.",
		[]string{"document", "gateway-event-log", "gateway-measurements", "challenge", "statement", "freshness"}},
	{"key", "Key", "The TLS key that this name is served with, held by that program alone.", []string{"certificate-key"}},
	{"name", "Name", "The name in the address bar.", []string{"host"}},
	{"tunnel", "Tunnel", "WireGuard, from the gateway to the app's machine.", []string{"app-evidence", "app-binding", "wireguard-key"}},
	{"app", "App", "The program that answers, as it was measured in its own machine.",
		[]string{"app-quote", "app-tcb", "rtmr3-replay", "app-identity", "app-compose", "app-measurements", "instance"}},
}

// view is a station with its state.
type view struct {
	station
	State  string
	Checks []Check
	Facts  []Fact
	Apps   []App
}

// views divides the verdict among the stations. A check of an unknown name goes to the gateway, so that no failure is lost.
func (a Attestation) views() []view {
	out := make([]view, len(stations))
	for i, s := range stations {
		out[i].station = s
		for _, f := range a.Facts {
			if f.Station == s.Name {
				out[i].Facts = append(out[i].Facts, f)
			}
		}
	}
	for _, c := range a.Checks {
		if c.Status != Pass && c.Status != Skip {
			c.Status = Fail
		}
		at := max(slices.IndexFunc(stations, func(s station) bool { return slices.Contains(s.Links, c.Name) }), 0)
		out[at].Checks = append(out[at].Checks, c)
	}
	for i := range out {
		out[i].State = state(out[i].Checks)
	}
	out[len(out)-1].Apps = a.Apps
	return out
}

// state of a station: it fails when any check does, and passes only when every check does but the comparison with expected
// measurements, which a page has none of.
func state(checks []Check) string {
	all := Skip
	for _, c := range checks {
		switch {
		case c.Status == Fail:
			return Fail
		case c.Status == Skip && !strings.HasSuffix(c.Name, "-measurements"):
			return Skip
		case c.Status == Pass:
			all = Pass
		}
	}
	return all
}

// Verdict is Fail when any check failed or none was made, else Pass.
func (a Attestation) verdict() string {
	if len(a.Checks) == 0 || slices.ContainsFunc(a.Checks, func(c Check) bool { return c.Status != Pass && c.Status != Skip }) {
		return Fail
	}
	return Pass
}

// Render writes the page. Serve it under [AttestationPolicy].
func (a Attestation) Render(w io.Writer) error {
	return attestationTemplate().Execute(w, struct {
		Attestation
		Style   template.CSS
		Script  template.JS
		Root    string
		Verdict string
		Views   []view
	}{a, template.CSS(attestationStyle()), template.JS(script()), string(a.SimulatedRoot), a.verdict(), a.views()})
}

// AttestationPolicy is the Content-Security-Policy of the attestation page: its one script and its one style, by their hashes, and
// requests to where it came from.
func AttestationPolicy() string {
	return fmt.Sprintf("default-src 'none'; script-src '%s'; style-src '%s'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "+
		"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'", source(script()), source(attestationStyle()))
}

// source is the source expression that allows an inline text.
func source(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

var attestationTemplate = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("attestation.html").ParseFS(Files, "attestation.html"))
})

var attestationStyle = sync.OnceValue(func() string { return style() + read("attestation.css") })

// modules are the parts of the verifier, each after those that it imports.
var modules = []string{}

// moduleSyntax is what a module has to say for itself and a part of a script has not: imports, one a line, and the word export.
var moduleSyntax = regexp.MustCompile(`(?m)^(import .*\n|export )`)

// script is the verifier as one module: a page under a policy that allows one inline script by its hash can import nothing.
var script = sync.OnceValue(func() string {
	var all strings.Builder
	for _, name := range modules {
		all.WriteString(moduleSyntax.ReplaceAllString(read("verify/"+name), ""))
	}
	return all.String()
})
