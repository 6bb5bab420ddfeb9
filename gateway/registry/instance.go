package registry

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"dstack.host/ratls"
	"dstack.host/tunnel"
)

// Instance is one registered confidential VM. Instances in a [Snapshot] are shared: read, never changed.
type Instance struct {
	ID      InstanceID
	App     AppID
	Compose ComposeHash
	Key     tunnel.PublicKey // its WireGuard key, of no other instance
	Addr    netip.Addr       // its address in the tunnel; assigned by Register, kept as long as the instance is registered
	IPv6    bool             // it asked for an address of IPv6 too, see Addr6

	// Ports is the policy that the app has for itself; nil: not known yet. Measured says that it was read from the
	// app-compose.json with the hash Compose, and not just reported. Override is the operator's, and comes first; nil: none.
	Ports    *PortPolicy
	Measured bool
	Override *PortPolicy

	// Identity says which proof the registration rested on: ratls.IdentityAttestation or one of its siblings.
	Identity string
	// Binding is what Evidence is bound to.
	Binding ratls.Binding
	// Evidence is the JSON of the app's own evidence, which binds Key; empty when it sent none. EvidenceAt is when it
	// was stored.
	Evidence   []byte
	EvidenceAt time.Time
	// RegisteredAt is when the instance came with its present key.
	RegisteredAt time.Time
	// Info is what the identity proof says about the app.
	Info ratls.AppInfo
	// Drain says since when the instance gets no new connections, and why; the zero value: it gets them.
	Drain Drain
}

// Drain is the end of an instance that is not wanted any more: it is removed some time after At.
type Drain struct {
	At     time.Time
	Reason string // a few known words
}

// Draining reports whether the instance gets no new connections.
func (inst *Instance) Draining() bool { return !inst.Drain.At.IsZero() }

// Addr6 is the address of an instance that asked for one of IPv6: that in the prefix, of at most 96 bits, which ends with its IPv4 address, so that it
// has the same owner and life. It is the zero Addr for one that did not ask, and without a prefix.
func (inst *Instance) Addr6(prefix netip.Prefix) netip.Addr {
	if !inst.IPv6 || !prefix.IsValid() || !inst.Addr.Is4() {
		return netip.Addr{}
	}
	a, v4 := prefix.Masked().Addr().As16(), inst.Addr.As4()
	copy(a[12:], v4[:])
	return netip.AddrFrom16(a)
}

// Policy is the port policy that counts: the operator's, else the app's; nil when neither is known.
func (inst *Instance) Policy() *PortPolicy {
	if inst.Override != nil {
		return inst.Override
	}
	return inst.Ports
}

// PortPolicy says which ports of an instance the gateway may reach, as the app's own app-compose.json declares it
// (dstack 0.6 gateway/src/proxy/port_policy.rs).
type PortPolicy struct {
	Restrict bool   // false: every port
	Ports    []Port // the allowed ones where Restrict is set
}

// Port is one entry of a [PortPolicy].
type Port struct {
	Port  uint16
	Proxy bool // send a PROXY protocol header first
}

// Allowed reports whether the gateway may connect to port. A nil policy, which is one that is not known yet, allows
// nothing.
func (p *PortPolicy) Allowed(port uint16) bool {
	switch {
	case p == nil || port == 0:
		return false
	case !p.Restrict:
		return true
	}
	_, ok := p.find(port)
	return ok
}

// Proxy reports whether connections to port begin with a PROXY protocol header.
func (p *PortPolicy) Proxy(port uint16) bool {
	if p == nil {
		return false
	}
	entry, ok := p.find(port)
	return ok && entry.Proxy
}

func (p *PortPolicy) find(port uint16) (Port, bool) {
	i := slices.IndexFunc(p.Ports, func(e Port) bool { return e.Port == port })
	if i < 0 {
		return Port{}, false
	}
	return p.Ports[i], true
}

// Limits of one registration.
const (
	maxPorts    = 1024
	maxIdentity = 32
	maxReason   = 64
	// MaxEvidence is the largest evidence of an app in bytes.
	MaxEvidence = 512 << 10
)

// check tells what is impossible in an instance, apart from its address.
func (inst *Instance) check() error {
	var faults []error
	if inst.ID == (InstanceID{}) {
		faults = append(faults, errors.New("no instance id"))
	}
	if inst.App == (AppID{}) {
		faults = append(faults, errors.New("no app id"))
	}
	if inst.Compose == (ComposeHash{}) {
		faults = append(faults, errors.New("no compose hash"))
	}
	if inst.Key == (tunnel.PublicKey{}) {
		faults = append(faults, errors.New("no WireGuard key"))
	}
	if len(inst.Identity) > maxIdentity {
		faults = append(faults, fmt.Errorf("identity of %d characters", len(inst.Identity)))
	}
	if len(inst.Evidence) > MaxEvidence {
		faults = append(faults, fmt.Errorf("evidence of %d bytes is larger than %d", len(inst.Evidence), MaxEvidence))
	}
	if len(inst.Binding) > maxIdentity || len(inst.Drain.Reason) > maxReason {
		faults = append(faults, errors.New("binding or reason is too long"))
	}
	return errors.Join(append(faults, inst.Ports.check(), inst.Override.check())...)
}

func (p *PortPolicy) check() error {
	if p == nil {
		return nil
	}
	if len(p.Ports) > maxPorts {
		return fmt.Errorf("port policy with %d ports, more than %d", len(p.Ports), maxPorts)
	}
	seen := make(map[uint16]bool, len(p.Ports))
	for _, e := range p.Ports {
		if e.Port == 0 {
			return errors.New("port policy with port 0")
		}
		if seen[e.Port] {
			return fmt.Errorf("port policy with port %d twice", e.Port)
		}
		seen[e.Port] = true
	}
	return nil
}
