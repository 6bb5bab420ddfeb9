// Package gateway joins the parts into the front door: state from the store flows through one registry snapshot to the
// tunnel's peers, the DNS zones and the proxy's routes.
//
//	CVM ─RA-TLS─► enroll ─verified instance─► store ─watch─► registry snapshot ─┬► tunnel: reconcile peers
//	                                                                            ├► dnsserver: swap zones
//	                                                                            └► proxy: reads it
//
// A [Gateway] is a value: a process may hold several.
package gateway
