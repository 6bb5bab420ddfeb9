package dnsserver

import (
	"bytes"
	"hash/maphash"
	"sync/atomic"
	"time"
)

// Sizes of the cache. Full of the largest answers it takes 80 MB; an ordinary
// one takes 200 octets.
const (
	cacheSets = 1 << 15
	cacheWays = 4
	maxCached = 512 // octets of an answer
	// cacheLife is how long an answer is taken from the cache before the zones
	// are asked again: less than the time that a signature is served before it expires.
	cacheLife = time.Minute
)

// view is what queries are answered from at one moment.
type view struct {
	zones      *Zones
	generation uint64 // another one for each SetZones
}

// cache keeps answers that [Zones.Answer] gave, by question. All goroutines
// share it: reading and writing take no lock. It never grows, and an answer of
// an earlier generation is none.
type cache struct {
	seed maphash.Seed
	sets [cacheSets][cacheWays]atomic.Pointer[cached]
}

// cached is an answer without options, with what it is the answer to.
type cached struct {
	hash       uint64
	generation uint64
	until      int64  // seconds since 1970
	body       []byte // begins with the question
	ttl        uint32
	flags      uint16
}

func newCache() *cache { return &cache{seed: maphash.MakeSeed()} }

// hash is of the question in lower case and of the flags, that answers may depend on.
func (c *cache) hash(q *query) uint64 {
	return maphash.Bytes(c.seed, q.key()) ^ uint64(q.edns.flags)*0x9e3779b97f4a7c15
}

// get returns the answer to a query, if it is there.
func (c *cache) get(q *query, generation uint64, now time.Time) (answer, bool) {
	hash := c.hash(q)
	set := &c.sets[hash%cacheSets]
	for i := range set {
		kept := set[i].Load()
		if kept != nil && kept.hash == hash && kept.generation == generation && kept.is(q) {
			return answer{body: kept.body, ttl: kept.ttl}, now.Unix() < kept.until
		}
	}
	return answer{}, false
}

// is tells whether the answer is that of the query, whose EDNS version is 0.
func (k *cached) is(q *query) bool {
	return k.flags == q.edns.flags && q.edns.version == 0 && bytes.HasPrefix(k.body[headerOctets:], q.key())
}

// put keeps an answer, in the place of the same question's, of one that counts no
// longer, or of any.
func (c *cache) put(q *query, generation uint64, now time.Time, a *answer) {
	if len(a.options) > 0 || len(a.body) > maxCached {
		return
	}
	fresh := &cached{
		hash: c.hash(q), generation: generation, until: now.Add(cacheLife).Unix(),
		body: bytes.Clone(a.body), ttl: a.ttl, flags: q.edns.flags,
	}
	set := &c.sets[fresh.hash%cacheSets]
	victim := &set[fresh.hash>>32%cacheWays]
	for i := range set {
		kept := set[i].Load()
		if kept == nil || kept.generation != generation || kept.hash == fresh.hash {
			victim = &set[i]
			break
		}
	}
	victim.Store(fresh)
}
