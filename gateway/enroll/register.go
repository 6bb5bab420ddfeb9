package enroll

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"dstack.host/gateway/registry"
)

// register finds out who is asking, reads and verifies everything that the request carries, then stores it.
func (s *Server) register(w http.ResponseWriter, r *http.Request) (registry.Instance, error) {
	none := registry.Instance{}
	ctx, cancel := context.WithTimeout(r.Context(), s.limits.work)
	defer cancel()
	if r.TLS == nil {
		return none, refuse(reasonIdentity, errNoAttestation)
	}
	id, err := within(ctx, s.identifying, func() (identity, error) { return s.identify(ctx, r.TLS.PeerCertificates) })
	if err != nil {
		return none, err
	}
	return within(ctx, s.serving, func() (registry.Instance, error) {
		body, err := readBody(w, r, s.limits.body)
		if err != nil {
			return none, refuse(reasonRequest, err)
		}
		req, err := parseRequest(body)
		if err != nil {
			return none, refuse(reasonRequest, err)
		}
		if req.Evidence != nil {
			expected, err := challenge(r.TLS)
			if err != nil {
				return none, refuse(reasonEvidence, fmt.Errorf("evidence: %w", err))
			}
			if err := s.upgrade(ctx, &id, req, expected); err != nil {
				return none, err
			}
		}
		if err := s.appraise(id); err != nil {
			return none, err
		}
		return s.save(ctx, id, req)
	})
}

// appraise holds an identity to what this gateway takes. It is asked with every registration, so that a refresh meets the
// policy of today.
func (s *Server) appraise(id identity) error {
	if s.config.Appraise == nil {
		return nil
	}
	if err := s.config.Appraise(id.quote, id.info); err != nil {
		return refuse(reasonPolicy, fmt.Errorf("this gateway does not take the app: %w", err))
	}
	return nil
}

// within does something in one of the places, once there is one.
func within[T any](ctx context.Context, places chan struct{}, do func() (T, error)) (T, error) {
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
		return do()
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("%w: %w", errBusy, ctx.Err())
	}
}

// readBody reads the whole body, whose bytes have to come soon.
func readBody(w http.ResponseWriter, r *http.Request, soon time.Duration) ([]byte, error) {
	tooLarge := fmt.Errorf("payload too large: the limit is %d bytes", maxBody)
	if r.ContentLength > maxBody {
		return nil, tooLarge
	}
	deadline := http.NewResponseController(w)
	_ = deadline.SetReadDeadline(time.Now().Add(soon))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	switch {
	case err == nil:
		// The deadline is the connection's, which is watched while the request is worked on.
		_ = deadline.SetReadDeadline(time.Now().Add(requestTimeout))
	case errors.As(err, new(*http.MaxBytesError)):
		return nil, tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("the body did not come within %v", soon)
	}
	return body, err
}

// save registers an identity under the key of its request.
func (s *Server) save(ctx context.Context, id identity, req request) (registry.Instance, error) {
	inst, err := id.instance(req, s.config.Now())
	if err != nil {
		return inst, err
	}
	if err := keepStronger(&inst, s.config.Current(inst.ID), id.evidence.Binding, req.Ports); err != nil {
		return inst, refuse(reasonRequest, err)
	}
	registered, changed, err := s.config.Register(ctx, inst)
	if err != nil {
		return registered, err
	}
	if changed {
		s.config.Logger.Info("registered", "app", inst.App, "instance", inst.ID, "address", registered.Addr, "identity", inst.Identity, "binding", id.evidence.Binding, "kind", id.evidence.Kind)
	}
	return registered, nil
}
