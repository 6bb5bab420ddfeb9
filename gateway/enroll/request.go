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
	Evidence json.RawMessage      // of a ratls.AppEvidence; nil without
}

// portPolicy is dstack's PortPolicy, in a request and in app-compose.json.
type portPolicy struct {
	Ports []struct {
		Port  uint32 `json:"port"`
		Proxy bool   `json:"pp"`
	} `json:"ports"`
	Restrict bool `json:"restrict_mode"`
}

// parseRequest reads a body. Unknown members are ignored, as dstack does; members that stand twice are refused, since
// two readers could take different ones.
func parseRequest(body []byte) (request, error) {
	var wire struct {
		ClientPublicKey string          `json:"client_public_key"`
		PortPolicy      *portPolicy     `json:"port_policy"`
		Evidence        json.RawMessage `json:"evidence"`
	}
	if len(body) > 0 { // an empty body is the empty message, as prpc has it
		if err := ratls.DecodeStrict(body, maxBody, true, &wire); err != nil {
			return request{}, err
		}
	}
	key, err := tunnel.ParsePublicKey(wire.ClientPublicKey)
	if err != nil {
		return request{}, fmt.Errorf("client_public_key: %w", err)
	}
	ports, err := wire.PortPolicy.policy()
	if err != nil {
		return request{}, fmt.Errorf("port_policy: %w", err)
	}
	if string(wire.Evidence) == "null" { // an optional message that is absent (prpc)
		wire.Evidence = nil
	}
	return request{Key: key, Ports: ports, Evidence: wire.Evidence}, nil
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

// effectivePorts is the policy that counts: that of the measured app-compose.json where there is its text, whatever was
// reported beside it, else the reported one.
func effectivePorts(appCompose string, reported *registry.PortPolicy) (*registry.PortPolicy, error) {
	if appCompose == "" {
		return reported, nil
	}
	var compose struct {
		PortPolicy *portPolicy `json:"port_policy"`
	}
	if err := ratls.DecodeStrict([]byte(appCompose), maxBody, true, &compose); err != nil {
		return nil, fmt.Errorf("app_compose: %w", err)
	}
	if compose.PortPolicy == nil {
		compose.PortPolicy = new(portPolicy) // an app that says nothing of ports opens all of them
	}
	policy, err := compose.PortPolicy.policy()
	if err != nil {
		return nil, fmt.Errorf("app_compose: port_policy: %w", err)
	}
	return policy, nil
}
