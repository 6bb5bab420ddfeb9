package attest

import (
	"context"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of what is held.
const (
	maxHeld      = 1024
	maxHeldBytes = 128 << 20
	// maxRequotes is how many documents at once may be in line to be quoted anew without anybody waiting.
	maxRequotes = 16
	// renewRetry is how soon a document that could not be quoted anew is tried again.
	renewRetry = 5 * time.Second
)

// held is the place of one subject's document.
type held struct {
	subject  subject
	document atomic.Pointer[document]
	asked    atomic.Int64 // when somebody asked last, in Unix nanoseconds
}

// cache holds documents by canonical host. Readers never wait: a map that they see does not change, but the documents in it do.
type cache struct {
	mu   sync.Mutex // serialises writers
	all  atomic.Pointer[map[string]*held]
	size int // guarded by mu
}

// find returns the place of a host's document, nil when there is none.
func (c *cache) find(host string) *held {
	if all := c.all.Load(); all != nil {
		return (*all)[host]
	}
	return nil
}

// list returns all places.
func (c *cache) list() map[string]*held {
	if all := c.all.Load(); all != nil {
		return *all
	}
	return nil
}

// keep holds a document in place of the former one. When there are too many, those go that were not asked for for longest.
func (c *cache) keep(d *document) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.size += d.size
	if h := c.find(d.subject.host); h != nil {
		c.size -= h.document.Swap(d).size
		return
	}
	next := maps.Clone(c.list())
	if next == nil {
		next = map[string]*held{}
	}
	for len(next) > 0 && (len(next) >= maxHeld || c.size > maxHeldBytes) {
		c.evict(next)
	}
	h := &held{subject: d.subject}
	h.document.Store(d)
	h.asked.Store(d.made.issued.UnixNano())
	next[d.subject.host] = h
	c.all.Store(&next)
}

// evict removes the document that was not asked for for longest.
func (c *cache) evict(all map[string]*held) {
	var oldest *held
	for _, h := range all {
		if oldest == nil || h.asked.Load() < oldest.asked.Load() {
			oldest = h
		}
	}
	c.size -= oldest.document.Load().size
	delete(all, oldest.subject.host)
}

// drop removes a document, unless another has taken its place.
func (c *cache) drop(h *held, d *document) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.find(h.subject.host) != h || h.document.Load() != d {
		return
	}
	next := maps.Clone(c.list())
	delete(next, h.subject.host)
	c.size -= d.size
	c.all.Store(&next)
}

// current is the document without a nonce: the one that is held, or else, for the first who asks, one to wait for.
func (a *Attester) current(ctx context.Context, client netip.Prefix, s subject) (*document, error) {
	for {
		now := time.Now()
		if h := a.cache.find(s.host); h != nil {
			h.asked.Store(now.UnixNano())
			if d := h.document.Load(); a.holds(d, now) {
				return d, nil
			}
		}
		o, err := a.wait(ctx, a.line.quotes, &waiter{class: reading, client: client, subject: s}, topic{subject: s})
		if err != nil {
			return nil, err
		}
		if a.holds(o.held, time.Now()) {
			return o.held, nil
		}
	}
}

// wait stands in a queue until the answer comes, ctx ends or patience does.
func (a *Attester) wait(ctx context.Context, q *queue, w *waiter, t topic) (outcome, error) {
	if err := a.line.join(q, w, t); err != nil {
		return outcome{}, err
	}
	defer a.line.leave(w)
	patience := time.NewTimer(a.config.Patience)
	defer patience.Stop()
	select {
	case o := <-w.answer:
		return o, o.err
	case <-patience.C:
		return outcome{}, errCrowded
	case <-ctx.Done():
		return outcome{}, ctx.Err()
	}
}

// renewal is what becomes of a held document.
type renewal uint8

const (
	leaveIt renewal = iota
	quoteIt         // anew, in the background
	dropIt
)

// decide says what becomes of a document at now, given whether what it says is still true, and when that may change by the clock
// alone. One that nobody has asked for since it was made is not worth another quote.
func decide(d *document, truth bool, asked, now time.Time) (renewal, time.Time) {
	wanted := asked.After(d.made.issued)
	switch {
	case wanted && (!truth || !now.Before(d.requote)):
		return quoteIt, now.Add(renewRetry)
	case !truth || !now.Before(d.until):
		return dropIt, time.Time{}
	case now.Before(d.requote):
		return leaveIt, d.requote
	}
	return leaveIt, d.until // whether somebody asked meanwhile is seen within renewRetry
}

// renew quotes held documents anew before they end, and when what they say is not true any more, until ctx ends.
func (a *Attester) renew(ctx context.Context) {
	for {
		registered, certified := a.config.Registry.Changed(), a.config.Certs.Changed()
		timer := time.NewTimer(time.Until(a.renewNow(time.Now())))
		select {
		case <-ctx.Done():
		case <-registered:
		case <-certified:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// renewNow looks at every held document once, and says when to look again.
func (a *Attester) renewNow(now time.Time) time.Time {
	again, room := now.Add(renewRetry), maxRequotes
	snapshot := a.config.Registry.Snapshot()
	for _, h := range a.cache.list() {
		d := h.document.Load()
		truth := a.holds(d, now)
		if old := d.confirmed.Load(); old != snapshot {
			d.confirmed.CompareAndSwap(old, nil) // it is not to keep an old snapshot alive
		}
		what, next := decide(d, truth, time.Unix(0, h.asked.Load()), now)
		switch {
		case what == dropIt:
			a.cache.drop(h, d)
			continue
		case what == quoteIt && room > 0:
			room--
			a.line.requote(h.subject)
		}
		if next.Before(again) {
			again = next
		}
	}
	return again
}
