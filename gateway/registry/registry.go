package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"dstack.host/gateway/store"
)

// Errors of a registration that callers branch on, besides [store.ErrUnavailable].
var (
	// ErrKeyInUse says that the WireGuard key belongs to another instance.
	ErrKeyInUse = errors.New("registry: WireGuard key is used by another instance")
	// ErrOtherApp says that the instance id, or the app id, is known as that of another app.
	ErrOtherApp = errors.New("registry: id is registered under another app")
	// ErrPoolExhausted says that no address is free.
	ErrPoolExhausted = errors.New("registry: no address is free")
	// ErrInvalid says that a registration is impossible as such.
	ErrInvalid = errors.New("registry: invalid registration")
)

// Pool says which addresses instances get. A tunnel.Pool is one.
type Pool interface {
	// Allocate returns an address for which used is false; any error means that there is none.
	Allocate(used func(netip.Addr) bool) (netip.Addr, error)
	// Contains reports whether Allocate could return the address.
	Contains(netip.Addr) bool
}

// Config is what a registry works with.
type Config struct {
	Store *store.Store
	Pool  Pool
	// EvidenceAge is how old the stored evidence of an app becomes before newer evidence of the same key, which proves
	// nothing new, is worth a write; 0 means a day.
	EvidenceAge time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Alarm, when set, is called for every record that is authentic and yet makes no sense, in addition to the log. It
	// must not block.
	Alarm func(path string, err error)
	// Logger may be nil.
	Logger *slog.Logger
}

// Registry keeps the snapshot and changes the store. All methods may be called at the same time.
type Registry struct {
	// Set by New.
	store       *store.Store
	pool        Pool
	evidenceAge time.Duration
	now         func() time.Time
	alarmFn     func(path string, err error)
	log         *slog.Logger

	state atomic.Pointer[state] // replaced by Run
	known map[string]any        // path to InstanceID or challengeRecord of what is in the snapshot; owned by Run

	mu       sync.Mutex
	reserved map[netip.Addr]struct{} // given out, and perhaps not in the snapshot yet; guarded by mu
}

type state struct {
	snapshot *Snapshot
	replaced chan struct{} // closed when the next state is there
}

// New returns a registry whose snapshot is empty, and not loaded, until Run.
func New(c Config) (*Registry, error) {
	var faults []error
	if c.Store == nil {
		faults = append(faults, errors.New("registry: no store"))
	}
	if c.Pool == nil {
		faults = append(faults, errors.New("registry: no address pool"))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	r := &Registry{
		store:       c.Store,
		pool:        c.Pool,
		evidenceAge: c.EvidenceAge,
		now:         c.Now,
		alarmFn:     c.Alarm,
		log:         c.Logger,
		known:       make(map[string]any),
		reserved:    make(map[netip.Addr]struct{}),
	}
	if r.evidenceAge == 0 {
		r.evidenceAge = 24 * time.Hour
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.state.Store(&state{new(Snapshot), make(chan struct{})})
	return r, nil
}

// Run follows the store and replaces the snapshot with every change, until ctx ends, which is no error. It may run
// once at a time.
func (r *Registry) Run(ctx context.Context) error {
	err := r.store.Watch(ctx, watched, func(u store.Update) error {
		r.publish(r.apply(u))
		return nil
	})
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	return nil
}

// Snapshot returns the newest snapshot, never nil. It costs one atomic load.
func (r *Registry) Snapshot() *Snapshot { return r.state.Load().snapshot }

// Changed returns a channel that is closed when the snapshot is replaced. Whoever calls it before Snapshot misses
// nothing: work on the snapshot, wait for the channel, begin again. Changes that come meanwhile make one turn.
func (r *Registry) Changed() <-chan struct{} { return r.state.Load().replaced }

func (r *Registry) publish(s *Snapshot) {
	old := r.state.Swap(&state{s, make(chan struct{})})
	close(old.replaced)
}

// await waits until the snapshot satisfies ready.
func (r *Registry) await(ctx context.Context, ready func(*Snapshot) bool) error {
	for {
		changed := r.Changed()
		if ready(r.Snapshot()) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: the registry has not caught up: %w", store.ErrUnavailable, ctx.Err())
		}
	}
}

func (r *Registry) awaitRevision(ctx context.Context, revision int64) error {
	return r.await(ctx, func(s *Snapshot) bool { return s.Loaded() && s.Revision() >= revision })
}

func (r *Registry) alarm(path string, err error) {
	r.log.Error("stored record is unusable", "path", path, "error", err)
	if r.alarmFn != nil {
		r.alarmFn(path, err)
	}
}
