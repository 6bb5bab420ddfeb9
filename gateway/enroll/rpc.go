package enroll

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"dstack.host/gateway/prpc"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
)

// maxError bounds texts of strangers in the log.
const maxError = 1 << 10

// Handler is the RPC, for a server of the caller's own; its requests need their TLS state, and deadlines.
func (s *Server) Handler() http.Handler {
	service := &prpc.Service{
		Trim: "Tproxy.", // guests of dstack 0.3 send the service name
		Methods: map[string]func(*prpc.Call) (any, error){
			"RegisterCvm": s.registerCvm, "Info": s.info, "AcmeInfo": s.acmeInfo, "GetPeers": s.getPeers,
		},
		Status: func(err error) int {
			status, _ := classify(err)
			return status
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.config.Version != "" {
			w.Header().Set("X-App-Version", s.config.Version)
		}
		// Guests before 0.6 leave a slash too many where their URL ends with one. It is taken as it comes: they would
		// follow a redirect with GET.
		path := "/" + strings.TrimLeft(r.URL.Path, "/")
		method, rpc := strings.CutPrefix(path, "/prpc/")
		switch {
		case path == "/health":
			_, _ = io.WriteString(w, "OK")
		case rpc && !strings.Contains(method, "/"):
			service.ServeHTTP(w, r, method)
		default:
			prpc.Fail(w, r, http.StatusNotFound, errors.New("nothing is here: CVMs register at /prpc/RegisterCvm?json"))
		}
	})
}

func (s *Server) registerCvm(c *prpc.Call) (any, error) {
	inst, err := s.register(c)
	if err != nil {
		status, reason := classify(err)
		s.metrics.refusals.WithLabelValues(reason).Inc()
		s.complain("registration failed", "from", c.Request.RemoteAddr, "status", status, "reason", reason, "error", clip(err.Error(), maxError))
		return nil, err
	}
	return s.answer(inst), nil
}

// complain warns, unless strangers make it do so all the time.
func (s *Server) complain(message string, attributes ...any) {
	if s.warnings.AllowN(s.config.Now(), 1) {
		s.config.Logger.Warn(message, attributes...)
	} else {
		s.config.Logger.Debug(message, attributes...)
	}
}

// The messages (dstack 0.6 gateway/rpc/proto/gateway_rpc.proto), with fields of ours from number 1000 on.
type (
	registerRequest struct {
		ClientPublicKey string          `json:"client_public_key" prpc:"1"`
		PortPolicy      *portPolicy     `json:"port_policy" prpc:"2"`
		Evidence        json.RawMessage `json:"evidence" prpc:"1000"`
		IPv6            bool            `json:"ipv6" prpc:"1001"` // the guest wants an address of IPv6 too
	}
	// portPolicy is that of a request, of app-compose.json, and of the guest agent's answer.
	portPolicy struct {
		Ports    []portAttrs `json:"ports" prpc:"1"`
		Restrict bool        `json:"restrict_mode" prpc:"2"`
	}
	portAttrs struct {
		Port  uint32 `json:"port" prpc:"1"`
		Proxy bool   `json:"pp" prpc:"2"`
	}
	registerResponse struct {
		WG       wgConfig    `json:"wg" prpc:"1"`
		Agent    agentConfig `json:"agent" prpc:"2"`
		Gateways []nodeInfo  `json:"gateways" prpc:"3"`
	}
	wgConfig struct {
		ClientIP  string   `json:"client_ip" prpc:"1"`
		Servers   []wgPeer `json:"servers" prpc:"2"`
		ClientIP6 string   `json:"client_ip6,omitempty" prpc:"1000"` // for a guest that asked
	}
	wgPeer struct {
		Key      string `json:"pk" prpc:"1"`
		Address  string `json:"ip" prpc:"2"`
		Endpoint string `json:"endpoint" prpc:"3"`
		Address6 string `json:"ip6,omitempty" prpc:"1000"` // likewise
	}
	agentConfig struct {
		ExternalPort       uint32 `json:"external_port" prpc:"1"`
		InternalPort       uint32 `json:"internal_port" prpc:"2"`
		Domain             string `json:"domain" prpc:"3"`
		AppAddressNSPrefix string `json:"app_address_ns_prefix" prpc:"4"`
	}
	nodeInfo struct {
		ID       uint32    `json:"id" prpc:"1"`
		UUID     ratls.Hex `json:"uuid" prpc:"2"`
		URL      string    `json:"url" prpc:"3"`
		LastSeen uint64    `json:"last_seen" prpc:"4"`
		Key      string    `json:"wg_public_key" prpc:"5"`
		Address  string    `json:"wg_ip" prpc:"6"`
		Endpoint string    `json:"wg_endpoint" prpc:"7"`
	}
	infoResponse struct {
		Domain             string `json:"base_domain" prpc:"1"`
		ExternalPort       uint32 `json:"external_port" prpc:"2"`
		AppAddressNSPrefix string `json:"app_address_ns_prefix" prpc:"3"`
		Version            string `json:"version" prpc:"4"`
	}
	acmeInfoResponse struct {
		Account            string      `json:"account_uri" prpc:"1"`
		Keys               []ratls.Hex `json:"hist_keys" prpc:"2"` // gone from 0.6, and ct_monitor insists on it
		QuotedKeys         []quotedKey `json:"quoted_hist_keys" prpc:"3"`
		AccountQuote       string      `json:"account_quote" prpc:"4"`
		AccountAttestation string      `json:"account_attestation" prpc:"5"`
	}
	quotedKey struct {
		Key         ratls.Hex `json:"public_key" prpc:"1"`
		Quote       string    `json:"quote" prpc:"2"`
		Attestation string    `json:"attestation" prpc:"3"`
	}
	peersResponse struct {
		ID    uint32     `json:"my_id" prpc:"1"`
		URL   string     `json:"my_url" prpc:"2"`
		Peers []peerInfo `json:"peers" prpc:"3"`
	}
	peerInfo struct {
		ID  uint32 `json:"id" prpc:"1"`
		URL string `json:"url" prpc:"2"`
	}
)

// answer tells a guest its address, and every gateway that it connects to. It is the same as long as nothing changes: a guest
// takes its tunnel down for one that differs.
func (s *Server) answer(inst registry.Instance) *registerResponse {
	a := s.config.Agent
	r := &registerResponse{
		WG:    wgConfig{ClientIP: inst.Addr.String(), Servers: make([]wgPeer, len(s.config.Servers))},
		Agent: agentConfig{uint32(a.ExternalPort), uint32(a.InternalPort), a.Domain, a.AppAddressNSPrefix},
	}
	for i, server := range s.config.Servers {
		r.WG.Servers[i] = wgPeer{Key: server.Key.String(), Address: server.Address.String(), Endpoint: server.Endpoint}
	}
	if own := inst.Addr6(s.config.Prefix6); own.IsValid() {
		r.WG.ClientIP6 = own.String()
		for i, server := range s.config.Servers {
			if server.Address6.IsValid() {
				r.WG.Servers[i].Address6 = server.Address6.String()
			}
		}
	}
	for _, n := range s.nodes() {
		r.Gateways = append(r.Gateways, nodeInfo{
			ID: n.ID, UUID: n.UUID[:], URL: n.URL, LastSeen: uint64(n.LastSeen.Unix()), Key: n.Server.Key.String(), Address: n.Server.Address.String(), Endpoint: n.Server.Endpoint,
		})
	}
	return r
}

func (s *Server) nodes() []Node {
	if s.config.Nodes == nil {
		return nil
	}
	return s.config.Nodes()
}

func (s *Server) info(*prpc.Call) (any, error) {
	a := s.config.Agent
	return &infoResponse{a.Domain, uint32(a.ExternalPort), a.AppAddressNSPrefix, s.config.Version}, nil
}

func (s *Server) acmeInfo(*prpc.Call) (any, error) {
	answer := new(acmeInfoResponse)
	if s.config.ACMEInfo == nil {
		return answer, nil
	}
	text, err := s.config.ACMEInfo()
	if err != nil {
		return nil, err
	}
	return answer, json.Unmarshal(text, answer)
}

// getPeers is for the gateways of the same cluster, which run the same app (dstack 0.6 gateway/src/main_service.rs).
func (s *Server) getPeers(c *prpc.Call) (any, error) {
	if err := s.isGateway(c.Request); err != nil {
		return nil, err
	}
	answer := new(peersResponse)
	for i, n := range s.nodes() { // its own is the first
		if i == 0 {
			answer.ID, answer.URL = n.ID, n.URL
		}
		answer.Peers = append(answer.Peers, peerInfo{n.ID, n.URL})
	}
	return answer, nil
}
