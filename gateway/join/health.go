package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

// handshakeLimit is how old the latest handshake of a live tunnel gets: WireGuard ends a session 180 s after its handshake, and
// the agent looks every 10 s.
const handshakeLimit = 200 * time.Second

// meetInterval is how often a fresh tunnel is looked at until its first handshake, which takes a round trip.
const meetInterval = 250 * time.Millisecond

// Health is how a running join fares, as its health socket tells it.
type Health struct {
	// OK is whether the app can be reached by at least one gateway, as far as this end knows.
	OK bool `json:"ok"`
	// Reason says why it can't.
	Reason string `json:"reason"`
	// AppID and InstanceID are who this VM is, hex; Simulated is set where that proves nothing.
	AppID      string `json:"app_id"`
	InstanceID string `json:"instance_id"`
	Simulated  bool   `json:"simulated"`
	// Address is this VM's in the tunnel, Device what the tunnel runs on; "" before the first registration.
	Address string `json:"address"`
	Device  string `json:"device"`
	// Gateways are the other ends of the tunnel.
	Gateways []GatewayHealth `json:"gateways"`
	// Registered is when a gateway took the registration last; Error is why it did not since then, "" if it did.
	Registered time.Time `json:"registered,omitzero"`
	Error      string    `json:"error"`
}

// GatewayHealth is the tunnel to one gateway.
type GatewayHealth struct {
	PublicKey string    `json:"wg_public_key"`
	Endpoint  string    `json:"endpoint"`
	Handshake time.Time `json:"handshake,omitzero"`
}

// condition is what health is told from.
type condition struct {
	guest *guest

	mu         sync.Mutex
	tunnel     *tunnel.Tunnel // guarded by mu; nil while none is open
	shaken     bool           // guarded by mu: a gateway has been met through it
	answer     agent.Answer   // guarded by mu: the last
	registered time.Time      // guarded by mu: zero before the first answer
	err        error          // guarded by mu: of the last registration
}

// opened tells that a tunnel is open, nil that it no longer is.
func (c *condition) opened(t *tunnel.Tunnel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tunnel, c.shaken = t, false
}

// meet waits for the first handshake with a gateway through a fresh tunnel; it reports false when ctx ends before.
func (c *condition) meet(ctx context.Context, t *tunnel.Tunnel) bool {
	tick := time.NewTicker(meetInterval)
	defer tick.Stop()
	for {
		err := t.Poll(ctx)
		for _, p := range t.Peers() {
			if _, ok := t.Handshake(p.Key); ok && err == nil {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.shaken = true
				return true
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// met returns the answer by which this VM can be reached, and the device, if it can.
func (c *condition) met() (a agent.Answer, device string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tunnel == nil || !c.shaken || c.registered.IsZero() {
		return a, "", false
	}
	return c.answer, c.tunnel.Device(), true
}

// attempted tells the outcome of a registration.
func (c *condition) attempted(s agent.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err = s.Err; s.Err == nil {
		c.answer, c.registered = s.Answer, s.Time
	}
}

// health is how things stand at now.
func (c *condition) health(now time.Time) Health {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := Health{AppID: c.guest.app, InstanceID: c.guest.instance, Simulated: c.guest.simulated(), Gateways: []GatewayHealth{}, Registered: c.registered}
	if c.err != nil {
		h.Error = c.err.Error()
	}
	if c.tunnel == nil {
		h.Reason = "not registered yet"
		if h.Error != "" {
			h.Reason += ": " + h.Error
		}
		return h
	}
	h.Address, h.Device = c.tunnel.Address().Addr().String(), c.tunnel.Device()
	var latest time.Time
	for _, p := range c.tunnel.Peers() {
		at, _ := c.tunnel.Handshake(p.Key)
		h.Gateways = append(h.Gateways, GatewayHealth{PublicKey: p.Key.String(), Endpoint: p.Endpoint.String(), Handshake: at})
		if at.After(latest) {
			latest = at
		}
	}
	switch {
	case len(h.Gateways) == 0:
		h.Reason = "the gateway named no node to open a tunnel to"
	case latest.IsZero():
		h.Reason = "no WireGuard handshake with any gateway yet: is its UDP port reachable?"
	case now.Sub(latest) > handshakeLimit:
		h.Reason = fmt.Sprintf("the last WireGuard handshake was %s ago", now.Sub(latest).Round(time.Second))
	default:
		h.OK = true
	}
	return h
}

// DefaultSocket is where a join tells its health, and is asked for it, unless told otherwise.
func DefaultSocket() string {
	if os.Geteuid() == 0 {
		return "/run/dstack-gateway/join.sock"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "dstack-gateway-join.sock")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("dstack-gateway-join-%d.sock", os.Geteuid()))
}

// listenSocket makes the health socket, which only its owner may use. One that a process left behind is replaced.
func listenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("health socket: %w; choose another with --socket PATH", err)
	}
	listener, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if c, dialed := net.DialTimeout("unix", path, time.Second); dialed == nil {
			_ = c.Close()
			return nil, fmt.Errorf("health socket: another join answers at %s; give this one another with --socket PATH", path)
		}
		if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("health socket: %s is there and no socket; choose another with --socket PATH", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("health socket: %w", err)
		}
		listener, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("health socket: %w; choose another with --socket PATH", err)
	}
	return listener, os.Chmod(path, 0o600)
}

// serveHealth answers every request with the health, 200 when it is good and 503 when not, until ctx ends.
func serveHealth(ctx context.Context, listener net.Listener, c *condition) error {
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			h := c.health(time.Now())
			w.Header().Set("Content-Type", "application/json")
			if !h.OK {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			_ = json.NewEncoder(w).Encode(h)
		}),
		ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: 5 * time.Second, MaxHeaderBytes: 8 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); ctx.Err() == nil {
		return err
	}
	return nil
}

// AskHealth asks the join that runs here and tells its health at path.
func AskHealth(ctx context.Context, path string) (h Health, err error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://join/health", nil)
	if err != nil {
		return h, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return h, fmt.Errorf("no join answers at %s (%w); if it runs with another --socket, name it", path, errors.Unwrap(err))
	}
	defer func() { _ = answer.Body.Close() }()
	if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(&h); err != nil {
		return h, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

// String is the health in one line.
func (h Health) String() string {
	if !h.OK {
		return "not healthy: " + h.Reason
	}
	line := fmt.Sprintf("healthy: instance %s at %s, tunnel to %d gateways", h.InstanceID, h.Address, len(h.Gateways))
	if len(h.Gateways) == 1 {
		line = strings.TrimSuffix(line, "s")
	}
	if h.Error != "" {
		line += "; the last registration failed: " + h.Error
	}
	if h.Simulated {
		line += "; SIMULATED, which proves nothing"
	}
	return line
}
