package proxy

import (
	"log/slog"
	"net/http"
)

// Failing makes a handler for [Config.Own] of a function that may fail: what it returns, before it has written anything, is
// answered as the proxy answers its own failures. Make the error with [Fail] or [FailWith]; any other is told as [Internal].
func Failing(node, tee string, log *slog.Logger, serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	p := &Proxy{cfg: Config{Node: node, TEE: tee}, log: log}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := serve(w, r)
		if err == nil {
			return
		}
		f, id := asFailure(err), r.Header.Get("X-Request-Id")
		if status := p.problem(f, id).Status; status >= http.StatusInternalServerError {
			log.Error("own request", "host", r.Host, "path", r.URL.Path, "status", status, "request", id, "error", err)
		}
		p.answer(f, id, r.Header.Get("Accept")).write(w)
	})
}

// Fail is an error that is answered for a reason; err is for the log alone.
func Fail(reason Reason, err error) error { return fail(reason, err) }

// FailWith is an error that is answered for a reason, with a status and a detail of the caller's. The detail holds no text of a
// stranger's.
func FailWith(reason Reason, status int, detail string) error {
	return &failure{reason: reason, status: status, detail: detail}
}
