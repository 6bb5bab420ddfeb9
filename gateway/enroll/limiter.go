package enroll

import (
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Rate bounds how often something is done: once per interval, and burst times at once after a pause. The zero value bounds nothing.
type Rate struct {
	Interval time.Duration
	Burst    int
}

// maxLimited bounds how many a limiter remembers. When so many were seen within their intervals, new ones have to wait.
const maxLimited = 64 << 10

// limiter holds each of many to a rate, by the generic cell rate algorithm, which needs one time for each.
type limiter[K comparable] struct {
	rate Rate
	now  func() time.Time
	what string

	mu   sync.Mutex
	paid map[K]time.Time // guarded by mu; when everything that one did is paid for
}

func newLimiter[K comparable](what string, rate Rate, now func() time.Time) *limiter[K] {
	return &limiter[K]{rate: rate, now: now, what: what, paid: make(map[K]time.Time)}
}

// take counts one act, or refuses it; what is refused costs nothing.
func (l *limiter[K]) take(who K) error {
	if l.rate.Interval == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	paid, known := l.paid[who]
	if !known && len(l.paid) >= maxLimited {
		l.forget(now)
	}
	if paid.Before(now) {
		paid = now
	}
	tooSoon := paid.Sub(now) > time.Duration(max(l.rate.Burst, 1)-1)*l.rate.Interval
	if tooSoon || !known && len(l.paid) >= maxLimited {
		return fmt.Errorf("%w: more registrations of one %s than one every %v; try again later", errTooMany, l.what, l.rate.Interval)
	}
	l.paid[who] = paid.Add(l.rate.Interval)
	return nil
}

func (l *limiter[K]) forget(now time.Time) {
	for who, paid := range l.paid {
		if !paid.After(now) {
			delete(l.paid, who)
		}
	}
}

// source is the network that a request comes from.
func source(r *http.Request) netip.Prefix {
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{}
	}
	return networkOf(addr.Addr())
}
