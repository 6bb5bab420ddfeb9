// Package explorer shows what attestation evidence says: a quote, an event log, an attestation document, a verification
// bundle, an RA-TLS certificate or dstack's attestation, pasted or uploaded, decoded field by field and held to the same checks
// as everywhere else. Nothing leaves the process: no collateral is fetched, only what the input itself brings is used.
package explorer

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"dstack.host/ratls"
)

const (
	// defaultMaxInput bounds what is looked at. A bundle of an app with many instances is the largest thing there is.
	defaultMaxInput = 16 << 20
	// maxLooking is how many inputs are decoded at once: each costs some milliseconds, and its own size several times.
	maxLooking = 4
	// formOverhead is what a form adds to its content.
	formOverhead = 4 << 10
	// patience bounds one look.
	patience = 20 * time.Second
)

// Config is what an [Explorer] goes by. The zero value accepts Intel's root alone.
type Config struct {
	// Roots are accepted for quotes; Intel's alone when empty. Getters in it are not used.
	Roots []ratls.VerifierConfig
	// CAs are accepted for the TLS certificates of bundles; nil is the system's.
	CAs *x509.CertPool
	// MaxInput bounds what is looked at, in bytes; 0 is 16 MiB. The page tells it.
	MaxInput int64
}

// Explorer serves the form and what it shows. It is safe for concurrent use.
type Explorer struct {
	roots     []ratls.VerifierConfig
	simulated bool // a root that is not Intel's is accepted
	cas       *x509.CertPool
	maxInput  int64
	looking   chan struct{}
}

// New makes an explorer.
func New(c Config) *Explorer {
	e := &Explorer{cas: c.CAs, maxInput: cmp.Or(c.MaxInput, defaultMaxInput), looking: make(chan struct{}, maxLooking)}
	for _, root := range c.Roots {
		e.simulated = e.simulated || root.Root != nil
		e.roots = append(e.roots, ratls.VerifierConfig{Root: root.Root, Policy: root.Policy, Now: root.Now})
	}
	if len(e.roots) == 0 {
		e.roots = []ratls.VerifierConfig{{}}
	}
	return e
}

// size is a number of bytes for people.
func size(n int64) string {
	if n >= 1<<20 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// refusal is an input that is not looked at.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// ServeHTTP answers GET with the form, and POST of the form with what it holds.
func (e *Explorer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		e.show(w, http.StatusOK, page{})
		return
	case http.MethodPost:
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		e.show(w, http.StatusMethodNotAllowed, page{Error: "Use the form: GET shows it, POST sends it."})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	select {
	case e.looking <- struct{}{}:
		defer func() { <-e.looking }()
	case <-ctx.Done():
		e.show(w, http.StatusServiceUnavailable, page{Error: "Too many inputs are looked at just now. Try again in a few seconds."})
		return
	}
	input, err := e.readInput(w, r)
	if err != nil {
		no := &refusal{http.StatusBadRequest, "The form could not be read: send it again."}
		errors.As(err, &no)
		e.show(w, no.status, page{Error: no.text})
		return
	}
	found, err := e.Look(ctx, input)
	if err != nil {
		e.show(w, http.StatusBadRequest, page{Error: err.Error()})
		return
	}
	e.show(w, http.StatusOK, page{Found: found})
}

// readInput reads the file of a form, or its text when there is no file. Nothing is written to disk.
func (e *Explorer) readInput(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "multipart/form-data" {
		return nil, &refusal{http.StatusUnsupportedMediaType, "Send the form as multipart/form-data, with a field named text or a file named file: curl -F file=@quote.bin"}
	}
	r.Body = http.MaxBytesReader(w, r.Body, e.maxInput+formOverhead)
	parts, err := r.MultipartReader()
	if err != nil {
		return nil, err
	}
	var text []byte
	for range 8 { // a browser sends two parts
		part, err := parts.NextPart()
		if err == io.EOF { // the end of the form; a form that ends early wraps it
			break
		}
		if err != nil {
			return nil, e.tooLarge(err)
		}
		content, err := io.ReadAll(part)
		if err != nil {
			return nil, e.tooLarge(err)
		}
		switch {
		case part.FormName() == "file" && len(content) > 0:
			return content, nil
		case part.FormName() == "text":
			text = content
		}
	}
	if len(text) == 0 {
		return nil, &refusal{http.StatusBadRequest, "There is nothing to look at: paste something, or choose a file."}
	}
	return text, nil
}

func (e *Explorer) tooLarge(err error) error {
	if errors.As(err, new(*http.MaxBytesError)) {
		return &refusal{http.StatusRequestEntityTooLarge, "The input is larger than " + size(e.maxInput) + ", all that is taken here. The command dstack-gateway explorer takes more on your own machine."}
	}
	return err
}
