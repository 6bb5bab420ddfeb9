// Package join is the agent of a confidential VM: it registers the VM at a gateway, keeps a WireGuard tunnel to it, and brings
// the connections that come through the tunnel to an app.
//
// Quotes come from the kernel, from dstack's guest agent, or, for trying out, from the software platform ([Source]). Which
// gateways are trusted has to be said ([Trust]): nothing is registered with anybody else. The registration itself and the clock
// of its refreshes are [dstack.host/tunnel/agent]; the package adds who this VM is, and tells the service manager and health
// checks how it fares.
package join
