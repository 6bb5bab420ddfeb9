package ratls

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Purposes begin statements, so that the text of one can never pass for another's.
const (
	PurposeGateway = "ra-https-v1"
	PurposeApp     = TagWireGuard
)

// Bounds of statements.
const (
	maxStatement    = 1 << 20
	maxAppStatement = 4 << 10
	maxInstances    = 256
	maxKeys         = 64
)

// Statement is what the gateway says of a host, and has quoted: its own keys for the host, and the instances behind it. Its
// text travels as a string, which is hashed as received.
type Statement struct {
	// Purpose is PurposeGateway.
	Purpose string `json:"purpose"`
	// Host is the host that was asked for, in lower case without port or trailing dot; Node the gateway's name for itself.
	Host string `json:"host"`
	Node string `json:"node"`
	// TLS are the keys that the gateway serves the host with, now or next.
	TLS []TLSKey `json:"tls"`
	// ACMEAccount is the URI of the account that the certificates are issued to, "" for an internal issuer; CAA the records of
	// the zone that allow no other.
	ACMEAccount string   `json:"acme_account"`
	CAA         []string `json:"caa"`
	// App is the application behind the host; null for a host of the gateway's own.
	App *StatementApp `json:"app"`
	// IssuedAt and ExpiresAt bound the statement's life, in whole seconds.
	IssuedAt  time.Time `json:"issued_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

// TLSKey is one of the gateway's keys. The key is named and not its certificate, so that it survives renewal.
type TLSKey struct {
	// SPKI is the SHA-256 of the DER SubjectPublicKeyInfo.
	SPKI Digest `json:"spki_sha256"`
	// NotAfter is when the certificate ends.
	NotAfter time.Time `json:"not_after"`
	// Use is KeyCurrent or KeyNext.
	Use string `json:"use"`
}

// Uses of a key: the one being served, and one that will be and is published before.
const (
	KeyCurrent = "current"
	KeyNext    = "next"
)

// StatementApp is the application that a host reaches.
type StatementApp struct {
	// ID is the app id, 40 digits of hex.
	ID string `json:"id"`
	// Instances are all that a connection to the host may be carried to.
	Instances []StatementInstance `json:"instances"`
}

// StatementInstance is one instance and the key of the tunnel to it.
type StatementInstance struct {
	// ID is the instance id, 40 digits of hex; WGPublicKey the WireGuard key that connections to it are encrypted to, base64.
	ID          string `json:"id"`
	WGPublicKey string `json:"wg_public_key"`
	// EvidenceSHA256 is the SHA-256 of the instance's raw quote in hex, "" when it registered without one.
	EvidenceSHA256 string `json:"evidence_sha256"`
	// Identity is the proof that the gateway took for who the instance is when it registered, one of the constants; "" when it does not say.
	Identity string `json:"identity,omitempty"`
}

// Proofs of an instance's identity at its registration.
const (
	IdentityAttestation = "ratls-v0"     // certificate with dstack's attestation extension, version 0 of its content
	IdentityMessagePack = "ratls-v1"     // the same, version 1
	IdentityLegacy      = "ratls-legacy" // certificate with the older quote and event log extensions
	IdentityKMS         = "kms-app-info" // certificate of the dstack KMS, without a quote
)

// ParseStatement reads the exact text of a gateway's statement: strictly, at most 1 MiB, every member present and well formed.
func ParseStatement(text string) (*Statement, error) {
	s := new(Statement)
	if err := DecodeStrict([]byte(text), maxStatement, false, s); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	return s, nil
}

// Text renders the statement, with its purpose set and its times in UTC and whole seconds, as [ParseStatement] reads it.
func (s Statement) Text() (string, error) {
	s.Purpose = PurposeGateway
	s.IssuedAt, s.ExpiresAt = seconds(s.IssuedAt), seconds(s.ExpiresAt)
	s.TLS = append([]TLSKey{}, s.TLS...)
	for i := range s.TLS {
		s.TLS[i].NotAfter = seconds(s.TLS[i].NotAfter)
	}
	s.CAA = append([]string{}, s.CAA...)
	if s.App != nil {
		app := *s.App
		app.Instances = append([]StatementInstance{}, app.Instances...)
		s.App = &app
	}
	if err := s.check(); err != nil {
		return "", fmt.Errorf("statement: %w", err)
	}
	text, err := marshal(s)
	return string(text), err
}

func seconds(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// check reports all faults of a statement.
func (s *Statement) check() error {
	var errs []error
	if s.Purpose != PurposeGateway {
		errs = append(errs, fmt.Errorf("purpose is %q, want %q", shorten(s.Purpose), PurposeGateway))
	}
	if s.Host == "" || s.Host != strings.ToLower(s.Host) || strings.HasSuffix(s.Host, ".") {
		errs = append(errs, fmt.Errorf("host %q is empty, or not in lower case without a trailing dot", shorten(s.Host)))
	}
	if n := len(s.TLS); n == 0 || n > maxKeys {
		errs = append(errs, fmt.Errorf("%d TLS keys, want 1 to %d", n, maxKeys))
	}
	for _, k := range s.TLS {
		if k.Use != KeyCurrent && k.Use != KeyNext {
			errs = append(errs, fmt.Errorf("use of a TLS key is %q, want %q or %q", shorten(k.Use), KeyCurrent, KeyNext))
		}
	}
	if !s.ExpiresAt.After(s.IssuedAt) {
		errs = append(errs, fmt.Errorf("expires at %s, which is not after its issue at %s", stamp(s.ExpiresAt), stamp(s.IssuedAt)))
	}
	if s.App != nil {
		errs = append(errs, s.App.check())
	}
	return errors.Join(errs...)
}

func (a *StatementApp) check() error {
	var errs []error
	if _, err := lowerHex(a.ID, appIDSize); err != nil {
		errs = append(errs, fmt.Errorf("app id %w", err))
	}
	if n := len(a.Instances); n == 0 || n > maxInstances {
		errs = append(errs, fmt.Errorf("%d instances, want 1 to %d", n, maxInstances))
	}
	seen := make(map[string]bool)
	for _, i := range a.Instances {
		if seen[i.ID] {
			errs = append(errs, fmt.Errorf("instance %s is listed twice", shorten(i.ID)))
		}
		seen[i.ID] = true
		errs = append(errs, i.check())
	}
	return errors.Join(errs...)
}

func (i StatementInstance) check() error {
	var errs []error
	if _, err := lowerHex(i.ID, instanceIDSize); err != nil {
		errs = append(errs, fmt.Errorf("instance id %w", err))
	}
	if err := checkWireGuardKey(i.WGPublicKey); err != nil {
		errs = append(errs, err)
	}
	if i.EvidenceSHA256 != "" {
		if _, err := lowerHex(i.EvidenceSHA256, len(Digest{})); err != nil {
			errs = append(errs, fmt.Errorf("evidence hash %w", err))
		}
	}
	switch i.Identity {
	case "", IdentityAttestation, IdentityMessagePack, IdentityLegacy, IdentityKMS:
	default:
		errs = append(errs, fmt.Errorf("identity %q is unknown", shorten(i.Identity)))
	}
	return errors.Join(errs...)
}

// checkWireGuardKey holds the text of a key to its one form: base64 of 32 bytes.
func checkWireGuardKey(text string) error {
	const size = 32
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != size || len(text) != base64.StdEncoding.EncodedLen(size) {
		return fmt.Errorf("WireGuard key %q is not base64 of %d bytes", shorten(text), size)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// AppStatement is what an instance says of itself, and has quoted: that it owns a WireGuard key. Its report data is
// SHA-512("dstack-wg-v1:" text).
type AppStatement struct {
	// Purpose is PurposeApp.
	Purpose string `json:"purpose"`
	// AppID and InstanceID are those of the evidence, 40 digits of hex each.
	AppID      string `json:"app_id"`
	InstanceID string `json:"instance_id"`
	// WGPublicKey is the instance's WireGuard key, base64.
	WGPublicKey string `json:"wg_public_key"`
	// Challenge is the exporter of the TLS connection over which the instance registers, 64 digits of hex: the statement is
	// worthless on any other.
	Challenge string `json:"challenge"`
	// IssuedAt is when it was made, in whole seconds.
	IssuedAt time.Time `json:"issued_at"`
}

// ParseAppStatement reads the exact text of an instance's statement: strictly, at most 4 KiB.
func ParseAppStatement(text string) (*AppStatement, error) {
	s := new(AppStatement)
	if err := DecodeStrict([]byte(text), maxAppStatement, false, s); err != nil {
		return nil, fmt.Errorf("app statement: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("app statement: %w", err)
	}
	return s, nil
}

// Text renders the statement, with its purpose set and its time in UTC and whole seconds.
func (s AppStatement) Text() (string, error) {
	s.Purpose = PurposeApp
	s.IssuedAt = seconds(s.IssuedAt)
	if err := s.check(); err != nil {
		return "", fmt.Errorf("app statement: %w", err)
	}
	text, err := marshal(s)
	return string(text), err
}

func (s *AppStatement) check() error {
	var errs []error
	if s.Purpose != PurposeApp {
		errs = append(errs, fmt.Errorf("purpose is %q, want %q", shorten(s.Purpose), PurposeApp))
	}
	if _, err := lowerHex(s.AppID, appIDSize); err != nil {
		errs = append(errs, fmt.Errorf("app id %w", err))
	}
	if _, err := lowerHex(s.InstanceID, instanceIDSize); err != nil {
		errs = append(errs, fmt.Errorf("instance id %w", err))
	}
	if err := checkWireGuardKey(s.WGPublicKey); err != nil {
		errs = append(errs, err)
	}
	if _, err := lowerHex(s.Challenge, ExporterSize); err != nil {
		errs = append(errs, fmt.Errorf("challenge %w", err))
	}
	return errors.Join(errs...)
}
