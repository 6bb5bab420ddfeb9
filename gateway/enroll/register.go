package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"dstack.host/gateway/prpc"
	"dstack.host/gateway/registry"
	"dstack.host/tunnel"
)

// register finds out who is asking, reads and verifies everything that the request carries, then stores it.
func (s *Server) register(c *prpc.Call) (registry.Instance, error) {
	none, r := registry.Instance{}, c.Request
	ctx, cancel := context.WithTimeout(r.Context(), s.limits.work)
	defer cancel()
	if err := s.sources.take(source(r)); err != nil {
		return none, err
	}
	chain := chainOf(r)
	id, err := s.identified(ctx, chain)
	if err != nil {
		return none, err
	}
	return within(ctx, s.serving, func() (registry.Instance, error) {
		if err := s.instances.take(string(id.info.InstanceID)); err != nil {
			return none, err
		}
		var message registerRequest
		if err := c.Read(&message, maxBody, s.limits.body); err != nil {
			return none, refuse(reasonRequest, err)
		}
		req, err := message.parse()
		if err != nil {
			return none, refuse(reasonRequest, err)
		}
		if err := s.notOfGateway(req.Key); err != nil {
			return none, err
		}
		if id.remembered && !s.refreshes(id, req) {
			if id, err = s.identify(ctx, chain); err != nil {
				return none, err
			}
		}
		if err := s.bring(ctx, &id, req, r); err != nil {
			return none, err
		}
		if err := s.consent(ctx, id); err != nil {
			return none, err
		}
		return s.save(ctx, id, req)
	})
}

// notOfGateway refuses the key of a gateway, which everybody is told. WireGuard takes no peer with its own key.
func (s *Server) notOfGateway(key tunnel.PublicKey) error {
	servers := s.config.Servers
	if s.config.Nodes != nil {
		for _, node := range s.config.Nodes() {
			servers = append(slices.Clip(servers), node.Server)
		}
	}
	if slices.ContainsFunc(servers, func(server TunnelServer) bool { return server.Key == key }) {
		return refuse(reasonKey, errors.New("client_public_key: is the key of a gateway"))
	}
	return nil
}

// chainOf is what the client showed, leaf first; nil without TLS.
func chainOf(r *http.Request) []*x509.Certificate {
	if r.TLS == nil {
		return nil
	}
	return r.TLS.PeerCertificates
}

// identified is who shows a chain: what is remembered of it, or verified in one of the places.
func (s *Server) identified(ctx context.Context, chain []*x509.Certificate) (identity, error) {
	if id, ok := s.verdicts.find(chain, s.config.Now()); ok {
		return id, nil
	}
	return within(ctx, s.identifying, func() (identity, error) {
		id, err := s.identify(ctx, chain)
		if err == nil {
			s.verdicts.keep(chain, id, s.config.Now())
		}
		return id, err
	})
}

// refreshes reports whether a request says nothing of an identity but what is registered already, with evidence that is no
// weaker. What is remembered of the identity is enough then.
func (s *Server) refreshes(id identity, req request) bool {
	known := s.config.Current(registry.InstanceID(id.info.InstanceID))
	return req.Evidence == nil && id.sameAs(known, req.Key) && len(known.Evidence) > 0 && strength(known.Binding) >= strength(id.binding)
}

// bring verifies the evidence of the request, or demands better than the certificate's where this gateway wants it.
func (s *Server) bring(ctx context.Context, id *identity, req request, r *http.Request) error {
	if req.Evidence == nil {
		return s.demand(*id, req)
	}
	expected, err := challenge(r.TLS)
	if err != nil {
		return refuse(reasonEvidence, fmt.Errorf("evidence: %w", err))
	}
	return s.upgrade(ctx, id, req, expected)
}

// consent holds an identity to what this gateway takes: its policy, and whom it asks. They are asked with every registration, so that a
// refresh meets the answer of today. An instance that is registered, and refused now, is let go.
func (s *Server) consent(ctx context.Context, id identity) error {
	err := s.config.judge(ctx, id.quote, id.info)
	if refused, ok := errors.AsType[*refusal](err); ok && s.config.Refused != nil {
		if known := s.config.Current(registry.InstanceID(id.info.InstanceID)); known != nil && known.App == registry.AppID(id.info.AppID) {
			s.config.Refused(ctx, known, refused.reason)
		}
	}
	return err
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

// save registers an identity under the key of its request.
func (s *Server) save(ctx context.Context, id identity, req request) (registry.Instance, error) {
	inst, err := id.instance(req, s.config.Now())
	if err != nil {
		return inst, err
	}
	if kept := keepStronger(&inst, s.config.Current(inst.ID), id); !kept && id.evidence == nil {
		return inst, fmt.Errorf("%w: another registration of this instance was faster", errBusy)
	}
	registered, changed, err := s.config.Register(ctx, inst)
	if err != nil {
		return registered, err
	}
	s.metrics.registered(registered.Identity, changed)
	if changed {
		s.config.Logger.Info("registered", "app", inst.App, "instance", inst.ID, "address", registered.Addr, "identity", registered.Identity, "binding", registered.Binding)
	}
	return registered, nil
}
