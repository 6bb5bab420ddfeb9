package web

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"net"
	"regexp"
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
	// Host is the host that was asked for, if possible with its port when that is not 443. Node is the gateway's name for itself.
	Host, Node string
	// TEE is the kind of the gateway's TEE, "tdx" or "simulated-tdx"; any other is told as not attested. Simulated says that some of
	// the evidence is not of hardware, which the page says loudly, as it does of any TEE but "tdx".
	TEE       string
	Simulated bool
	// Checks are the server's own verdict, in the order in which they were made, under the names of the links of ratls.Chain. Without
	// any the page says that the server has told none.
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
	Hop    string // where on the way the link is, as in ratls.Check: "app " and the id of an instance, or anything else
	Name   string // of the link
	Status string // Pass, Fail or Skip
	Detail string // what was compared, or why it failed
}

// Fact is a value that stands behind a link: a measurement, a key, a hash.
type Fact struct {
	Station  string // one of Stations
	Instance string // the id of the instance that it is about, "" for none
	Name     string // what it is, for people
	Value    string
}

// App is one instance behind the name.
type App struct {
	Instance string // its id
	Compose  string // the exact text of its app-compose.json, "" when it sent none
}

// Render writes the page. Serve it under [AttestationPolicy].
func (a Attestation) Render(w io.Writer) error {
	return attestationTemplate().Execute(w, struct {
		Attestation
		Style           template.CSS
		Script          template.JS
		Root, Hostname  string
		Verdict, Failed string
		Mark            string
		Stations        []view
	}{a, template.CSS(attestationStyle()), template.JS(script()), string(a.SimulatedRoot), hostname(a.Host), a.verdict(), a.failed(), a.mark(), a.views()})
}

// hostname drops the port of a host.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return host
}

// verdict is Fail when any check failed or none was made, else Pass.
func (a Attestation) verdict() string {
	if len(a.Checks) == 0 || a.failed() != "" {
		return Fail
	}
	return Pass
}

// mark says whether what is behind the page is hardware.
func (a Attestation) mark() string {
	if a.Simulated || a.TEE != "tdx" {
		return "simulated"
	}
	return ""
}

// failed is the name of the first check that failed.
func (a Attestation) failed() string {
	for _, c := range a.Checks {
		if status(c.Status) == Fail {
			return c.Name
		}
	}
	return ""
}

// AttestationPolicy is the Content-Security-Policy of the attestation page: its one script and its one style, by their hashes, and
// requests to where it came from. The sandbox gives the page an origin of its own: an app has the same host name, and its scripts
// could otherwise reach into a page that they opened.
func AttestationPolicy() string {
	return fmt.Sprintf("default-src 'none'; script-src '%s'; style-src '%s'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "+
		"frame-ancestors 'none'; sandbox allow-scripts; require-trusted-types-for 'script'; trusted-types 'none'", source(script()), source(attestationStyle()))
}

// source is the source expression that allows an inline text.
func source(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

var attestationTemplate = sync.OnceValue(func() *template.Template {
	functions := template.FuncMap{"readable": readable}
	return template.Must(template.New("attestation.html").Funcs(functions).ParseFS(Files, "attestation.html"))
})

var attestationStyle = sync.OnceValue(func() string { return style() + read("attestation.css") })

// modules are the parts of the verifier, each after those that it imports.
var modules = []string{"bytes.js", "json.js", "der.js", "x509.js", "intel.js", "quote.js", "tcb.js", "collateral.js", "eventlog.js", "document.js",
	"name.js", "chain.js", "dom.js", "page.js"}

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
