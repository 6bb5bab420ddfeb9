package enroll

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"dstack.host/gateway/registry"
)

const (
	// maxMethod and maxError bound texts of strangers in answers and logs.
	maxMethod = 64
	maxError  = 1 << 10
)

// Handler is the RPC, for a server of the caller's own; its requests need their TLS state, and deadlines.
func (s *Server) Handler() http.Handler {
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
			s.rpc(w, r, method)
		default:
			fail(w, http.StatusNotFound, errors.New("nothing is here: CVMs register at /prpc/RegisterCvm?json"))
		}
	})
}

// rpc answers one call by the rules of prpc.
func (s *Server) rpc(w http.ResponseWriter, r *http.Request, method string) {
	for strings.HasPrefix(method, "Tproxy.") { // guests of dstack 0.3 send the service name
		method = strings.TrimPrefix(method, "Tproxy.")
	}
	switch {
	case r.Method != http.MethodPost && r.Method != http.MethodGet:
		w.Header().Set("Allow", "GET, POST")
		fail(w, http.StatusMethodNotAllowed, errors.New("method not allowed: use POST"))
	case method != "RegisterCvm":
		fail(w, http.StatusBadRequest, fmt.Errorf("Service not found: %s", clip(method, maxMethod)))
	case r.Method == http.MethodGet:
		fail(w, http.StatusBadRequest, errors.New("RegisterCvm takes its message as a POST body"))
	case !wantsJSON(r):
		fail(w, http.StatusBadRequest, errors.New("this gateway speaks the JSON form of prpc: add ?json to the URL"))
	default:
		s.registerCvm(w, r)
	}
}

// wantsJSON is prpc's rule for which of its two forms a POST is in.
func wantsJSON(r *http.Request) bool {
	query := r.URL.Query()
	if query.Has("json") {
		switch query.Get("json") {
		case "", "1", "true":
			return true
		}
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && media == "application/json"
}

func (s *Server) registerCvm(w http.ResponseWriter, r *http.Request) {
	inst, err := s.register(w, r)
	if err != nil {
		status, reason := classify(err)
		s.complain("registration failed", "from", r.RemoteAddr, "status", status, "reason", reason, "error", clip(err.Error(), maxError))
		fail(w, status, err)
		return
	}
	write(w, http.StatusOK, s.answer(inst), "")
}

// complain warns, unless strangers make it do so all the time.
func (s *Server) complain(message string, attributes ...any) {
	if s.warnings.AllowN(s.config.Now(), 1) {
		s.config.Logger.Warn(message, attributes...)
	} else {
		s.config.Logger.Debug(message, attributes...)
	}
}

// response is what RegisterCvm answers (dstack 0.6 gateway_rpc.proto, RegisterCvmResponse). Lists are never nil: serde
// takes a missing list, but not null.
type response struct {
	WG       responseWG `json:"wg"`
	Agent    AgentInfo  `json:"agent"`
	Gateways []struct{} `json:"gateways"`
}

type responseWG struct {
	ClientIP string         `json:"client_ip"`
	Servers  []TunnelServer `json:"servers"`
}

func (s *Server) answer(inst registry.Instance) response {
	return response{WG: responseWG{inst.Addr.String(), s.config.Servers}, Agent: s.config.Agent, Gateways: []struct{}{}}
}

// fail answers an error as prpc does, on lines of its own.
func fail(w http.ResponseWriter, status int, err error) {
	write(w, status, map[string]string{"error": clip(err.Error(), maxError)}, "  ")
}

// write answers JSON as serde_json renders it: <, > and & as they are, nothing at the end.
func write(w http.ResponseWriter, status int, value any, indent string) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(value); err != nil { // strings and numbers always have a JSON form
		status = http.StatusInternalServerError
		text.Reset()
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(bytes.TrimSuffix(text.Bytes(), []byte("\n")))
}
