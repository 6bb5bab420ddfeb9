package dnsserver

import (
	"time"
)

// Responder answers packets as a worker of a server does.
type Responder struct {
	responder
	at view
}

// NewResponder makes a worker, with or without a cache of its own.
func NewResponder(zones *Zones, transport Transport, cached bool) *Responder {
	r := &Responder{responder: responder{transport: transport}, at: view{zones: zones, generation: 1}}
	if cached {
		r.cache = newCache()
	}
	return r
}

// Respond is the whole way from packet to packet.
func (r *Responder) Respond(buf, packet []byte) []byte {
	return r.respond(buf, packet, &r.at, time.Now())
}

// SetZones is what Server.SetZones is to all workers.
func (r *Responder) SetZones(zones *Zones) {
	r.at = view{zones: zones, generation: r.at.generation + 1}
}

// Cached tells whether the cache answers a packet at a moment.
func (r *Responder) Cached(packet []byte, now time.Time) bool {
	var q query
	return q.read(packet) == readable && r.cache.get(&q, r.at.generation, now) != nil
}

// CacheLife is how long an answer is kept.
const CacheLife = cacheLife

// Respond is the whole way from packet to packet, without the cache.
func (zs *Zones) Respond(buf, packet []byte, transport Transport) []byte {
	return NewResponder(zs, transport, false).Respond(buf, packet)
}
