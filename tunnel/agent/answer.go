package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"dstack.host/tunnel"
)

const (
	// maxServers bounds the gateways of one answer.
	maxServers = 64
	// keepalive is what a CVM configures for every gateway, so that the gateway can reach it through a NAT (dstack 0.6
	// dstack-util/src/system_setup.rs).
	keepalive = 25 * time.Second
)

// errNoTunnel is dstack's text for an answer without its only needed part.
var errNoTunnel = errors.New("Missing wg info")

// Answer is a successful registration.
type Answer struct {
	// Address is this CVM's address inside the tunnel.
	Address netip.Addr
	// Servers are the gateways to open a tunnel to, all of them, ordered by key. There may be none.
	Servers []Server
	// Domain and ExternalPort tell where the gateway serves apps. They are informative and may be zero.
	Domain       string
	ExternalPort uint16
}

// Server is one gateway node.
type Server struct {
	// Key is the node's WireGuard key.
	Key tunnel.PublicKey
	// Addr is the node's address inside the tunnel.
	Addr netip.Addr
	// Endpoint is the node's UDP address: an IP literal or a DNS name, with a port.
	Endpoint string
}

// Equal reports whether b configures the same tunnel.
func (a Answer) Equal(b Answer) bool {
	return a.Address == b.Address && slices.Equal(a.Servers, b.Servers)
}

// answerJSON are the members of the gateway's answer that are read; others are ignored, as dstack ignores them. The
// names are those of dstack 0.6 gateway/rpc/proto/gateway_rpc.proto.
type answerJSON struct {
	WG *struct {
		ClientIP string          `json:"client_ip"`
		Servers  json.RawMessage `json:"servers"`
	} `json:"wg"`
	Agent *struct {
		Domain       string `json:"domain"`
		ExternalPort uint32 `json:"external_port"`
	} `json:"agent"`
}

type serverJSON struct {
	PK       string `json:"pk"`
	IP       string `json:"ip"`
	Endpoint string `json:"endpoint"`
}

// ParseAnswer reads the JSON a gateway answers with. Two servers with one key or one address are refused: WireGuard
// would take the last and leave the other without a word.
func ParseAnswer(data []byte) (Answer, error) {
	var raw answerJSON
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&raw); err != nil {
		return Answer{}, fmt.Errorf("answer: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Answer{}, errors.New("answer: data after the JSON value")
	}
	if raw.WG == nil {
		return Answer{}, errNoTunnel
	}
	var a Answer
	if raw.Agent != nil && raw.Agent.ExternalPort <= 65535 {
		a.Domain, a.ExternalPort = raw.Agent.Domain, uint16(raw.Agent.ExternalPort)
	}
	var faults []error
	addr, err := parseHost(raw.WG.ClientIP)
	if err != nil {
		faults = append(faults, fmt.Errorf("client_ip: %w", err))
	}
	a.Address = addr
	servers, err := parseServers(raw.WG.Servers)
	if err != nil {
		return Answer{}, fmt.Errorf("answer: servers: %w", err)
	}
	for i, s := range servers {
		server, err := parseServer(s)
		if err != nil {
			faults = append(faults, fmt.Errorf("servers[%d]: %w", i, err))
			continue
		}
		a.Servers = append(a.Servers, server)
	}
	if err := errors.Join(append(faults, a.conflicts()...)...); err != nil {
		return Answer{}, fmt.Errorf("answer: %w", err)
	}
	slices.SortFunc(a.Servers, func(x, y Server) int { return strings.Compare(x.Key.String(), y.Key.String()) })
	return a, nil
}

// parseServers takes a list, or no member at all for an empty one. null is refused, as dstack's own clients do: it
// would silently take every gateway away.
func parseServers(raw json.RawMessage) (list []serverJSON, err error) {
	if len(raw) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	if list == nil {
		return nil, errors.New("null, want a list")
	}
	if len(list) > maxServers {
		return nil, fmt.Errorf("%d of them, at most %d are accepted", len(list), maxServers)
	}
	return list, nil
}

func (a Answer) conflicts() (faults []error) {
	keys, addrs := map[tunnel.PublicKey]bool{}, map[netip.Addr]bool{a.Address: true}
	for _, s := range a.Servers {
		if keys[s.Key] {
			faults = append(faults, fmt.Errorf("servers: pk %v given twice", s.Key))
		}
		if addrs[s.Addr] {
			faults = append(faults, fmt.Errorf("servers: ip %v given twice", s.Addr))
		}
		keys[s.Key], addrs[s.Addr] = true, true
	}
	return faults
}

func parseServer(s serverJSON) (Server, error) {
	key, err := tunnel.ParsePublicKey(s.PK)
	if err != nil {
		return Server{}, fmt.Errorf("pk: %w", err)
	}
	host, bits, prefixed := strings.Cut(s.IP, "/")
	addr, err := parseHost(host)
	if err != nil {
		return Server{}, fmt.Errorf("ip: %w", err)
	}
	if prefixed { // dstack sends the length of the gateway's network, which nobody uses
		if _, err := netip.ParsePrefix(host + "/" + bits); err != nil {
			return Server{}, fmt.Errorf("ip: prefix length %.8q: want a number of bits", bits)
		}
	}
	if err := checkEndpoint(s.Endpoint); err != nil {
		return Server{}, fmt.Errorf("endpoint %.80q: %w", s.Endpoint, err)
	}
	return Server{Key: key, Addr: addr, Endpoint: s.Endpoint}, nil
}

// parseHost reads an address that a host inside a tunnel can have.
func parseHost(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%.48q is not an IP address", s)
	}
	if a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() ||
		a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.Addr{}, fmt.Errorf("%v is not the address of a host", a)
	}
	return a, nil
}

// checkEndpoint accepts what dstack does, IPv4:port and name:port, and IPv6 in brackets. An IPv6 literal without them
// is refused: where the port begins would be a guess.
func checkEndpoint(s string) error {
	host, service, err := net.SplitHostPort(s)
	if err != nil {
		return errors.New("want host:port, an IPv6 address in brackets")
	}
	if port, err := strconv.ParseUint(service, 10, 16); err != nil || port == 0 {
		return errors.New("want a port from 1 to 65535")
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return errors.New("not the address of a host")
		}
		return nil
	}
	if !dnsName(host) {
		return errors.New("neither an IP address nor a DNS name")
	}
	return nil
}

// dnsName reports whether s is a host name (RFC 1123 section 2.1) that can't be taken for an address: its last label
// is not all digits.
func dnsName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return false
	}
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for _, r := range l {
			if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' {
				return false
			}
		}
	}
	return strings.Trim(labels[len(labels)-1], "0123456789") != ""
}
