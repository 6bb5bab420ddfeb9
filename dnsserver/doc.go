// Package dnsserver is the authoritative DNS server of the gateway's base
// domains. It knows names, addresses and records, and nothing of apps: which
// host names exist is asked through a function that the caller puts into the
// zone.
//
// What is answered is decided by one pure function, [Zones.Answer], from an
// immutable set of zones and one query to one response. [Server] is the thin
// I/O around it: UDP and TCP on loopback or public addresses, with bounded
// workers, connections, sizes and times. [Server.SetZones] swaps the whole set
// atomically, so a query never sees half a change and takes no lock.
//
// Names are compared in wire form, never as text: in presentation form
// "evil\.dstack.host." ends with the text of the zone and is not in it.
//
// The package README lists the standards that are followed and the limits.
package dnsserver
