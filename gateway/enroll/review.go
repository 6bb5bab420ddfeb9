package enroll

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"dstack.host/gateway/registry"
	"dstack.host/gateway/store"
	"dstack.host/ratls"
)

// ReviewConfig is what a [Review] needs. Every field without "optional" has to be set.
type ReviewConfig struct {
	// Enroll is the registration's configuration: whom it would not take now is let go.
	Enroll Config
	// Registry is what is reviewed.
	Registry *registry.Registry
	// Handshake is when an instance's tunnel last proved to be alive, zero for never.
	Handshake func(*registry.Instance) time.Time
	// Interval is how often each instance is judged again.
	Interval time.Duration
	// Drain is how long an instance that is let go keeps its connections.
	Drain time.Duration
	// Stale is how old the last handshake of an instance that is forgotten is, and its registration (dstack 0.6: 10 h).
	Stale time.Duration
	// Metrics takes the series. Optional.
	Metrics prometheus.Registerer
	// Now is the clock. Optional: time.Now.
	Now func() time.Time
	// Logger takes who is let go, and why. Optional.
	Logger *slog.Logger
}

// Review looks after what is registered. An instance that would be refused now, because the policy changed, its TCB fell, the KMS is not trusted any more
// or the webhook says no, is drained: it gets no new connections; a while later it is removed. One that was not heard of for long is
// removed at once (dstack 0.6 gateway/src/main_service.rs). Several nodes may do this at the same time.
type Review struct {
	config  ReviewConfig
	started time.Time
	drained *prometheus.CounterVec // reason
	removed *prometheus.CounterVec // reason
}

// Reasons of removals besides those of refusals.
const reasonStale = "stale"

// NewReview checks the configuration.
func NewReview(c ReviewConfig) (*Review, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Registry == nil || c.Handshake == nil || c.Enroll.Verifier == nil || c.Interval <= 0 || c.Drain < 0 || c.Stale <= 0 {
		return nil, errors.New("enroll: a review needs the registration's configuration, the registry, handshakes and times")
	}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"reason"})
	}
	v := &Review{
		config: c, started: c.Now(),
		drained: counter("dstack_gateway_instances_drained_total", "Registered instances that get no new connections any more, by reason."),
		removed: counter("dstack_gateway_instances_removed_total", "Instances that were removed from the registry, by reason."),
	}
	size := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dstack_gateway_instances", Help: "Registered instances."}, func() float64 {
		return float64(c.Registry.Snapshot().Len())
	})
	return v, register(c.Metrics, v.drained, v.removed, size)
}

const (
	// sweepInterval is how often instances are removed whose time has come.
	sweepInterval = 15 * time.Second
	// judgingShare is what part of the time is spent on judging, so that a node that has just started serves its users first.
	judgingShare = 4
)

// Run reviews until ctx ends, and returns nil. The first judgement begins when the registry is loaded: the policy may be another than it
// was before the start.
func (v *Review) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return every(ctx, sweepInterval, v.Sweep) })
	tasks.Go(func() error {
		for changed := v.config.Registry.Changed(); !v.config.Registry.Snapshot().Loaded(); changed = v.config.Registry.Changed() {
			select {
			case <-changed:
			case <-ctx.Done():
				return nil
			}
		}
		return every(ctx, v.config.Interval, func(ctx context.Context) { v.judgeAll(ctx, judgingShare) })
	})
	return tasks.Wait()
}

// every does something at once and then once per interval, until ctx ends.
func every(ctx context.Context, interval time.Duration, do func(context.Context)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		do(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Judge judges every instance now.
func (v *Review) Judge(ctx context.Context) { v.judgeAll(ctx, 0) }

// judgeAll rests after each instance for some times as long as judging it took.
func (v *Review) judgeAll(ctx context.Context, rest time.Duration) {
	for inst := range v.config.Registry.Snapshot().Instances() {
		if inst.Draining() {
			continue
		}
		begin := time.Now()
		err := v.judge(ctx, inst)
		if refused, ok := errors.AsType[*refusal](err); ok {
			v.Refuse(ctx, inst, refused.reason, err)
		} else if err != nil {
			v.config.Logger.Debug("an instance can't be judged now", "instance", inst.ID, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest * time.Since(begin)):
		}
	}
}

// judge holds what is registered to what a registration is held to.
func (v *Review) judge(ctx context.Context, inst *registry.Instance) error {
	c, info := &v.config.Enroll, inst.Info
	if strength(inst.Binding) == 0 {
		if err := c.vouched(); err != nil {
			return err
		}
		return c.judge(ctx, nil, info)
	}
	e, err := ratls.ParseAppEvidence(inst.Evidence)
	if err != nil {
		return refuse(reasonEvidence, err)
	}
	verified, err := e.Verify(ctx, c.Verifier)
	if err != nil {
		return judged("evidence", err)
	}
	return c.judge(ctx, verified.Quote, verified.Info)
}

// vouched tells why the word of a KMS, without a quote, would not do now.
func (c *Config) vouched() error {
	switch {
	case c.KMSRoot == nil:
		return refuse(reasonIdentity, errors.New("only a KMS vouched for it, and this gateway trusts none now"))
	case c.Evidence == EvidenceRequired:
		return refuse(reasonEvidence, errors.New("it has no quote, and this gateway requires one now"))
	}
	return nil
}

// Refuse drains an instance that is not wanted any more.
func (v *Review) Refuse(ctx context.Context, inst *registry.Instance, reason string, why error) {
	changed, err := v.config.Registry.Drain(ctx, inst, reason)
	switch {
	case err != nil:
		v.config.Logger.Error("an instance that is refused could not be drained", "instance", inst.ID, "reason", reason, "error", err)
	case changed:
		v.drained.WithLabelValues(reason).Inc()
		v.config.Logger.Warn("instance drained: the gateway does not take it any more", "app", inst.App, "instance", inst.ID, "reason", reason, "error", why, "removed_after", v.config.Drain)
	}
}

// Sweep removes what has drained long enough, and what was not heard of for long.
func (v *Review) Sweep(ctx context.Context) {
	for inst := range v.config.Registry.Snapshot().Instances() {
		switch {
		case v.gone(inst):
			v.remove(ctx, inst.ID, inst.Drain.Reason, v.gone)
		case v.stale(inst):
			v.remove(ctx, inst.ID, reasonStale, v.stale)
		}
	}
}

// gone reports whether an instance has drained long enough.
func (v *Review) gone(inst *registry.Instance) bool {
	return inst.Draining() && v.config.Now().Sub(inst.Drain.At) >= v.config.Drain
}

// stale reports whether an instance was not heard of for long. What happened before this process started is not known.
func (v *Review) stale(inst *registry.Instance) bool {
	now, heard := v.config.Now(), v.config.Handshake(inst)
	for _, t := range []time.Time{inst.RegisteredAt, v.started} {
		if t.After(heard) {
			heard = t
		}
	}
	return now.Sub(heard) > v.config.Stale
}

func (v *Review) remove(ctx context.Context, id registry.InstanceID, reason string, still func(*registry.Instance) bool) {
	removed, err := v.config.Registry.RemoveIf(ctx, id, still)
	switch {
	case errors.Is(err, store.ErrNotFound): // another node was faster
	case err != nil:
		v.config.Logger.Error("instance could not be removed", "instance", id, "reason", reason, "error", err)
	case removed:
		v.removed.WithLabelValues(reason).Inc()
		v.config.Logger.Info("instance removed", "instance", id, "reason", reason)
	}
}
