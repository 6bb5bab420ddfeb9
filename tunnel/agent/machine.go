package agent

import "time"

// Timing are the durations of the refresh machine. A zero field is dstack's value (dstack 0.6
// dstack-util/src/gateway_checker.rs).
type Timing struct {
	// Poll is how often the state is looked at: 10 s.
	Poll time.Duration
	// Refresh is the time between registrations while all is well: 180 s.
	Refresh time.Duration
	// Stale is how old the latest handshake with any gateway may get before the tunnel is set up anew: 180 s.
	Stale time.Duration
	// Retry and MaxRetry bound the pause after a registration that failed with nothing configured; it doubles from
	// the one to the other: 30 s and 120 s.
	Retry, MaxRetry time.Duration
}

func (t Timing) withDefaults() Timing {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Poll, 10 * time.Second}, {&t.Refresh, 180 * time.Second}, {&t.Stale, 180 * time.Second},
		{&t.Retry, 30 * time.Second}, {&t.MaxRetry, 120 * time.Second},
	} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	return t
}

// action is what to do now.
type action uint8

const (
	wait action = iota
	// refresh registers and configures only what changed.
	refresh
	// force registers and sets the tunnel up anew, changed or not.
	force
)

func (a action) String() string {
	return [...]string{"wait", "refresh", "force"}[a]
}

// observation is the state of the tunnel.
type observation struct {
	// configured: an answer has been applied.
	configured bool
	// handshake is the latest with any gateway, zero if there was none since the tunnel was set up. One live gateway
	// is enough.
	handshake time.Time
}

// machine decides when to register. It is a value: step and done return the next one. Its zero value with a timing is
// the state before anything was tried.
type machine struct {
	timing Timing
	// started is the time of the first step.
	started time.Time
	// attempted and forced are the times of the last attempt and of the last forced one.
	attempted, forced time.Time
	// failures counts those in a row.
	failures int
	// silent is when a configured tunnel was first seen without any handshake.
	silent time.Time
}

// step says what to do at now. The caller does it and tells by done.
func (m machine) step(now time.Time, o observation) (machine, action) {
	if m.started.IsZero() {
		m.started = now
	}
	if !o.configured {
		m.silent = time.Time{}
		if m.attempted.IsZero() || now.Sub(m.attempted) >= m.pause() {
			return m, force
		}
		return m, wait
	}
	alive := o.handshake
	if !alive.IsZero() {
		m.silent = time.Time{}
	} else {
		if m.silent.IsZero() {
			m.silent = now
		}
		alive = m.silent
	}
	if now.Sub(alive) >= m.timing.Stale { // and while it is, no ordinary refresh
		if m.forced.IsZero() || now.Sub(m.forced) >= m.timing.Refresh {
			return m, force
		}
		return m, wait
	}
	last := m.attempted
	if last.IsZero() {
		last = m.started
	}
	if now.Sub(last) >= m.timing.Refresh {
		return m, refresh
	}
	return m, wait
}

// done records the outcome of an attempt that began at now.
func (m machine) done(now time.Time, a action, ok bool) machine {
	m.attempted = now
	if a == force {
		m.forced = now
	}
	m.failures++
	if ok {
		m.failures = 0
	}
	return m
}

// pause is the time to the next attempt after n failures in a row: Retry·2^(n-1), at most MaxRetry, at least Retry.
func (m machine) pause() time.Duration {
	d := m.timing.Retry
	for i := 1; i < m.failures && d < m.timing.MaxRetry; i++ {
		d *= 2
	}
	return max(m.timing.Retry, min(d, m.timing.MaxRetry))
}
