package dnsserver

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// RateLimit bounds the answers over UDP to a network of clients, an IPv4 /24 or
// an IPv6 /56, so that forged queries cannot make the server flood a victim.
// Answers with data, denials and refusals count apart. Those who return a valid
// cookie are not limited: their address is not forged. The zero value limits
// nothing.
type RateLimit struct {
	// PerSecond is how many answers of a kind a network gets; a second's worth
	// of them may come at once. Zero: all.
	PerSecond int
	// Slip is which of the answers beyond the limit are sent all the same, but
	// with TC and no data, by which a true client comes back over TCP: every
	// one with 1, every second with 2. Zero: 1, which is never more than what
	// was received, and starves nobody.
	Slip int
}

// limitBuckets is how many buckets networks fall into, by a hash that nobody
// outside can compute.
const limitBuckets = 1 << 16

// limiter counts. A bucket is the time, in nanoseconds since start, at which
// all that it let through would have been due at the rate (the generic cell
// rate algorithm); so counting is one compare-and-swap, and there is no lock.
type limiter struct {
	seed    maphash.Seed
	start   time.Time
	every   int64 // nanoseconds from one answer to the next
	buckets [limitBuckets]atomic.Int64
}

func newLimiter(c RateLimit) *limiter {
	if c.PerSecond == 0 {
		return nil
	}
	return &limiter{seed: maphash.MakeSeed(), start: time.Now(), every: int64(time.Second) / int64(c.PerSecond)}
}

// allow counts an answer of a kind to a client, and tells whether it may be sent.
func (l *limiter) allow(client netip.Addr, kind byte, at time.Time) bool {
	bucket := &l.buckets[l.hash(client, kind)%limitBuckets]
	now := int64(at.Sub(l.start))
	for {
		due := bucket.Load()
		next := max(due, now) + l.every
		if next > now+int64(time.Second) {
			return false
		}
		if bucket.CompareAndSwap(due, next) {
			return true
		}
	}
}

func (l *limiter) hash(client netip.Addr, kind byte) uint64 {
	var network [8]byte
	if client.Is4() {
		addr := client.As4()
		copy(network[:3], addr[:])
	} else {
		addr := client.As16()
		copy(network[:7], addr[:])
		kind |= 0x80
	}
	network[7] = kind
	return maphash.Bytes(l.seed, network[:])
}
