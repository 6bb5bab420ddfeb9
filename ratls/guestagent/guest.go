// Package guestagent makes evidence through dstack's guest agent, the service that gives the containers of a dstack CVM quotes
// and certificates (dstack 0.6 guest-agent/rpc/proto/agent_rpc.proto), over its unix socket, in prpc's JSON.
package guestagent

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"dstack.host/ratls"
)

// Guest is the CVM that the agent speaks for. It is a [ratls.Platform]; its methods may be called concurrently.
type Guest struct {
	// set by Open
	client               *client
	kind                 ratls.Kind
	appCompose, vmConfig string

	mu  sync.Mutex
	log []ratls.Event // guarded by mu: that came with the last quote
}

var _ ratls.Platform = (*Guest)(nil)

// infoJSON are the members of Info's answer that are read.
type infoJSON struct {
	ComposeHash string `json:"compose_hash"`
	VMConfig    string `json:"vm_config"`
	TCBInfo     string `json:"tcb_info"` // JSON text, "" where the app made it private
}

// Open asks the agent at address ([Find]) who it speaks for, and for one quote. An agent of another TEE than TDX gives none.
func Open(ctx context.Context, address string) (*Guest, error) {
	c, err := newClient(address)
	if err != nil {
		return nil, fmt.Errorf("guest agent: %w", err)
	}
	var info infoJSON
	if err := c.call(ctx, "Info", struct{}{}, &info); err != nil {
		return nil, err
	}
	g := &Guest{client: c, vmConfig: info.VMConfig, appCompose: info.appCompose()}
	q, err := g.quote(ctx, ratls.ReportData{})
	if err != nil {
		return nil, err
	}
	if g.kind, err = ratls.ClaimedKind(q.Quote); err != nil {
		return nil, fmt.Errorf("guest agent: %w", err)
	}
	if g.vmConfig == "" {
		g.vmConfig = q.VMConfig
	}
	return g, nil
}

// appCompose is the text of app-compose.json if the agent tells it, and tells that which was measured: evidence with another
// would be refused.
func (i infoJSON) appCompose() string {
	var tcb struct {
		AppCompose string `json:"app_compose"`
	}
	if json.Unmarshal([]byte(i.TCBInfo), &tcb) != nil {
		return ""
	}
	if digest := sha256.Sum256([]byte(tcb.AppCompose)); !strings.EqualFold(hex.EncodeToString(digest[:]), i.ComposeHash) {
		return ""
	}
	return tcb.AppCompose
}

// quoteJSON is GetQuote's answer.
type quoteJSON struct {
	Quote       ratls.Hex `json:"quote"`
	EventLog    string    `json:"event_log"` // JSON text
	VMConfig    string    `json:"vm_config"`
	Attestation ratls.Hex `json:"attestation"` // instead of a quote, on platforms other than TDX
}

// quote asks for one quote, and keeps the log that came with it.
func (g *Guest) quote(ctx context.Context, data ratls.ReportData) (quoteJSON, error) {
	var q quoteJSON
	request := struct {
		ReportData ratls.ReportData `json:"report_data"`
	}{data}
	if err := g.client.call(ctx, "GetQuote", request, &q); err != nil {
		return q, err
	}
	if len(q.Quote) == 0 {
		return q, fmt.Errorf("guest agent: GetQuote: %w", q.other())
	}
	events, err := ratls.ParseEventLog([]byte(q.EventLog))
	if err != nil {
		return q, fmt.Errorf("guest agent: GetQuote: %w", err)
	}
	g.mu.Lock()
	g.log = events
	g.mu.Unlock()
	return q, nil
}

// other says why there is no quote.
func (q quoteJSON) other() error {
	if len(q.Attestation) > 0 {
		if _, err := ratls.ParseAttestation(q.Attestation); err != nil {
			return err
		}
	}
	return errors.New("the answer has no TDX quote")
}

// Kind says what the certificates in the agent's quotes chain to; whether they really do is for verifiers to say.
func (g *Guest) Kind() ratls.Kind { return g.kind }

// Quote implements ratls.Platform.
func (g *Guest) Quote(ctx context.Context, data ratls.ReportData) ([]byte, error) {
	q, err := g.quote(ctx, data)
	return q.Quote, err
}

// EventLog is the log as it was at the last quote.
func (g *Guest) EventLog(context.Context) ([]ratls.Event, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.log, nil
}

// VMConfig implements ratls.Platform.
func (g *Guest) VMConfig() string { return g.vmConfig }

// AppCompose implements ratls.Platform.
func (g *Guest) AppCompose() string { return g.appCompose }

// certificateLife is that of dstack's own client certificates (dstack 0.6 dstack-util/src/system_setup.rs).
const certificateLife = 10 * 24 * time.Hour

// ClientCertificate has the agent make a key and a certificate for it, for TLS clients, with this CVM's quote over the key and,
// where the guest has a KMS, with the KMS's word on the app. Gateways of dstack accept no certificate that is not below the root
// of their KMS. Root is the last certificate of the chain.
func (g *Guest) ClientCertificate(ctx context.Context) (certificate tls.Certificate, root *x509.Certificate, err error) {
	request := struct {
		Subject    string   `json:"subject"`
		AltNames   []string `json:"alt_names"`
		RATLS      bool     `json:"usage_ra_tls"`
		ServerAuth bool     `json:"usage_server_auth"`
		ClientAuth bool     `json:"usage_client_auth"`
		NotAfter   int64    `json:"not_after"`
		AppInfo    bool     `json:"with_app_info"`
	}{Subject: "dstack-guest-agent", AltNames: []string{}, RATLS: true, ClientAuth: true, AppInfo: true, NotAfter: time.Now().Add(certificateLife).Unix()}
	var answer struct {
		Key   string   `json:"key"`
		Chain []string `json:"certificate_chain"`
	}
	if err := g.client.call(ctx, "GetTlsKey", request, &answer); err != nil {
		return tls.Certificate{}, nil, err
	}
	certificate, err = tls.X509KeyPair([]byte(strings.Join(answer.Chain, "\n")), []byte(answer.Key))
	if err == nil {
		root, err = x509.ParseCertificate(certificate.Certificate[len(certificate.Certificate)-1])
	}
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("guest agent: GetTlsKey: %w", err)
	}
	return certificate, root, nil
}
