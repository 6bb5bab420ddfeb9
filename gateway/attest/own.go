package attest

import (
	"io"
	"net/http"
	"strings"

	"dstack.host/gateway/proxy"
)

// explorerPath is where the attestation explorer is.
const explorerPath = "/explorer"

// serveOwn answers on the gateway's own names, with the paths of dstack's gateway (dstack 0.6 gateway/src/proxy/tls_terminate.rs):
// the leading /.dstack is optional.
func (a *Attester) serveOwn(w http.ResponseWriter, r *http.Request, s subject) error {
	if r.URL.Path == explorerPath && a.config.Explorer != nil {
		a.config.Explorer.ServeHTTP(w, r)
		return nil
	}
	path := strings.TrimPrefix(r.URL.Path, "/.dstack")
	known := map[string]func(http.ResponseWriter, *http.Request, subject) error{
		"/": a.serveLanding, "/health": a.serveHealth, "/index": a.serveIndex, "/app-info": a.serveAppInfo, "/acme-info": a.serveACMEInfo,
	}
	answer, ok := known[path]
	switch {
	case !ok:
		return proxy.Fail(proxy.NotFound, nil)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		return proxy.FailWith(proxy.BadRequest, http.StatusMethodNotAllowed, "Use GET.")
	}
	return answer(w, r, s)
}

// serveLanding is the page about the gateway itself.
func (a *Attester) serveLanding(w http.ResponseWriter, r *http.Request, s subject) error {
	return a.serveHeld(w, r, s, formHTML)
}

func (a *Attester) serveHealth(http.ResponseWriter, *http.Request, subject) error { return nil }

func (a *Attester) serveIndex(w http.ResponseWriter, _ *http.Request, _ subject) error {
	return sendJSON(w, []byte(`{"type":"dstack gateway","paths":["/index","/app-info","/acme-info"]}`))
}

func (a *Attester) serveAppInfo(w http.ResponseWriter, r *http.Request, s subject) error {
	d, err := a.current(r.Context(), clientOf(r), s)
	if err != nil {
		return outward(err)
	}
	info, err := d.appInfo()
	if err != nil {
		return proxy.Fail(proxy.NoEvidence, err)
	}
	return sendJSON(w, info)
}

func (a *Attester) serveACMEInfo(w http.ResponseWriter, _ *http.Request, _ subject) error {
	info, err := a.ACMEInfo()
	if err != nil {
		return err
	}
	return sendJSON(w, info)
}

func sendJSON(w http.ResponseWriter, text []byte) error {
	h := w.Header()
	h["Content-Type"], h["Cache-Control"], h["X-Content-Type-Options"] = contentTypes[formJSON], noStore, noSniff
	_, err := io.WriteString(w, string(text))
	return err
}
