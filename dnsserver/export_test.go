package dnsserver

import (
	"net/netip"
	"time"
)

// Responder answers packets as a worker of a server does, to one client at one moment.
type Responder struct {
	responder
	at     view
	Client netip.Addr
	Now    time.Time
}

// NewResponder makes a worker of a server that is configured so, with or
// without a cache of its own.
func NewResponder(zones *Zones, transport Transport, c Config, cached bool) *Responder {
	if c.CookieKey == nil {
		c.CookieKey = make([]byte, minCookieKey)
	}
	shared := c.shared()
	if !cached {
		shared.cache = nil
	}
	return &Responder{
		responder: responder{shared: &shared, counters: &counters{transport: transport}},
		at:        view{zones: zones, generation: 1},
		Client:    netip.MustParseAddr("192.0.2.77"),
		Now:       time.Now(),
	}
}

// Respond is the whole way from packet to packet.
func (r *Responder) Respond(buf, packet []byte) []byte {
	return r.respond(buf, packet, netip.AddrPortFrom(r.Client, 53), &r.at, r.Now)
}

// SetZones is what Server.SetZones is to all workers.
func (r *Responder) SetZones(zones *Zones) {
	r.at = view{zones: zones, generation: r.at.generation + 1}
}

// Cached tells whether the cache answers a packet.
func (r *Responder) Cached(packet []byte) bool {
	var q query
	if q.read(packet) != readable {
		return false
	}
	_, found := r.cache.get(&q, r.at.generation, r.Now)
	return found
}

// Ready tells whether a packet's denial is ready.
func (r *Responder) Ready(packet []byte) bool {
	return r.query.read(packet) == readable && r.denial(r.at.zones) != nil
}

// CacheLife is how long an answer is kept.
const CacheLife = cacheLife

// Respond is the whole way from packet to packet, without the cache.
func (zs *Zones) Respond(buf, packet []byte, transport Transport) []byte {
	return NewResponder(zs, transport, Config{}, false).Respond(buf, packet)
}

// BakeCookie makes a server cookie with a secret.
func BakeCookie(secret [16]byte, client []byte, addr netip.Addr, now uint32) [16]byte {
	var cookie [16]byte
	bakeCookie(&secret, client, addr, now, &cookie)
	return cookie
}

// CookieHash is the last half of a server cookie with the given first half.
func CookieHash(secret [16]byte, client, head []byte, addr netip.Addr) uint64 {
	return cookieHash(&secret, client, head, addr)
}

// CheckTSIG tells what is wrong with the TSIG of a packet, and whether there is one.
func CheckTSIG(name string, secret, packet []byte, now time.Time) (code uint16, ok bool) {
	t, err := newTSIG(TransferKey{Name: name, Secret: secret})
	if err != nil {
		return 0, false
	}
	s, ok := t.check(packet, now)
	if ok {
		s.sign(make([]byte, headerOctets), now)
	}
	return s.code, ok
}
