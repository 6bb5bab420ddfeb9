// Package enroll lets CVMs register their tunnel: it serves dstack's registration RPC over RA-TLS, finds out who is
// asking, and hands what it verified to the registry.
//
// The wire format is dstack's prpc, in JSON and protobuf (dstack 0.6 ra-rpc/src/rocket_helper.rs, gateway/rpc/proto/gateway_rpc.proto); beside
// RegisterCvm there are Info, AcmeInfo and GetPeers:
//
//	POST /prpc/RegisterCvm?json
//	{"client_public_key": "<base64>", "port_policy": {"ports": [{"port": 443, "pp": true}], "restrict_mode": false}, "evidence": {…}}
//
//	200 {"wg": {"client_ip": "10.0.0.2", "servers": [{"pk": "…", "ip": "10.0.0.1/16", "endpoint": "203.0.113.5:51820"}]}, "agent": {…}, "gateways": []}
//	400 {"error": "what was refused, and why"}
//	429, 503 {"error": "what could not be done now"}
//
// evidence is ours and optional: a [dstack.host/ratls.AppEvidence] whose statement names the WireGuard key and this very
// TLS session. So is "ipv6": true, which asks for an address of IPv6 too. Nothing is registered unless everything that the request carries was verified.
//
// Who a client is, is decided before its request is read: a stranger costs one TLS handshake and one look at his
// certificate, and never memory for a body.
//
// Who registered is judged again as long as it is registered, by [Review]; what old guests do not report of their ports is asked of them by [Ports].
//
// A quote proves what the guest's firmware, kernel and event log are. The ids of its app are what that kernel measured, so
// they are worth what the kernel is; all of it is published with the instance. A KMS vouches for both.
package enroll
