package enroll

import (
	"net"
	"net/netip"
	"time"

	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/tunnel"
)

// Limits that callers know.
const (
	MaxBody       = maxBody
	MaxPorts      = maxPorts
	ExporterLabel = exporterLabel
	ExporterSize  = exporterSize
	MaxLimited    = maxLimited
	VerdictLife   = verdictLife
)

// NewLimiter returns the take of a limiter of networks.
func NewLimiter(rate Rate, now func() time.Time) func(netip.Prefix) error {
	return newLimiter[netip.Prefix]("source", rate, now).take
}

// NewNarrow is New with one place for everything, and little time for a body and for all work.
func NewNarrow(c Config, body, work time.Duration) (*Server, error) {
	l := standard
	l.identifying, l.serving, l.body, l.work = 1, 1, body, work
	return newServer(c, l)
}

// NewPerSource bounds the connections of one network.
func NewPerSource(l net.Listener, most int) net.Listener { return newPerSource(l, most) }

// Network is what connections are counted by.
func Network(addr net.Addr) string { return network(addr).String() }

// ParseRequest reads a body.
func ParseRequest(body []byte) (tunnel.PublicKey, *registry.PortPolicy, []byte, error) {
	var m registerRequest
	if len(body) > 0 {
		if err := ratls.DecodeStrict(body, maxBody, true, &m); err != nil {
			return tunnel.PublicKey{}, nil, nil, err
		}
	}
	r, err := m.parse()
	return r.Key, r.Ports, r.Evidence, err
}
