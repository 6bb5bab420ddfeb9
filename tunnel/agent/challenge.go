package agent

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"dstack.host/tunnel"
)

const (
	// EvidencePort is where an agent answers challenges, on its address inside the tunnel: GET EvidencePath with one query
	// parameter, challenge, of 64 hex digits. The answer is the JSON of evidence made for that challenge.
	EvidencePort = 8091
	EvidencePath = "/evidence"

	// maxChallenges is how many may wait for a quote; a TDX guest makes about one a second.
	maxChallenges    = 4
	challengeTimeout = 30 * time.Second
)

// evidenceFunc makes evidence for a challenge of ExporterSize bytes.
type evidenceFunc func(ctx context.Context, challenge []byte, key tunnel.PublicKey) (json.RawMessage, error)

// serving runs the app's service, which may be nil, and beside it the answers to challenges, until one of them fails or ctx
// ends.
func serving(serve func(context.Context, *tunnel.Tunnel) error, evidence evidenceFunc, key tunnel.PublicKey) func(context.Context, *tunnel.Tunnel) error {
	if evidence == nil {
		return serve
	}
	return func(ctx context.Context, t *tunnel.Tunnel) error {
		listener, err := t.Listen(netip.AddrPortFrom(t.Address().Addr(), EvidencePort))
		if err != nil {
			return err
		}
		tasks, ctx := errgroup.WithContext(ctx)
		tasks.Go(func() error { return serveChallenges(ctx, listener, challenges(t.Peers, evidence, key)) })
		if serve != nil {
			tasks.Go(func() error { return serve(ctx, t) })
		}
		return tasks.Wait()
	}
}

func serveChallenges(ctx context.Context, listener net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: challengeTimeout + 5*time.Second, IdleTimeout: 30 * time.Second,
		MaxHeaderBytes: 8 << 10, BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// challenges answers gateways, which are the peers of the tunnel, and nobody else.
func challenges(peers func() []tunnel.Peer, evidence evidenceFunc, key tunnel.PublicKey) http.Handler {
	places := make(chan struct{}, maxChallenges)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		known := err == nil && slices.ContainsFunc(peers(), func(p tunnel.Peer) bool { return p.Addr == from.Addr().Unmap() })
		query := r.URL.Query()["challenge"]
		switch {
		case !known:
			http.Error(w, "only gateways of this tunnel are answered", http.StatusForbidden)
			return
		case r.URL.Path != EvidencePath:
			http.NotFound(w, r)
			return
		case r.Method != http.MethodGet:
			w.Header().Set("Allow", "GET")
			http.Error(w, "use GET", http.StatusMethodNotAllowed)
			return
		case len(query) != 1 || len(query[0]) != 2*ExporterSize:
			http.Error(w, "challenge: give one of 64 hex digits", http.StatusBadRequest)
			return
		}
		challenge, err := hex.DecodeString(query[0])
		if err != nil {
			http.Error(w, "challenge: give one of 64 hex digits", http.StatusBadRequest)
			return
		}
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many challenges wait for a quote", http.StatusServiceUnavailable)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), challengeTimeout)
		defer cancel()
		answer, err := evidence(ctx, challenge, key)
		if err != nil {
			http.Error(w, "no evidence can be made now", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	})
}
