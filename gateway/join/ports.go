package join

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

// DefaultPort is what a name without a port reaches (dstack 0.6 gateway/src/proxy.rs).
const DefaultPort = 80

// Forward brings connections to Port of this VM's address in the tunnel to the TCP address To, host:port.
type Forward struct {
	Port uint16
	To   string
}

// ParseForward reads [PORT=]HOST:PORT. An IPv6 address stands in brackets; a port alone is one of this host.
func ParseForward(text string) (Forward, error) {
	f := Forward{Port: DefaultPort, To: text}
	if at, to, ok := strings.Cut(text, "="); ok {
		port, err := ParsePort(at)
		if err != nil {
			return f, err
		}
		f.Port, f.To = port, to
	}
	if _, err := ParsePort(f.To); err == nil {
		f.To = "127.0.0.1:" + f.To
	}
	host, port, err := net.SplitHostPort(f.To)
	if err != nil || host == "" || strings.ContainsAny(host, "/ ") {
		return f, fmt.Errorf("%q: want [PORT=]HOST:PORT, as 127.0.0.1:3000 or 8080=app:80", text)
	}
	if _, err := ParsePort(port); err != nil {
		return f, fmt.Errorf("%q: %w", text, err)
	}
	return f, nil
}

// ParsePort reads the number of a TCP port that an app can have.
func ParsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%q is no port from 1 to 65535", text)
	}
	return uint16(port), nil
}

// Ports say what of this VM can be reached through the tunnel.
type Ports struct {
	// Forwards are ports that the process listens on itself.
	Forwards []Forward
	// Open are ports on which something of this host listens, on every address or on that of the tunnel. They need a device of
	// the host.
	Open []uint16
	// All opens every port of this host.
	All bool
}

func (p Ports) check() error {
	if len(p.Forwards) == 0 && len(p.Open) == 0 && !p.All {
		return errors.New("nothing could be reached: say where connections go (--to HOST:PORT), or which ports of this host are open (--port PORT, or --all-ports)")
	}
	var faults []error
	seen := map[uint16]bool{agent.EvidencePort: true}
	for _, port := range p.numbers() {
		if seen[port] {
			faults = append(faults, fmt.Errorf("port %d is given twice, or is that of the agent itself, %d", port, agent.EvidencePort))
		}
		seen[port] = true
	}
	return errors.Join(faults...)
}

// numbers are the ports that are named, in the order in which they were.
func (p Ports) numbers() []uint16 {
	var all []uint16
	for _, f := range p.Forwards {
		all = append(all, f.Port)
	}
	return append(all, p.Open...)
}

// policy is what the gateway is told.
func (p Ports) policy() agent.PortPolicy {
	policy := agent.PortPolicy{RestrictMode: !p.All, Ports: []agent.Port{}}
	for _, port := range slices.Sorted(slices.Values(p.numbers())) {
		policy.Ports = append(policy.Ports, agent.Port{Port: port})
	}
	return policy
}

// inbound are the ports that the device lets gateways connect to; nil for all.
func (p Ports) inbound() []uint16 {
	if p.All {
		return nil
	}
	return append(p.numbers(), agent.EvidencePort)
}

// urls are where the ports are reached from outside, at the name of the app. There are none if the gateway does not tell its domain.
func (p Ports) urls(app string, a agent.Answer) []string {
	var all []string
	for _, port := range p.numbers() {
		host := app
		if port != DefaultPort {
			host += "-" + strconv.Itoa(int(port))
		}
		if host += "." + a.Domain; a.ExternalPort != 0 && a.ExternalPort != 443 {
			host += ":" + strconv.Itoa(int(a.ExternalPort))
		}
		if a.Domain != "" {
			all = append(all, "https://"+host+"/")
		}
	}
	return all
}

// fits tells ports that the opened device can't serve.
func (p Ports) fits(t *tunnel.Tunnel) error {
	if !t.OnHost() && len(p.Forwards) == 0 {
		return fmt.Errorf("the tunnel ends in this process, device %s, so that no port of this host is reached through it: give the process NET_ADMIN and /dev/net/tun, or forward with --to HOST:PORT", t.Device())
	}
	return nil
}
