package ratls

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
)

// Extensions of dstack's certificates, none of them critical (dstack 0.6 ra-tls/src/oids.rs). The content of each is an OCTET
// STRING within the extension's own.
var (
	oidQuote       = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 62397, 1, 1}
	oidEventLog    = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 62397, 1, 2}
	oidAppID       = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 62397, 1, 3}
	oidUsage       = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 62397, 1, 4}
	oidAttestation = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 62397, 1, 8}
	oidAppInfo     = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 62397, 1, 9}
)

// Source says where the evidence of a certificate comes from.
type Source string

const (
	// SourceNone: the certificate carries no evidence.
	SourceNone Source = ""
	// SourceAttestation: an encoded [Attestation] of version 0.
	SourceAttestation Source = "attestation-v0"
	// SourceAttestationV1: one of version 1.
	SourceAttestationV1 Source = "attestation-v1"
	// SourceLegacy: the quote and the event log of dstack before 0.5.6.
	SourceLegacy Source = "legacy"
	// SourceAppInfo: no quote. The application info is the word of the certificate's issuer, and is worth what the issuer is.
	SourceAppInfo Source = "app-info"
)

// CertEvidence is what a certificate claims. Nothing in it is verified.
type CertEvidence struct {
	// Source is the kind of evidence; a quote takes precedence over application info.
	Source Source
	// Quote is the raw quote, Events the runtime events that have to replay to its RTMR[3], VMConfig the guest's configuration.
	// Quote is nil unless Source is SourceAttestation, SourceAttestationV1 or SourceLegacy.
	Quote    []byte
	Events   []Event
	VMConfig string
	// ReportData is what an attestation states beside its quote; nil otherwise.
	ReportData *ReportData
	// AppInfo is the issuer's word, nil without that extension; AppID likewise, 20 bytes.
	AppInfo *AppInfo
	AppID   []byte
	// Usage is what the issuer made the certificate for, as "kms:rpc", "app:ca" and "app:custom"; "" when it does not say.
	Usage string
	// SPKI is the DER SubjectPublicKeyInfo of the certificate.
	SPKI []byte
}

// ReadCertificate reads the evidence of a certificate. A certificate without any is not an error. An extension that occurs
// twice or is malformed is, and so is evidence of both the current and the legacy form. Platforms other than TDX give
// [ErrUnsupported].
func ReadCertificate(cert *x509.Certificate) (*CertEvidence, error) {
	contents, err := readExtensions(cert.Extensions)
	if err != nil {
		return nil, err
	}
	e := &CertEvidence{SPKI: cert.RawSubjectPublicKeyInfo, Usage: string(contents[oidUsage.String()])}
	if id, ok := contents[oidAppID.String()]; ok {
		if len(id) != appIDSize {
			return nil, fmt.Errorf("certificate: app id has %d bytes, want %d", len(id), appIDSize)
		}
		e.AppID = id
	}
	if raw, ok := contents[oidAppInfo.String()]; ok {
		e.AppInfo = new(AppInfo)
		if err := e.AppInfo.UnmarshalBinary(raw); err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		e.Source = SourceAppInfo
	}
	if err := e.readQuote(contents); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return e, nil
}

// readExtensions returns the contents of dstack's extensions by object identifier.
func readExtensions(extensions []pkix.Extension) (map[string][]byte, error) {
	contents := make(map[string][]byte)
	for _, known := range []asn1.ObjectIdentifier{oidQuote, oidEventLog, oidAppID, oidUsage, oidAttestation, oidAppInfo} {
		for _, ext := range extensions {
			if !ext.Id.Equal(known) {
				continue
			}
			if _, twice := contents[known.String()]; twice {
				return nil, fmt.Errorf("certificate: extension %s occurs twice", known)
			}
			content, err := unwrap(ext.Value)
			if err != nil {
				return nil, fmt.Errorf("certificate: extension %s: %w", known, err)
			}
			contents[known.String()] = content
		}
	}
	return contents, nil
}

// unwrap returns the content of the OCTET STRING that an extension's value is.
func unwrap(value []byte) ([]byte, error) {
	if len(value) > maxAttestation+16 {
		return nil, fmt.Errorf("%d bytes are longer than the limit of %d", len(value), maxAttestation)
	}
	var content []byte
	rest, err := asn1.Unmarshal(value, &content)
	if err != nil {
		return nil, fmt.Errorf("not a DER OCTET STRING: %w", err)
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("OCTET STRING is followed by %d more bytes", len(rest))
	}
	return content, nil
}

// readQuote reads the quote-bearing extensions.
func (e *CertEvidence) readQuote(contents map[string][]byte) error {
	attestation, current := contents[oidAttestation.String()]
	quote, legacy := contents[oidQuote.String()]
	log, logged := contents[oidEventLog.String()]
	switch {
	case current && (legacy || logged):
		return errors.New("evidence of both the current and the legacy form")
	case legacy != logged:
		return errors.New("only one of legacy quote and event log")
	case current:
		a, err := ParseAttestation(attestation)
		if err != nil {
			return err
		}
		e.Source, e.Quote, e.Events, e.VMConfig, e.ReportData = SourceAttestation, a.Quote, a.RuntimeEvents, a.Config, &a.ReportData
		if attestation[0] != 0 {
			e.Source = SourceAttestationV1
		}
	case legacy:
		events, err := ParseEventLog(log)
		if err != nil {
			return err
		}
		e.Source, e.Quote, e.Events = SourceLegacy, quote, RuntimeEvents(events)
	}
	return nil
}

// VerifyCertificate verifies that whoever holds the key of cert runs in a trust domain, and returns what that domain is: the
// quote in full, its report data over the certificate's key, the event log against RTMR[3]. The certificate's signature and
// dates are not looked at, for the evidence is over the key alone; possession of the key is for TLS to show. Statements of the
// issuer that contradict the evidence are refused. Errors are a [*Refusal] where the certificate is at fault.
func VerifyCertificate(ctx context.Context, v *Verifier, cert *x509.Certificate) (*Quote, AppInfo, error) {
	e, err := ReadCertificate(cert)
	if err != nil {
		return nil, AppInfo{}, &Refusal{Check: CheckCertificate, Err: err}
	}
	if e.Quote == nil {
		return nil, AppInfo{}, refuse(CheckCertificate, "no quote in the certificate")
	}
	q, err := v.Verify(ctx, e.Quote)
	if err != nil {
		return nil, AppInfo{}, err
	}
	if want := TaggedReportData(TagCertificate, e.SPKI); q.ReportData != want {
		return nil, AppInfo{}, refuse(CheckReportData, "the quote is over %s, the certificate's key gives %s", q.ReportData, want)
	}
	if e.ReportData != nil && *e.ReportData != q.ReportData {
		return nil, AppInfo{}, refuse(CheckReportData, "the attestation states %s, its quote is over %s", e.ReportData, q.ReportData)
	}
	info, err := DecodeAppInfo(q, e.Events, e.VMConfig)
	if err != nil {
		return nil, AppInfo{}, err
	}
	if err := e.agrees(info); err != nil {
		return nil, AppInfo{}, &Refusal{Check: CheckAppInfo, Err: err}
	}
	return q, info, nil
}

// agrees refuses statements of the issuer that the evidence contradicts. Only identity is compared: dstack's KMS fills in other
// fields from elsewhere.
func (e *CertEvidence) agrees(info AppInfo) error {
	if e.AppID != nil && !bytes.Equal(e.AppID, info.AppID) {
		return fmt.Errorf("the certificate is for app id %x, the evidence is of %x", e.AppID, []byte(info.AppID))
	}
	if a := e.AppInfo; a != nil && (!bytes.Equal(a.AppID, info.AppID) || !bytes.Equal(a.ComposeHash, info.ComposeHash) || !bytes.Equal(a.InstanceID, info.InstanceID)) {
		return errors.New("the application info of the certificate is of another application or instance than the evidence")
	}
	return nil
}
