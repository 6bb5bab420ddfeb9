package enroll

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/tunnel"
)

// Limits of a request. A stock guest sends a few hundred bytes; evidence adds a quote, an event log and a compose file.
const (
	maxBody  = 1 << 20
	maxPorts = 1024
)

// request is the body of RegisterCvm.
type request struct {
	Key      tunnel.PublicKey
	Ports    *registry.PortPolicy // nil: not reported, as guests before 0.5.9
	IPv6     bool
	Evidence json.RawMessage // of a ratls.AppEvidence; nil without
}

// parse checks a message.
func (m *registerRequest) parse() (request, error) {
	key, err := tunnel.ParsePublicKey(m.ClientPublicKey)
	if err != nil {
		return request{}, fmt.Errorf("client_public_key: %w", err)
	}
	ports, err := m.PortPolicy.policy()
	if err != nil {
		return request{}, fmt.Errorf("port_policy: %w", err)
	}
	if len(m.Evidence) == 0 || string(m.Evidence) == "null" { // an optional message that is absent (prpc)
		m.Evidence = nil
	}
	return request{Key: key, Ports: ports, IPv6: m.IPv6, Evidence: m.Evidence}, nil
}

// policy checks a port policy; nil stays nil. As dstack has it, the last of several entries for one port counts
// (dstack 0.6 gateway/src/main_service.rs). The result is in ascending order, so that equal policies are equal.
func (p *portPolicy) policy() (*registry.PortPolicy, error) {
	if p == nil {
		return nil, nil
	}
	if len(p.Ports) > maxPorts {
		return nil, fmt.Errorf("%d ports, the most is %d", len(p.Ports), maxPorts)
	}
	ports := make(map[uint16]registry.Port, len(p.Ports))
	for _, entry := range p.Ports {
		switch {
		case entry.Port == 0:
			return nil, errors.New("port must be between 1 and 65535")
		case entry.Port > math.MaxUint16:
			return nil, fmt.Errorf("port %d out of u16 range", entry.Port)
		}
		ports[uint16(entry.Port)] = registry.Port{Port: uint16(entry.Port), Proxy: entry.Proxy}
	}
	return &registry.PortPolicy{Restrict: p.Restrict, Ports: slices.SortedFunc(maps.Values(ports),
		func(a, b registry.Port) int { return cmp.Compare(a.Port, b.Port) })}, nil
}

// effectivePorts is the policy of the measured app-compose.json where there is its text, whatever was reported beside it, else the
// reported one. It reports which.
func effectivePorts(appCompose string, reported *registry.PortPolicy) (policy *registry.PortPolicy, measured bool, err error) {
	if appCompose == "" {
		return reported, false, nil
	}
	policy, err = composePorts(appCompose)
	return policy, true, err
}

// composePorts is the port policy of an app-compose.json. One that says nothing of ports opens all of them.
func composePorts(text string) (*registry.PortPolicy, error) {
	var compose struct {
		PortPolicy *portPolicy `json:"port_policy"`
	}
	if err := ratls.DecodeStrict([]byte(text), maxBody, true, &compose); err != nil {
		return nil, fmt.Errorf("app_compose: %w", err)
	}
	if compose.PortPolicy == nil {
		compose.PortPolicy = new(portPolicy)
	}
	policy, err := compose.PortPolicy.policy()
	if err != nil {
		return nil, fmt.Errorf("app_compose: port_policy: %w", err)
	}
	return policy, nil
}
