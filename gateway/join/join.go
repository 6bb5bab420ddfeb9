package join

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

// Config says who joins what. URLs, Trust and Ports are required.
type Config struct {
	// URLs are the gateways to register with, in order of preference: https://host:port.
	URLs []string
	// Source is where the evidence comes from.
	Source Source
	// Trust says which gateways are trusted.
	Trust Trust
	// Ports say what can be reached.
	Ports Ports
	// State is a folder that keeps the WireGuard key over restarts; "" keeps it in memory.
	State string
	// Socket is where health is told, "" for nowhere.
	Socket string
	// Tunnel is how the tunnel is opened: Device, Name, Listen and MTU count.
	Tunnel tunnel.Config
	// Timing is the pace of refreshes.
	Timing agent.Timing
	// Joined is called when the VM can be reached for the first time, and whenever its names have changed. It may be nil.
	Joined func(Joined)
	// Logger may be nil.
	Logger *slog.Logger
}

// Joined is where a VM can be reached.
type Joined struct {
	// AppID and InstanceID are who it is, hex; Simulated is set where that proves nothing.
	AppID, InstanceID string
	Simulated         bool
	// Address is its own in the tunnel; Device is what the tunnel runs on, and why.
	Address, Device string
	// URLs are those of its ports, at the name of the app id. There are none if the gateway does not tell its domain.
	URLs []string
}

// Check reports everything that is wrong with the configuration, as far as it can be told without the platform and the network.
func (c *Config) Check() error {
	faults := []error{c.Trust.check(), c.Ports.check()}
	if len(c.URLs) == 0 {
		return errors.Join(append(faults, errors.New("no gateway to register with: give its URL, as https://gateway.dstack.example.com:8000"))...)
	}
	_, err := agent.New(c.agent(tunnel.NewPrivateKey(), new(tls.Config)))
	return errors.Join(append(faults, err)...)
}

// agent is the part of the configuration that is the agent's.
func (c *Config) agent(key tunnel.PrivateKey, config *tls.Config) agent.Config {
	policy := c.Ports.policy()
	a := agent.Config{URLs: c.URLs, TLS: config, PrivateKey: key, Ports: &policy, Tunnel: c.Tunnel, Timing: c.Timing, Logger: c.Logger}
	a.Tunnel.InboundPorts = c.Ports.inbound()
	return a
}

// Run joins, and stays until ctx ends; then it closes the tunnel and returns nil. Gateways that can't be reached or that refuse
// are asked again and again; what it returns is what it can't go on after.
func Run(ctx context.Context, c Config) error {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := c.Check(); err != nil {
		return err
	}
	n := notifier{c.Logger}
	n.tell("STATUS=reaching the TEE")
	g, err := c.Source.open(ctx, c.Ports.policy())
	if err != nil {
		return err
	}
	if g.simulated() {
		c.Logger.Warn("the TEE is SIMULATED: what this VM attests proves nothing, so never join anything real like this")
	}
	_, root, err := g.current(ctx)
	if err != nil {
		return err
	}
	j, err := c.Trust.judge(g, root)
	if err != nil {
		return err
	}
	key, unlock, err := privateKey(c.State)
	if err != nil {
		return err
	}
	defer unlock()
	m := &member{config: c, guest: g, judge: j, condition: condition{guest: g}, notifier: n}
	return m.run(ctx, key)
}

// member is this VM while it runs.
type member struct {
	// set by Run
	config   Config
	guest    *guest
	judge    *judge
	notifier notifier

	condition condition
	telling   sync.Mutex // of joined
	joined    Joined     // guarded by telling: what was told last
}

// run has the agent and the health socket run until one of them fails or ctx ends.
func (m *member) run(ctx context.Context, key tunnel.PrivateKey) error {
	config := m.judge.config()
	config.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		certificate, _, err := m.guest.current(r.Context())
		return &certificate, err
	}
	ac := m.config.agent(key, config)
	ac.Trust, ac.Evidence, ac.Serve, ac.Status, ac.Turn = m.judge.trust, m.guest.evidence, m.serve, m.attempted, m.notifier.alive
	a, err := agent.New(ac)
	if err != nil {
		return err
	}
	tasks, ctx := errgroup.WithContext(ctx)
	if m.config.Socket != "" {
		listener, err := listenSocket(m.config.Socket)
		if err != nil {
			return err
		}
		tasks.Go(func() error { return serveHealth(ctx, listener, &m.condition) })
	}
	m.notifier.tell("STATUS=registering with " + strings.Join(m.config.URLs, ", "))
	tasks.Go(func() error { return a.Run(ctx) })
	tasks.Go(func() error {
		<-ctx.Done()
		m.notifier.tell(daemon.SdNotifyStopping, "STATUS=leaving")
		return nil
	})
	return tasks.Wait()
}

// serve forwards the connections of one tunnel.
func (m *member) serve(ctx context.Context, t *tunnel.Tunnel) error {
	if err := m.config.Ports.fits(t); err != nil {
		return err
	}
	f := &forwarder{places: make(chan struct{}, maxConnections), log: m.config.Logger}
	listeners, err := f.listen(t, m.config.Ports.Forwards)
	if err != nil {
		return err
	}
	m.condition.opened(t)
	defer m.condition.opened(nil)
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return f.serve(ctx, listeners) })
	tasks.Go(func() error {
		if m.condition.meet(ctx, t) {
			m.announce()
		}
		return nil
	})
	return tasks.Wait()
}

// attempted tells everybody the outcome of a registration.
func (m *member) attempted(s agent.Status) {
	m.condition.attempted(s)
	if s.Err != nil {
		m.notifier.tell("STATUS=not registered: " + s.Err.Error())
		return
	}
	m.notifier.tell(fmt.Sprintf("STATUS=registered as %v, %d gateways%s", s.Answer.Address, len(s.Answer.Servers), m.proviso()))
	m.announce()
}

func (m *member) proviso() string {
	if m.guest.simulated() {
		return "; SIMULATED, which proves nothing"
	}
	return ""
}

// announce tells that this VM can be reached, once it can, and again when its names change.
func (m *member) announce() {
	m.telling.Lock()
	defer m.telling.Unlock()
	a, device, ok := m.condition.met()
	if !ok {
		return
	}
	now := Joined{
		AppID: m.guest.app, InstanceID: m.guest.instance, Simulated: m.guest.simulated(),
		Address: a.Address.String(), Device: device, URLs: m.config.Ports.urls(m.guest.app, a),
	}
	if now.Address == m.joined.Address && slices.Equal(now.URLs, m.joined.URLs) {
		return
	}
	m.joined = now
	m.notifier.tell(daemon.SdNotifyReady)
	if m.config.Joined != nil {
		m.config.Joined(now)
	}
}
