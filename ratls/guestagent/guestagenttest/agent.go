// Package guestagenttest is a stand-in for dstack's guest agent in tests: the methods Info, GetQuote, GetTlsKey and Version over
// a unix socket, in prpc's JSON, for a trust domain of the software platform. What it answers has the shape and the order of
// dstack 0.6 (guest-agent/rpc/proto/agent_rpc.proto, ra-rpc/src/rocket_helper.rs).
package guestagenttest

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// maxBody is dstack's limit of a request.
const maxBody = 10 << 20

// Agent is a running stand-in.
type Agent struct {
	// Socket is the path that it listens on.
	Socket string

	t   testing.TB
	td  *simtdx.TD
	kms *KMS
}

// Start serves the domain's agent until the test ends. Its certificates are below the KMS.
func Start(t testing.TB, td *simtdx.TD, kms *KMS) *Agent {
	t.Helper()
	// The folder of a test may have too long a name for a socket.
	dir, err := os.MkdirTemp("", "guest-agent-")
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{Socket: filepath.Join(dir, "dstack.sock"), t: t, td: td, kms: kms}
	listener, err := net.Listen("unix", a.Socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: a, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return a
}

// ServeHTTP implements http.Handler.
func (a *Agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	answer, err := a.answer(r)
	if err != nil {
		text, _ := json.MarshalIndent(struct { // a text can't fail
			Error string `json:"error"`
		}{err.Error()}, "", "  ")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write(text)
		return
	}
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(answer); err != nil {
		a.t.Error(err)
	}
}

// answer calls the method.
func (a *Agent) answer(r *http.Request) (any, error) {
	method := strings.TrimPrefix(r.URL.Path, "/")
	if r.Method != http.MethodPost || !r.URL.Query().Has("json") {
		return nil, fmt.Errorf("this stand-in speaks JSON only: %s %s", r.Method, r.URL)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxBody {
		return nil, errors.New("payload too large")
	}
	if len(body) == 0 {
		body = []byte("{}")
	}
	switch method {
	case "Info":
		return a.info()
	case "GetQuote":
		return a.quote(r.Context(), body)
	case "GetTlsKey":
		return a.key(r.Context(), body)
	case "Version":
		return struct {
			Version string `json:"version"`
			Rev     string `json:"rev"`
		}{"0.6.0", "0000000000000000000000000000000000000000"}, nil
	}
	return nil, fmt.Errorf("Service not found: %s", method)
}

// log is the event log as the agent tells it: runtime events without digest, the others without payload.
func (a *Agent) log(ctx context.Context) ([]ratls.Event, error) {
	events, err := a.td.EventLog(ctx)
	for i := range events {
		if events[i].Type == ratls.RuntimeEventType {
			events[i].Digest = nil
		} else {
			events[i].Payload = nil
		}
	}
	return events, err
}

func (a *Agent) info() (any, error) {
	info, err := a.td.Info()
	if err != nil {
		return nil, err
	}
	events, err := a.td.EventLog(context.Background())
	if err != nil {
		return nil, err
	}
	tcb, err := json.Marshal(map[string]any{
		"mr_aggregated": info.MRAggregated, "os_image_hash": info.OSImageHash, "compose_hash": info.ComposeHash,
		"device_id": info.DeviceID, "event_log": events, "app_compose": a.td.AppCompose(),
	})
	if err != nil {
		return nil, err
	}
	return struct {
		AppID           ratls.Hex `json:"app_id"`
		InstanceID      ratls.Hex `json:"instance_id"`
		AppCert         string    `json:"app_cert"`
		TCBInfo         string    `json:"tcb_info"`
		AppName         string    `json:"app_name"`
		DeviceID        ratls.Hex `json:"device_id"`
		MRAggregated    ratls.Hex `json:"mr_aggregated"`
		OSImageHash     ratls.Hex `json:"os_image_hash"`
		KeyProviderInfo string    `json:"key_provider_info"`
		ComposeHash     ratls.Hex `json:"compose_hash"`
		VMConfig        string    `json:"vm_config"`
		CloudVendor     string    `json:"cloud_vendor"`
		CloudProduct    string    `json:"cloud_product"`
	}{
		AppID: info.AppID, InstanceID: info.InstanceID, TCBInfo: string(tcb), AppName: "app", DeviceID: info.DeviceID,
		MRAggregated: info.MRAggregated, OSImageHash: info.OSImageHash, KeyProviderInfo: string(info.KeyProviderInfo),
		ComposeHash: info.ComposeHash, VMConfig: a.td.VMConfig(),
	}, nil
}

func (a *Agent) quote(ctx context.Context, body []byte) (any, error) {
	var request struct {
		ReportData string `json:"report_data"`
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return nil, err
	}
	given, err := hex.DecodeString(request.ReportData)
	var data ratls.ReportData
	if err != nil || len(given) > len(data) {
		return nil, errors.New("Report data should be 64 bytes or less")
	}
	copy(data[:], given)
	raw, err := a.td.Quote(ctx, data)
	if err != nil {
		return nil, err
	}
	events, err := a.log(ctx)
	if err != nil {
		return nil, err
	}
	log, err := json.Marshal(events)
	return struct {
		Quote      ratls.Hex        `json:"quote"`
		EventLog   string           `json:"event_log"`
		ReportData ratls.ReportData `json:"report_data"`
		VMConfig   string           `json:"vm_config"`
	}{raw, string(log), data, a.td.VMConfig()}, err
}

func (a *Agent) key(ctx context.Context, body []byte) (any, error) {
	var request struct {
		Subject    string   `json:"subject"`
		AltNames   []string `json:"alt_names"`
		RATLS      bool     `json:"usage_ra_tls"`
		ServerAuth bool     `json:"usage_server_auth"`
		ClientAuth bool     `json:"usage_client_auth"`
		NotBefore  *int64   `json:"not_before"`
		NotAfter   *int64   `json:"not_after"`
		AppInfo    bool     `json:"with_app_info"`
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return nil, err
	}
	o := ratls.CertOptions{CommonName: request.Subject, Names: request.AltNames, Usage: []x509.ExtKeyUsage{}, NotAfter: time.Now().AddDate(0, 0, 3650)}
	if request.ServerAuth {
		o.Usage = append(o.Usage, x509.ExtKeyUsageServerAuth)
	}
	if request.ClientAuth {
		o.Usage = append(o.Usage, x509.ExtKeyUsageClientAuth)
	}
	if request.NotBefore != nil {
		o.NotBefore = time.Unix(*request.NotBefore, 0)
	}
	if request.NotAfter != nil {
		o.NotAfter = time.Unix(*request.NotAfter, 0)
	}
	if request.AppInfo {
		o.AppInfo = new(ratls.AppInfo)
	}
	certificate, err := a.kms.Certify(ctx, a.t, a.td, request.RATLS, o)
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	chain := []string{}
	for _, der := range certificate.Certificate {
		chain = append(chain, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	return struct {
		Key   string   `json:"key"`
		Chain []string `json:"certificate_chain"`
	}{string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})), chain}, err
}
