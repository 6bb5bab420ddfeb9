// Package ratls produces, reads and verifies the evidence of Intel TDX trust domains: quotes, event logs, RA-TLS
// certificates, and the attestation document of the gateway. It knows measurements, and nothing of the gateway.
//
// Words follow RFC 9334: evidence (a quote and its event log), endorsements (collateral), relying party, appraisal policy.
// Everything that is parsed here comes from strangers: sizes are bounded, decoders are strict, and whatever is refused is
// refused with a [Refusal] that names the check which failed.
package ratls

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"
)

// Kind says which root of trust evidence chains to.
type Kind string

const (
	// KindTDX is evidence of Intel TDX hardware: its certificates chain to Intel's SGX Root CA.
	KindTDX Kind = "tdx"
	// KindSimulatedTDX is evidence of the software platform: well formed, but its root is not Intel's, so that it proves
	// nothing about hardware. It is never reported as KindTDX.
	KindSimulatedTDX Kind = "simulated-tdx"
)

// ReportData is what a trust domain chooses to have signed in its quote.
type ReportData [64]byte

// MarshalText renders lower-case hex.
func (d ReportData) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// String renders lower-case hex.
func (d ReportData) String() string { return hex.EncodeToString(d[:]) }

// Measurement is a SHA-384 register of a quote: MRTD, an RTMR, MRSEAM and their like.
type Measurement [48]byte

// MarshalText renders lower-case hex.
func (m Measurement) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, m[:]), nil }

// UnmarshalText reads 96 hex digits of either case.
func (m *Measurement) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(m)) {
		return fmt.Errorf("measurement has %d characters, want %d hex digits", len(text), hex.EncodedLen(len(m)))
	}
	_, err := hex.Decode(m[:], text)
	return err
}

// String renders lower-case hex.
func (m Measurement) String() string { return hex.EncodeToString(m[:]) }

// Platform is the trusted execution environment that this process runs in, of hardware or of software. Its methods may be
// called concurrently.
type Platform interface {
	// Kind says what the quotes chain to.
	Kind() Kind
	// Quote returns a raw quote over data. A guest makes about one quote a second, serialised.
	Quote(ctx context.Context, data ReportData) ([]byte, error)
	// EventLog returns dstack's log: boot events and runtime events, in the order they were measured.
	EventLog(ctx context.Context) ([]Event, error)
	// VMConfig is dstack's description of the virtual machine as JSON text, "" when unknown.
	VMConfig() string
	// AppCompose is the exact text of app-compose.json, whose SHA-256 is the compose hash, "" when unknown.
	AppCompose() string
}

// Quote is what a TDX quote says. From [ParseQuote] it is a claim; from [Verifier.Verify] it is verified, and Kind, FMSPC, PPID
// and TCB are filled in.
type Quote struct {
	// Kind is the root that the quote chains to; "" until verified.
	Kind Kind
	// Version is that of the quote format, 4 or 5.
	Version int
	// TEETCBSVN is the security version of the TDX module ([0] and [1]) and of the platform's TDX components.
	TEETCBSVN [16]byte
	// MRSeam and MRSignerSeam measure the TDX module and its signer (all zero for Intel's).
	MRSeam, MRSignerSeam Measurement
	// MRTD measures the initial contents of the trust domain.
	MRTD Measurement
	// MRConfigID, MROwner and MROwnerConfig are what the host declared at creation.
	MRConfigID, MROwner, MROwnerConfig Measurement
	// SeamAttributes are the attributes of the TDX module, zero in a valid quote; TDAttributes and XFAM those of the domain.
	SeamAttributes, TDAttributes, XFAM [8]byte
	// RTMR are the runtime measurement registers; dstack logs applications in RTMR[3].
	RTMR [4]Measurement
	// ReportData is what the domain chose to have signed.
	ReportData ReportData
	// MRServiceTD measures the service domains bound to this one; nil unless the quote has a TDX 1.5 body.
	MRServiceTD *Measurement
	// FMSPC is the platform's family, lower-case hex of 6 bytes; PPID the 16-byte identity of the processor package.
	FMSPC string
	PPID  []byte
	// TCB is what the vendor's collateral says of the platform; zero until verified.
	TCB TCB
}

// TCBStatus is the vendor's word on one component at the level that the quote matches.
type TCBStatus struct {
	// Status is one of the words of Intel's TCB info: UpToDate, SWHardeningNeeded, ConfigurationNeeded,
	// ConfigurationAndSWHardeningNeeded, OutOfDate, OutOfDateConfigurationNeeded, Revoked. "" where nothing was said.
	Status string `json:"status"`
	// Date is when the level was current.
	Date time.Time `json:"date,omitzero"`
	// Advisories are the ids of the vendor's security advisories that the level is open to.
	Advisories []string `json:"advisories,omitempty"`
}

// TCB keeps the statuses of the TDX module, the platform and the quoting enclave apart.
type TCB struct {
	Module   TCBStatus `json:"module"`
	Platform TCBStatus `json:"platform"`
	QE       TCBStatus `json:"qe"`
	// EvaluationDataNumber is the lowest tcbEvaluationDataNumber of the collateral that was used.
	EvaluationDataNumber uint32 `json:"evaluation_data_number"`
	// Worst is the worst of the three statuses.
	Worst string `json:"worst"`
}

// Getter fetches collateral. The error says what to do next; the headers and the body belong to the caller.
type Getter interface {
	Get(ctx context.Context, url string) (http.Header, []byte, error)
}

// Collateral is one answer of the vendor's provisioning service, verbatim, as the attestation document staples it.
type Collateral struct {
	// URL is where the answer came from.
	URL string `json:"url"`
	// Headers are those that carry an issuer chain, by canonical name.
	Headers map[string]string `json:"headers,omitempty"`
	// Body is the exact body; base64 in JSON.
	Body []byte `json:"body"`
}

// Refusal is evidence that failed a check, as opposed to a check that could not be made.
type Refusal struct {
	// Check names what failed, from a closed set: see the Check constants.
	Check string
	// Err says why.
	Err error
}

// Error names the check and the reason.
func (r *Refusal) Error() string { return r.Check + ": " + r.Err.Error() }

// Unwrap returns the reason.
func (r *Refusal) Unwrap() error { return r.Err }

// refuse returns a Refusal of check for a formatted reason.
func refuse(check, format string, args ...any) *Refusal {
	return &Refusal{Check: check, Err: fmt.Errorf(format, args...)}
}
