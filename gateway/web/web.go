// Package web holds the pages that people see, embedded in the binary. A page is one self-contained document: its style is inside, it
// loads nothing and runs no script, so it can be served under a policy that forbids everything else ([Policy]). The page about the chain
// of trust alone has a script, the verifier ([AttestationPolicy]).
package web

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"html/template"
	"io"
	"sync"
)

// Files are the embedded sources of the pages.
//
//go:embed *.css *.html verify/*.js
var Files embed.FS

// Policy is the Content-Security-Policy of every page: nothing but the style inside it.
var Policy = sync.OnceValue(func() string {
	sum := sha256.Sum256([]byte(style()))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
})

var style = sync.OnceValue(func() string { return read("style.css") })

// read returns an embedded file. The names are constants of this package, so a missing one cannot get past its tests.
func read(name string) string {
	b, err := Files.ReadFile(name)
	if err != nil {
		panic(err)
	}
	return string(b)
}

var errorTemplate = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("error.html").ParseFS(Files, "error.html"))
})

// Hops are the stations of a request, in the order in which it passes them.
func Hops() []string { return []string{"name", "gateway", "tunnel", "app"} }

// Error is what the page about a failed request shows. Every text is escaped.
type Error struct {
	Status    int
	Title     string // what happened
	Detail    string // what to do next
	Reason    string // the code a program would see
	Hop       string // one of Hops: where it failed
	RequestID string
	Node      string // which gateway answered; "" leaves it out
	TEE       string // kind of the gateway's TEE, "tdx" or "simulated-tdx"; "" is told as not attested
	Evidence  string // path of the attestation document; "" leaves the link out
}

// Render writes the page.
func (e Error) Render(w io.Writer) error {
	return errorTemplate().Execute(w, struct {
		Error
		Style template.CSS
		Path  []Hop
	}{e, template.CSS(style()), hops(e.Hop)})
}

// Hop is one station of the failed request's way.
type Hop struct {
	Name  string
	State string // "passed", "failed" or "not reached"
}

func hops(failed string) []Hop {
	path, state := make([]Hop, 0, len(Hops())), "passed"
	for _, name := range Hops() {
		switch {
		case name == failed:
			path = append(path, Hop{name, "failed"})
			state = "not reached"
		default:
			path = append(path, Hop{name, state})
		}
	}
	return path
}
