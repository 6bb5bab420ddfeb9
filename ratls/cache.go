package ratls

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// IntelHosts are the hosts of Intel's Provisioning Certification Service.
func IntelHosts() []string {
	return []string{"api.trustedservices.intel.com", "certificates.trustedservices.intel.com"}
}

// CacheConfig bounds a [Cache]. The zero value is usable.
type CacheConfig struct {
	// Getter fetches what is not held; nil is NewHTTPGetter(nil).
	Getter Getter
	// Hosts are those that may be asked, over https; nil is IntelHosts().
	Hosts []string
	// MaxEntries bounds the answers that are held, 256 when 0; the least recently used one gives way.
	MaxEntries int
	// MaxBody bounds one answer, 4 MiB when 0.
	MaxBody int
	// MaxAge is when an answer is fetched again at the latest, 24 h when 0. It is fetched again at half of its life anyway; the
	// old one is served until the new one is there, but never beyond its next update.
	MaxAge time.Duration
	// NegativeAge is how long an error is answered without asking again, 10 s when 0.
	NegativeAge time.Duration
	// Timeout bounds one fetch, 15 s when 0.
	Timeout time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Cache is a Getter that remembers answers by URL. One fetch serves everybody who asks for the same URL meanwhile. It starts no
// goroutine: a fetch runs in the call of the first who needs it. Its methods may be called concurrently.
type Cache struct {
	config CacheConfig // set by NewCache

	mu      sync.Mutex
	entries map[string]*cacheEntry // guarded by mu
}

// cacheEntry is what is known of one URL; guarded by Cache.mu, except for the immutable answer.
type cacheEntry struct {
	answer *cachedAnswer // nil: none yet
	err    error         // of the last fetch
	retry  time.Time     // not before, after err
	flight chan struct{} // closed when the running fetch ends; nil: none runs
	used   time.Time
}

// cachedAnswer is immutable.
type cachedAnswer struct {
	header        http.Header
	body          []byte
	fetched       time.Time
	refetch, ends time.Time
}

// NewCache returns an empty cache.
func NewCache(c CacheConfig) *Cache {
	if c.Getter == nil {
		c.Getter = NewHTTPGetter(nil)
	}
	if c.Hosts == nil {
		c.Hosts = IntelHosts()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.MaxEntries = cmp.Or(c.MaxEntries, 256)
	c.MaxBody = cmp.Or(c.MaxBody, maxAnswer)
	c.MaxAge = cmp.Or(c.MaxAge, 24*time.Hour)
	c.NegativeAge = cmp.Or(c.NegativeAge, 10*time.Second)
	c.Timeout = cmp.Or(c.Timeout, 15*time.Second)
	return &Cache{config: c, entries: make(map[string]*cacheEntry)}
}

// Get implements Getter. The answer is a copy.
func (c *Cache) Get(ctx context.Context, rawURL string) (http.Header, []byte, error) {
	if err := c.allowed(rawURL); err != nil {
		return nil, nil, err
	}
	for {
		answer, wait, lead, err := c.look(rawURL)
		switch {
		case lead:
			answer, err = c.lead(ctx, rawURL)
		case wait != nil:
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			}
		}
		if err != nil {
			return nil, nil, err
		}
		return answer.header.Clone(), slices.Clone(answer.body), nil
	}
}

// allowed checks the scheme and the host of a URL.
func (c *Cache) allowed(rawURL string) error {
	u, err := url.Parse(rawURL)
	if err != nil {
		return err
	}
	if u.Scheme != "https" || u.User != nil || !slices.Contains(c.config.Hosts, u.Host) {
		return fmt.Errorf("%q is not https on a host that collateral may come from", rawURL)
	}
	return nil
}

// look decides how a URL is answered: from what is held, by an error that is remembered, by waiting for a running fetch, or by
// leading one. The caller that leads must call lead.
func (c *Cache) look(rawURL string) (answer *cachedAnswer, wait <-chan struct{}, lead bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.config.Now()
	e := c.entries[rawURL]
	if e == nil {
		e = &cacheEntry{}
		c.evict()
		c.entries[rawURL] = e
	}
	e.used = now
	live := e.answer != nil && !now.After(e.answer.ends)
	switch {
	case live && (now.Before(e.answer.refetch) || now.Before(e.retry) || e.flight != nil):
		return e.answer, nil, false, nil
	case e.flight != nil:
		return nil, e.flight, false, nil
	case now.Before(e.retry):
		return nil, nil, false, e.err
	}
	e.flight = make(chan struct{})
	return nil, nil, true, nil
}

// evict makes room for one entry. A URL that is being fetched stays.
func (c *Cache) evict() {
	for len(c.entries) >= c.config.MaxEntries {
		idle := slices.DeleteFunc(slices.Collect(maps.Keys(c.entries)), func(u string) bool { return c.entries[u].flight != nil })
		if len(idle) == 0 {
			return
		}
		delete(c.entries, slices.MinFunc(idle, func(a, b string) int { return c.entries[a].used.Compare(c.entries[b].used) }))
	}
}

// lead fetches a URL, and ends the flight that look began whatever happens. An error that is the caller's own, because its
// context ended, is not remembered: the next one in line leads.
func (c *Cache) lead(ctx context.Context, rawURL string) (*cachedAnswer, error) {
	var answer *cachedAnswer
	err := errors.New("fetch did not return")
	defer func() { c.land(rawURL, answer, err, ctx.Err() != nil) }()
	answer, err = c.fetch(ctx, rawURL)
	if err != nil {
		if held := c.held(rawURL); held != nil {
			return held, nil
		}
	}
	return answer, err
}

// fetch asks the Getter once.
func (c *Cache) fetch(ctx context.Context, rawURL string) (*cachedAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	header, body, err := c.config.Getter.Get(ctx, rawURL)
	if err != nil {
		return nil, err
	}
	if len(body) > c.config.MaxBody {
		return nil, fmt.Errorf("answer has %d bytes, at most %d are taken", len(body), c.config.MaxBody)
	}
	ends, err := nextUpdate(body)
	if err != nil {
		return nil, err
	}
	now := c.config.Now()
	if now.After(ends) {
		return nil, fmt.Errorf("answer expired at %s", ends.Format(time.RFC3339))
	}
	kept := make(http.Header)
	for _, name := range issuerChainHeader {
		if values := header.Values(name); name != "" && len(values) > 0 {
			kept[name] = slices.Clone(values)
		}
	}
	refetch := now.Add(min(ends.Sub(now)/2, c.config.MaxAge))
	return &cachedAnswer{header: kept, body: slices.Clone(body), fetched: now, refetch: refetch, ends: ends}, nil
}

// Forget drops the answer that is held for a URL, because its signature did not hold when it was used: what a getter brings is
// not verified here. One that was fetched less than NegativeAge ago stays, so that evidence which fails by itself costs no fetches.
func (c *Cache) Forget(rawURL string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[rawURL]
	if e != nil && e.answer != nil && c.config.Now().Sub(e.answer.fetched) >= c.config.NegativeAge {
		e.answer = nil
	}
}

// held returns the answer that may still be served although fetching a newer one failed.
func (c *Cache) held(rawURL string) *cachedAnswer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[rawURL]; e.answer != nil && !c.config.Now().After(e.answer.ends) {
		return e.answer
	}
	return nil
}

// land records the outcome of a fetch and lets those who wait look again.
func (c *Cache) land(rawURL string, answer *cachedAnswer, err error, abandoned bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[rawURL] // evict spares URLs that are being fetched
	close(e.flight)
	e.flight = nil
	switch {
	case err == nil:
		e.answer, e.err, e.retry = answer, nil, time.Time{}
	case !abandoned:
		e.err, e.retry = err, c.config.Now().Add(c.config.NegativeAge)
	}
}

// nextUpdate reads until when an answer may be used: from TCB info, QE identity, or a revocation list. Nothing is verified
// here; a forged date is found when the answer is used.
func nextUpdate(body []byte) (time.Time, error) {
	if list, err := x509.ParseRevocationList(body); err == nil {
		return list.NextUpdate, nil
	}
	for _, name := range []string{"tcbInfo", "enclaveIdentity"} {
		var signed struct {
			NextUpdate time.Time `json:"nextUpdate"`
		}
		if err := readSigned(body, name, &signed); err == nil {
			return signed.NextUpdate, nil
		}
	}
	return time.Time{}, errors.New("answer is neither a revocation list nor signed collateral")
}
