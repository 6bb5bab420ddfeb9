package gateway

import (
	"net/http"

	"dstack.host/gateway/proxy"
	"dstack.host/gateway/web"
)

// own answers for the gateway itself: the attestation path of every name, and everything on its own names. What it
// returns as an error the proxy turns into an answer.
func (a *attester) own(w http.ResponseWriter, r *http.Request) error {
	switch r.URL.Path {
	case proxy.AttestationPath:
		return a.serve(w, r)
	case "/":
		page := web.Landing{Host: hostOnly(r.Host), Node: a.node, TEE: string(a.kind), Evidence: proxy.AttestationPath}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", web.Policy())
		w.Header().Set("X-Content-Type-Options", "nosniff")
		return page.Render(w)
	}
	return proxy.Fail(proxy.NotFound, nil)
}
