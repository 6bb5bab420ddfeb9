package explorer

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"sync"

	"dstack.host/gateway/web"
)

// page is what is shown: the form, and below it what was found or why nothing was.
type page struct {
	Error string
	Found *Found
}

//go:embed page.html
var source string

//go:embed page.css
var ownStyle string

var look = sync.OnceValue(func() *template.Template { return template.Must(template.New("page").Parse(source)) })

// style is that of all pages, with what tables need.
var style = sync.OnceValue(func() string {
	common, err := web.Files.ReadFile("style.css")
	if err != nil { // embedded: a test would see it
		panic(err)
	}
	return string(common) + ownStyle
})

// policy forbids everything but the style and sending the form to where it came from.
var policy = sync.OnceValue(func() string {
	digest := sha256.Sum256([]byte(style()))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(digest[:]) + "'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
})

func (e *Explorer) show(w http.ResponseWriter, status int, p page) {
	var b bytes.Buffer
	if err := look().Execute(&b, struct {
		page
		Style     template.CSS
		MaxInput  string
		Simulated bool
	}{p, template.CSS(style()), size(e.maxInput), e.simulated}); err != nil {
		http.Error(w, "the page could not be made", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policy())
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}
