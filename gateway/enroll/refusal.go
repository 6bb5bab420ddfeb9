package enroll

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"dstack.host/gateway/registry"
	"dstack.host/gateway/store"
)

// Why a call failed, in a few known words for the log.
const (
	reasonRequest  = "bad_request"  // malformed, or of another kind than is served
	reasonIdentity = "no_identity"  // the client certificate names nobody
	reasonQuote    = "bad_quote"    // a quote, or what has to match it, does not verify
	reasonEvidence = "bad_evidence" // good evidence of something else
	reasonPolicy   = "policy"       // good evidence of what this gateway does not take
	reasonKey      = "key_in_use"
	reasonApp      = "other_app"
	reasonPool     = "pool_exhausted"
	reasonStore    = "store_unavailable"
	reasonBusy     = "busy"
	reasonRate     = "rate_limited" // too many of one source or one instance
	reasonWebhook  = "not_authorized"
	reasonInternal = "internal" // ours, or of something that we depend on
)

// errBusy says that others have all the places.
var errBusy = errors.New("too many registrations at once, try again")

// errTooMany says that the caller should wait.
var errTooMany = errors.New("too many registrations")

// refusal is an error that is the caller's: the same call will fail again. Any other error is ours.
type refusal struct {
	reason string
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func refuse(reason string, err error) error { return &refusal{reason, err} }

// classify maps an error outward: prpc answers 400 to everything that it refuses. What is nobody's fault but ours is 503,
// so that it can be told from the outside that the same call may succeed later.
func classify(err error) (status int, reason string) {
	var refused *refusal
	switch {
	case errors.As(err, &refused):
		return http.StatusBadRequest, refused.reason
	case errors.Is(err, errTooMany):
		return http.StatusTooManyRequests, reasonRate
	case errors.Is(err, registry.ErrKeyInUse):
		return http.StatusBadRequest, reasonKey
	case errors.Is(err, registry.ErrOtherApp):
		return http.StatusBadRequest, reasonApp
	case errors.Is(err, registry.ErrInvalid):
		return http.StatusBadRequest, reasonRequest
	case errors.Is(err, registry.ErrPoolExhausted):
		return http.StatusServiceUnavailable, reasonPool
	case errors.Is(err, store.ErrUnavailable):
		return http.StatusServiceUnavailable, reasonStore
	case errors.Is(err, errBusy), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable, reasonBusy
	}
	return http.StatusServiceUnavailable, reasonInternal
}

// clip bounds what of a stranger's text comes back to him and into the log.
func clip(text string, most int) string {
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return strings.ToValidUTF8(text, "?")
}
