package ratls

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
)

// Binding says what the evidence of an instance is bound to. They differ in strength, and are never called by another's name.
type Binding string

const (
	// BindingWireGuard: the quote is over an [AppStatement] that names the instance's WireGuard key.
	BindingWireGuard Binding = TagWireGuard
	// BindingCertificate: the quote is over the TLS key that the instance registered with. That the WireGuard key is the
	// instance's too is the gateway's word.
	BindingCertificate Binding = TagCertificate
	// BindingAppInfo: there is no quote. A KMS vouches for the instance.
	BindingAppInfo Binding = "kms-app-info"
)

// maxAppEvidence bounds the evidence of one instance, maxAppCompose its app-compose.json.
const (
	maxAppEvidence = 8 << 20
	maxAppCompose  = 1 << 20
)

// AppEvidence is what an instance showed when it registered, as the attestation document passes it on.
type AppEvidence struct {
	// InstanceID is the instance, 40 digits of hex. Kind is what the quote chains to, "" without one.
	InstanceID string  `json:"instance_id"`
	Kind       Kind    `json:"kind"`
	Binding    Binding `json:"binding"`
	// Quote is the raw quote, empty for BindingAppInfo.
	Quote Base64 `json:"quote"`
	// Statement is the exact text of the [AppStatement] of BindingWireGuard, "" for the others.
	Statement string `json:"statement"`
	// SPKI is the DER SubjectPublicKeyInfo that the quote of BindingCertificate is over, empty for the others.
	SPKI Base64 `json:"spki,omitempty"`
	// EventLog replays to RTMR[3] of the quote.
	EventLog []Event `json:"event_log"`
	// AppCompose is the exact text of app-compose.json, whose SHA-256 is the compose hash, "" when the guest did not send it.
	AppCompose string `json:"app_compose"`
	// VMConfig is the guest's configuration as JSON text, "" when unknown.
	VMConfig string `json:"vm_config"`
}

// ParseAppEvidence reads the JSON of an instance's evidence: strictly, at most 8 MiB, with what its binding demands.
func ParseAppEvidence(data []byte) (*AppEvidence, error) {
	e := new(AppEvidence)
	if err := DecodeStrict(data, maxAppEvidence, false, e); err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	return e, nil
}

// MarshalJSON writes every list as a list, never as null.
func (e AppEvidence) MarshalJSON() ([]byte, error) {
	type plain AppEvidence
	if e.EventLog == nil {
		e.EventLog = []Event{}
	}
	return marshal(plain(e))
}

// check holds the evidence to the form that its binding has.
func (e *AppEvidence) check() error {
	var errs []error
	if _, err := lowerHex(e.InstanceID, instanceIDSize); err != nil {
		errs = append(errs, fmt.Errorf("instance id %w", err))
	}
	has := func(what string, present, wanted bool) {
		if present != wanted {
			errs = append(errs, fmt.Errorf("binding %q: %s present is %t, want %t", e.Binding, what, present, wanted))
		}
	}
	switch e.Binding {
	case BindingWireGuard, BindingCertificate, BindingAppInfo:
		has("quote", len(e.Quote) > 0, e.Binding != BindingAppInfo)
		has("statement", e.Statement != "", e.Binding == BindingWireGuard)
		has("spki", len(e.SPKI) > 0, e.Binding == BindingCertificate)
		has("kind", e.Kind != "", e.Binding != BindingAppInfo)
	default:
		errs = append(errs, fmt.Errorf("binding %q is unknown", shorten(string(e.Binding))))
	}
	if len(e.Quote) > maxQuoteSize {
		errs = append(errs, fmt.Errorf("quote has %d bytes, at most %d are read", len(e.Quote), maxQuoteSize))
	}
	if len(e.AppCompose) > maxAppCompose {
		errs = append(errs, fmt.Errorf("app-compose has %d bytes, at most %d are read", len(e.AppCompose), maxAppCompose))
	}
	return errors.Join(append(errs, checkEvents(e.EventLog))...)
}

// SHA256 is the hash of the raw quote in hex, "" without a quote: what the gateway's statement names the evidence by.
func (e *AppEvidence) SHA256() string {
	if len(e.Quote) == 0 {
		return ""
	}
	digest := sha256.Sum256(e.Quote)
	return hex.EncodeToString(digest[:])
}

// CertificateEvidence is the evidence of an instance that showed nothing but its RA-TLS certificate, which has to have been
// verified by a verifier of kind.
func CertificateEvidence(cert *x509.Certificate, kind Kind, info AppInfo) (*AppEvidence, error) {
	c, err := ReadCertificate(cert)
	if err != nil {
		return nil, err
	}
	e := &AppEvidence{
		InstanceID: hex.EncodeToString(info.InstanceID), Kind: kind, Binding: BindingCertificate,
		Quote: c.Quote, SPKI: c.SPKI, EventLog: c.Events, VMConfig: c.VMConfig,
	}
	return e, e.check()
}

// AppVerification is what verified evidence of an instance says.
type AppVerification struct {
	Quote *Quote
	Info  AppInfo
	// Statement is that of BindingWireGuard, nil for the others.
	Statement *AppStatement
}

// Verify verifies the evidence in full: the quote, its kind, that it is over what the binding says, the event log against
// RTMR[3], the ids, and the app-compose if there is one against the compose hash. It does not know which connection the
// challenge of a statement should be of; the caller compares that. Errors are a [*Refusal] where the evidence is at fault.
func (e *AppEvidence) Verify(ctx context.Context, v QuoteVerifier) (*AppVerification, error) {
	q, err := e.verifyQuote(ctx, v)
	if err != nil {
		return nil, err
	}
	statement, err := e.bound(q)
	if err != nil {
		return nil, err
	}
	info, err := DecodeAppInfo(q, e.EventLog, e.VMConfig)
	if err != nil {
		return nil, err
	}
	result := &AppVerification{Quote: q, Info: info, Statement: statement}
	if err := e.identified(info, statement); err != nil {
		return nil, &Refusal{Check: CheckAppInfo, Err: err}
	}
	if err := e.composed(info); e.AppCompose != "" && err != nil {
		return nil, &Refusal{Check: CheckAppInfo, Err: err}
	}
	return result, nil
}

// verifyQuote verifies the quote and that it is of the kind that the evidence states.
func (e *AppEvidence) verifyQuote(ctx context.Context, v QuoteVerifier) (*Quote, error) {
	if len(e.Quote) == 0 {
		return nil, refuse(CheckQuoteParse, "binding %q has no quote", e.Binding)
	}
	q, err := v.Verify(ctx, e.Quote)
	if err != nil {
		return nil, err
	}
	if q.Kind != e.Kind {
		return nil, refuse(CheckQuoteRoot, "the evidence states kind %q, its quote is of %q", shorten(string(e.Kind)), q.Kind)
	}
	return q, nil
}

// bound holds the quote's report data to the binding, and returns the statement that it is over, if it is.
func (e *AppEvidence) bound(q *Quote) (*AppStatement, error) {
	switch e.Binding {
	case BindingCertificate:
		if want := TaggedReportData(TagCertificate, e.SPKI); q.ReportData != want {
			return nil, refuse(CheckReportData, "the quote is over %s, the TLS key gives %s", q.ReportData, want)
		}
		return nil, nil
	case BindingWireGuard:
		if want := TaggedReportData(TagWireGuard, []byte(e.Statement)); q.ReportData != want {
			return nil, refuse(CheckReportData, "the quote is over %s, the statement gives %s", q.ReportData, want)
		}
		statement, err := ParseAppStatement(e.Statement)
		if err != nil {
			return nil, &Refusal{Check: CheckReportData, Err: err}
		}
		return statement, nil
	default:
		return nil, refuse(CheckReportData, "binding %q binds no quote", shorten(string(e.Binding)))
	}
}

// identified holds the ids that are stated to those that were measured.
func (e *AppEvidence) identified(info AppInfo, statement *AppStatement) error {
	measured := hex.EncodeToString(info.InstanceID)
	if e.InstanceID != measured {
		return fmt.Errorf("the evidence is filed under instance %s, it is of instance %s", e.InstanceID, measured)
	}
	if statement == nil {
		return nil
	}
	if statement.InstanceID != measured {
		return fmt.Errorf("the app statement names instance %s, the evidence is of instance %s", statement.InstanceID, measured)
	}
	if app := hex.EncodeToString(info.AppID); statement.AppID != app {
		return fmt.Errorf("the app statement names app %s, the evidence is of app %s", statement.AppID, app)
	}
	return nil
}

// composed holds the text of app-compose.json to the compose hash.
func (e *AppEvidence) composed(info AppInfo) error {
	if e.AppCompose == "" {
		return errors.New("the app-compose is missing")
	}
	if digest := sha256.Sum256([]byte(e.AppCompose)); !bytes.Equal(digest[:], info.ComposeHash) {
		return fmt.Errorf("the app-compose has SHA-256 %x, the compose hash is %x", digest, []byte(info.ComposeHash))
	}
	return nil
}
