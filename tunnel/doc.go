// Package tunnel is one WireGuard interface: its device, its peers, their addresses, and dialing through it.
//
// A [Tunnel] runs on one of three devices: a kernel device, a wireguard-go device on a TUN, or wireguard-go on a
// TCP/IP stack inside the process, which needs no privilege. The caller states the whole list of peers it wants
// ([Tunnel.Reconcile]); the difference to what the device has is computed by the pure [Diff] and applied with one
// message for each changed peer, so that a change to one peer disturbs no other.
//
// A peer owns exactly one address, or one of each family; its AllowedIPs are that as a /32 or /128, so a peer can neither send
// from nor receive for the address of another. The package knows keys and addresses, nothing of apps.
package tunnel
