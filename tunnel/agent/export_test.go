package agent

import (
	"context"
	"time"
)

// NormalURL returns the address and the URL that are used for the URL of a gateway.
func NormalURL(s string) (addr, url string, err error) {
	t, err := parseTarget(s)
	if err != nil {
		return "", "", err
	}
	return t.addr, t.url.String(), nil
}

// Fake is a tunnel for Loop.
type Fake struct {
	Configured bool
	Handshake  func() time.Time
	Applied    func(a Answer, anew bool) error
	Served     chan error
	Closed     bool
}

func (f *Fake) apply(_ context.Context, a Answer, anew bool) error {
	f.Configured = true
	if f.Applied == nil {
		return nil
	}
	return f.Applied(a, anew)
}

func (f *Fake) observe(context.Context) observation {
	o := observation{configured: f.Configured}
	if f.Configured && f.Handshake != nil {
		o.handshake = f.Handshake()
	}
	return o
}

func (f *Fake) failed() <-chan error { return f.Served }

func (f *Fake) close() error {
	f.Closed = true
	return nil
}

// Loop is Run with the tunnel and the gateway replaced.
func Loop(
	ctx context.Context, timing Timing, register func(context.Context) (Answer, error), f *Fake, report func(Status),
) error {
	return loop(ctx, timing.withDefaults(), register, f, report, func() {})
}

// Machine is the refresh machine with dstack's durations.
type Machine struct{ m machine }

// NewMachine returns one that has seen nothing.
func NewMachine() *Machine { return &Machine{machine{timing: Timing{}.withDefaults()}} }

// Step observes a tunnel and, unless it says "wait", records the outcome ok.
func (m *Machine) Step(now time.Time, configured bool, handshake time.Time, ok bool) string {
	next, a := m.m.step(now, observation{configured: configured, handshake: handshake})
	if a != wait {
		next = next.done(now, a, ok)
	}
	m.m = next
	return a.String()
}
