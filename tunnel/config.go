package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

const (
	// DefaultMTU is what is left of 1500 octets by the larger of the headers: IPv6, UDP and WireGuard.
	DefaultMTU = 1420
	// DefaultName is the interface of a dstack CVM (dstack 0.6 dstack-util/src/system_setup.rs).
	DefaultName = "dstack-wg0"
	// DefaultHandshakeInterval is how often dstack's gateway looks (dstack 0.6 gateway/src/main_service.rs).
	DefaultHandshakeInterval = 10 * time.Second
)

// Config says what a Tunnel is. PrivateKey and Address are required.
type Config struct {
	// Device is "kernel", "tun", "netstack", or "auto": the first of the three, in this order, that the system and the
	// privileges of the process allow. "" is "auto".
	Device string
	// Name is the interface of a kernel or TUN device, at most 15 characters; "" is DefaultName. A WireGuard interface
	// of the kernel that has the name already is taken over with its peers; Reconcile removes those not wanted.
	Name string
	// PrivateKey is this end's key.
	PrivateKey PrivateKey
	// Listen is the UDP address of the tunnel's outside. Port 0 and the zero value let the system choose; an unspecified
	// address listens on every address of both families. The kernel device always does.
	Listen netip.AddrPort
	// Address is this end's address inside the tunnel with the prefix in which peers are reached; peers outside of the
	// prefix get a host route of their own.
	Address netip.Prefix
	// Address6 is a second address, of IPv6 where Address is of IPv4, with its prefix. Optional: peers have no second one then.
	Address6 netip.Prefix
	// MTU of the inside; 0 is DefaultMTU.
	MTU int
	// Inbound lets peers open connections to this end, as a CVM needs. Without it Listen refuses, and the netstack and
	// TUN devices drop everything but answers. A kernel device can't filter: its owner's firewall must.
	Inbound bool
	// InboundPorts are the TCP ports that Inbound opens; nil is everything, UDP and ICMP too. A kernel device opens everything.
	InboundPorts []uint16
	// HandshakeInterval is how often Run reads the handshakes; 0 is DefaultHandshakeInterval.
	HandshakeInterval time.Duration
	// Logger may be nil.
	Logger *slog.Logger
}

// check fills in the defaults and reports every fault.
func (c *Config) check() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Device == "" {
		c.Device = auto
	}
	if c.Device != auto && !slices.ContainsFunc(openers, func(o opener) bool { return o.name == c.Device }) {
		fault("device %q: want auto, kernel, tun or netstack", c.Device)
	}
	if c.Name == "" {
		c.Name = DefaultName
	}
	if !validName(c.Name) {
		fault("name %q: want 1 to 15 letters, digits, '-', '_' or '.', not starting with '.'", c.Name)
	}
	if c.PrivateKey == (PrivateKey{}) {
		fault("private key: not set")
	}
	if !c.Address.IsValid() {
		fault("address: not set; want this end's address with its prefix length, like 10.0.0.1/24")
	} else if err := checkUnicast(c.Address.Addr()); err != nil {
		fault("address %v: %w", c.Address, err)
	}
	if c.Address6 != (netip.Prefix{}) {
		if err := checkSecond(c.Address.Addr(), c.Address6.Addr()); err != nil {
			fault("second address %v: %w", c.Address6, err)
		}
	}
	if a := c.Listen.Addr(); a.Zone() != "" || a.IsMulticast() {
		fault("listen %v: not an address to listen on", c.Listen)
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.MTU < 1280 || c.MTU > 9000 {
		fault("mtu %d: want 1280 to 9000", c.MTU)
	}
	if c.HandshakeInterval == 0 {
		c.HandshakeInterval = DefaultHandshakeInterval
	}
	if c.HandshakeInterval < 0 {
		fault("handshake interval %v: want a positive duration", c.HandshakeInterval)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(faults...)
}

// addresses are those of this end.
func (c *Config) addresses() []netip.Prefix {
	if !c.Address6.IsValid() {
		return []netip.Prefix{c.Address}
	}
	return []netip.Prefix{c.Address, c.Address6}
}

func validName(s string) bool {
	if s == "" || len(s) > 15 || s[0] == '.' {
		return false
	}
	for _, r := range s {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		if !letter && r != '-' && r != '_' && r != '.' {
			return false
		}
	}
	return true
}
