package enroll

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"dstack.host/gateway/registry"
	"dstack.host/ratls"
)

// PortsConfig is what [Ports] needs.
type PortsConfig struct {
	Registry *registry.Registry
	// Dial connects to a port of an instance through the tunnel.
	Dial func(ctx context.Context, inst *registry.Instance, port uint16) (net.Conn, error)
	// Up reports whether an instance's tunnel is up; before, it is not asked.
	Up func(*registry.Instance) bool
	// Port is where guest agents listen.
	Port uint16
	// Logger takes what was found and what was not. Optional.
	Logger *slog.Logger
}

// Ports asks guests that reported no port policy, those before dstack 0.5.9, for their app-compose.json, and registers the policy that stands there. Until
// then no port of theirs is reached.
type Ports struct {
	config PortsConfig
	client *http.Client
	tried  map[registry.InstanceID]*attempts // owned by Run
}

// attempts are those at one instance, with one key and one code.
type attempts struct {
	inst *registry.Instance
	made int
	next time.Time
}

// Bounds of asking (dstack 0.6 gateway/src/proxy/port_policy.rs).
const (
	askTimeout  = 10 * time.Second
	askAttempts = 6 // the first, and five more
	askBackOff  = time.Second
	askLongest  = 30 * time.Second
	askAtOnce   = 8
	maxInfo     = 8 << 20
)

// NewPorts returns a task.
func NewPorts(c PortsConfig) *Ports {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Ports{config: c, tried: make(map[registry.InstanceID]*attempts)}
	p.client = &http.Client{
		Timeout:       askTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return c.Dial(ctx, ctx.Value(instanceKey{}).(*registry.Instance), c.Port)
			},
		},
	}
	return p
}

type instanceKey struct{}

// Run asks until ctx ends, and returns nil.
func (p *Ports) Run(ctx context.Context) error {
	return every(ctx, askBackOff, p.round)
}

// round asks every instance whose turn it is.
func (p *Ports) round(ctx context.Context) {
	snapshot := p.config.Registry.Snapshot()
	for id, a := range p.tried {
		if inst := snapshot.Instance(id); inst == nil || inst.Ports != nil || inst.Key != a.inst.Key || inst.Compose != a.inst.Compose {
			delete(p.tried, id)
		}
	}
	var tasks errgroup.Group
	tasks.SetLimit(askAtOnce)
	for inst := range snapshot.Instances() {
		if a := p.due(inst); a != nil {
			tasks.Go(func() error { return p.ask(ctx, a) })
		}
	}
	_ = tasks.Wait() // ask logs
}

// due returns the attempts at an instance that is to be asked now.
func (p *Ports) due(inst *registry.Instance) *attempts {
	if inst.Ports != nil || !p.config.Up(inst) {
		return nil
	}
	a := p.tried[inst.ID]
	if a == nil {
		a = &attempts{inst: inst}
		p.tried[inst.ID] = a
	}
	if a.made >= askAttempts || time.Now().Before(a.next) {
		return nil
	}
	return a
}

// ask asks one instance once.
func (p *Ports) ask(ctx context.Context, a *attempts) error {
	log := p.config.Logger.With("instance", a.inst.ID)
	policy, measured, err := p.fetch(ctx, a.inst)
	if err == nil {
		err = p.config.Registry.SetMeasuredPorts(ctx, a.inst.ID, a.inst.Compose, policy, measured)
	}
	a.made++
	a.next = time.Now().Add(min(askBackOff<<(a.made-1), askLongest))
	switch {
	case err == nil:
		log.Info("port policy read from the guest agent", "measured", measured, "restrict", policy.Restrict, "ports", len(policy.Ports))
	case errors.Is(err, errNoPolicy), a.made == askAttempts:
		a.made = askAttempts
		log.Warn("the guest agent tells no port policy: no port of the instance is reached until it registers anew", "error", err)
	default:
		log.Debug("the guest agent does not tell a port policy yet", "error", err)
	}
	return err
}

// errNoPolicy says that asking again would not help.
var errNoPolicy = errors.New("answer without a usable app-compose.json")

// fetch returns the policy of an instance. One whose agent keeps its measurements to itself opens all ports, as dstack has it; any
// compose file has to be the measured one.
func (p *Ports) fetch(ctx context.Context, inst *registry.Instance) (policy *registry.PortPolicy, measured bool, err error) {
	body, err := p.info(context.WithValue(ctx, instanceKey{}, inst), inst)
	if err != nil {
		return nil, false, err
	}
	var answer struct {
		TCBInfo string `json:"tcb_info"`
	}
	if err := ratls.DecodeStrict(body, maxInfo, true, &answer); err != nil {
		return nil, false, fmt.Errorf("%w: %w", errNoPolicy, err)
	}
	if answer.TCBInfo == "" {
		return new(registry.PortPolicy), false, nil
	}
	var tcb struct {
		AppCompose string `json:"app_compose"`
	}
	if err := ratls.DecodeStrict([]byte(answer.TCBInfo), maxInfo, true, &tcb); err != nil {
		return nil, false, fmt.Errorf("%w: tcb_info: %w", errNoPolicy, err)
	}
	if got := sha256.Sum256([]byte(tcb.AppCompose)); got != inst.Compose {
		return nil, false, fmt.Errorf("%w: it has SHA-256 %x, the measured compose hash is %x", errNoPolicy, got, inst.Compose[:])
	}
	if policy, err = composePorts(tcb.AppCompose); err != nil {
		return nil, false, fmt.Errorf("%w: %w", errNoPolicy, err)
	}
	return policy, true, nil
}

// info is the guest agent's answer to Info.
func (p *Ports) info(ctx context.Context, inst *registry.Instance) ([]byte, error) {
	url := "http://" + net.JoinHostPort(inst.Addr.String(), fmt.Sprint(p.config.Port)) + "/prpc/Info?json"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the guest agent answers %s", response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxInfo+1))
	if err == nil && len(body) > maxInfo {
		return nil, fmt.Errorf("%w: more than %d bytes", errNoPolicy, maxInfo)
	}
	return body, err
}
