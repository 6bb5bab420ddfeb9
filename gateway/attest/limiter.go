package attest

import (
	"net/netip"
	"sync"
	"time"
)

// maxClients bounds how many clients a limiter remembers. When so many were seen within their intervals, new ones wait:
// the gateway is being flooded from many addresses, and what is limited is its one quoting enclave.
const maxClients = 16 << 10

// limiter allows every client one act per interval, and some at once after a pause: the generic cell rate algorithm,
// which needs one time per client.
type limiter struct {
	interval time.Duration
	slack    time.Duration // how far ahead of its interval a client may be

	mu   sync.Mutex
	next map[netip.Prefix]time.Time // guarded by mu; when a client's past acts are paid for
}

func newLimiter(interval time.Duration, burst int) *limiter {
	return &limiter{interval: interval, slack: time.Duration(burst-1) * interval, next: map[netip.Prefix]time.Time{}}
}

// take allows an act now, with zero, or says how long to wait. What is refused costs nothing.
func (l *limiter) take(client netip.Prefix, now time.Time) (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	paid, known := l.next[client]
	if !known && len(l.next) >= maxClients {
		l.forget(now)
		if len(l.next) >= maxClients {
			return l.interval
		}
	}
	if paid.Before(now) {
		paid = now
	}
	if early := paid.Sub(now) - l.slack; early > 0 {
		return early
	}
	l.next[client] = paid.Add(l.interval)
	return 0
}

// forget drops the clients that have paid for everything.
func (l *limiter) forget(now time.Time) {
	for client, paid := range l.next {
		if !paid.After(now) {
			delete(l.next, client)
		}
	}
}
