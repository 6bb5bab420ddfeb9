// Package agent is the CVM's side of dstack's registration: it announces the WireGuard key of this CVM to a gateway,
// configures the tunnel from the answer, and keeps both fresh.
//
// It follows dstack-util of dstack 0.6 (dstack-util/src/system_setup.rs, dstack-util/src/gateway_checker.rs), with an
// optional addition: evidence that binds the WireGuard key to this CVM, made for the very connection it is sent on.
// Which TLS certificate to present, how to trust the gateway and how to make evidence is injected; the package knows
// the protocol and [dstack.host/tunnel].
package agent
