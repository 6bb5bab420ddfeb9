package guesttest

import "time"

// Action is what a guest does at a poll.
type Action int

// The actions: to register, and leave an equal configuration alone or not.
const (
	None Action = iota
	Refresh
	Forced
)

// Times of the guest's checker.
const (
	Poll           = 10 * time.Second
	refreshEvery   = 180 * time.Second
	staleAfter     = 180 * time.Second
	retryMissing   = 30 * time.Second
	longestBackOff = 120 * time.Second
)

// Checker decides when a guest registers after its boot. Up to 0.5.4 it never does.
type Checker struct {
	version   Version
	attempt   time.Time // the last one of any kind
	refreshed time.Time // when a periodic refresh was last due
	silent    time.Time // since when no handshake is known
	failures  int
}

// NewChecker begins at start, when the configuration exists or not.
func NewChecker(v Version, start time.Time) *Checker { return &Checker{version: v, refreshed: start} }

// Step decides at a time, by whether the configuration exists and when the latest handshake with any server was (zero: never).
func (c *Checker) Step(now time.Time, configured bool, handshake time.Time) Action {
	if c.version == V054 {
		return None
	}
	if !configured {
		return c.missing(now)
	}
	if handshake.IsZero() {
		if c.silent.IsZero() {
			c.silent = now
		}
		handshake = c.silent
	} else {
		c.silent = time.Time{}
	}
	switch {
	case now.Sub(handshake) >= staleAfter:
		if !c.attempt.IsZero() && now.Sub(c.attempt) < staleAfter {
			return None
		}
		return c.act(now, Forced)
	case now.Sub(c.refreshed) >= refreshEvery:
		return c.act(now, Refresh)
	}
	return None
}

// missing is the case of a boot that did not come to register, which before 0.6 ended it.
func (c *Checker) missing(now time.Time) Action {
	if c.version != V06 {
		return None
	}
	wait := retryMissing
	if c.failures > 1 {
		wait = min(retryMissing<<(c.failures-1), longestBackOff)
	}
	if !c.attempt.IsZero() && now.Sub(c.attempt) < wait {
		return None
	}
	return c.act(now, Forced)
}

func (c *Checker) act(now time.Time, a Action) Action {
	c.attempt, c.refreshed = now, now
	return a
}

// Done tells how the action went.
func (c *Checker) Done(err error) {
	if err == nil {
		c.failures = 0
	} else {
		c.failures++
	}
}
