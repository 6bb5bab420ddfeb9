package ratls

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Status is the outcome of one link of the chain.
type Status string

const (
	// Pass: the link holds.
	Pass Status = "pass"
	// Fail: it does not, or what it needs is missing.
	Fail Status = "fail"
	// Skip: the relying party asked for nothing here, the link does not apply, or an earlier one failed. The detail says which.
	Skip Status = "skip"
)

// Check is one link of the chain and what became of it.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Detail is for people: what was compared, or why it failed.
	Detail string `json:"detail"`
}

// Links of the chain from the roots of trust to the instances, in the order in which they are checked. A quote's report data
// is believed only after its measurements have been judged, so that no other program can speak in the gateway's name.
const (
	LinkDocument     = "document"             // the document is well formed
	LinkGatewayQuote = "gateway-quote"        // the gateway's quote is signed below an accepted root
	LinkGatewayTCB   = "gateway-tcb"          // collateral and TCB of its platform are acceptable
	LinkGatewayLog   = "gateway-event-log"    // its event log replays to RTMR3
	LinkGatewayPins  = "gateway-measurements" // it is a program that the relying party expects
	LinkChallenge    = "challenge"            // the relying party's challenge is below the root
	LinkStatement    = "statement"            // the quote is over the root and the statement
	LinkHost         = "host"                 // the statement is about the host that was asked for
	LinkFreshness    = "freshness"            // it is current
	LinkKey          = "certificate-key"      // it names the key of this connection
	LinkAppEvidence  = "app-evidence"         // it names the evidence of every instance
	LinkAppQuote     = "app-quote"            // every instance's quote is signed below an accepted root
	LinkAppTCB       = "app-tcb"              // collateral and TCB of their platforms are acceptable
	LinkReplay       = CheckReplay            // their event logs replay to RTMR3
	LinkAppIdentity  = "app-identity"         // they are what the host's name names
	LinkAppCompose   = "app-compose"          // the app-compose texts have the measured hash
	LinkAppPins      = "app-measurements"     // they are programs that the relying party expects
	LinkAppBinding   = "app-binding"          // their quotes are over what their bindings say
	LinkWireGuardKey = "wireguard-key"        // the quoted WireGuard keys are those of the gateway's tunnels
	LinkInstance     = "instance"             // every tunnel ends at the instance that was quoted
)

const (
	// maxSkew is how far in the future a statement may have been issued: clocks differ.
	maxSkew = 2 * time.Minute
	// defaultMaxAge is the longest life of a statement; the gateway quotes anew every few minutes.
	defaultMaxAge     = time.Hour
	simulatedSentence = "SIMULATED: the root is not Intel's, and no hardware stands behind this"
)

// Chain is a relying party's view of what is acceptable. The zero value accepts only evidence below Intel's root, with the
// strict [Policy] and the collateral that is stapled to the document, and pins nothing.
type Chain struct {
	// Roots are the roots of trust that evidence may descend from, each with its policy; Intel's alone when empty. A simulated
	// platform passes only where its root is listed. A nil Getter is answered from the document, and a nil Now is that of Chain.
	Roots []VerifierConfig
	// Gateway and Apps are the programs that are expected on the two sides.
	Gateway, Apps Pins
	// RequireWireGuard fails instances whose quote does not name their WireGuard key, as those of stock dstack guests do not.
	RequireWireGuard bool
	// MaxAge is the longest life of a statement that is accepted, an hour when 0.
	MaxAge time.Duration
	// Now is the time at which everything is judged; nil is time.Now.
	Now func() time.Time
}

// Pins are the measurements that a relying party expects, each list empty when it has no expectation.
type Pins struct {
	AppIDs, ComposeHashes, MRAggregated, MRSystem []Hex
	// OSImageHashes are compared with what the VM configuration says, which no quote covers; MRSystem covers the image.
	OSImageHashes []Hex
}

// Subject is what the relying party knows of its own connection.
type Subject struct {
	// Host is the host that it asked for, without a port.
	Host string
	// ID is what the host's name names: an app id or instance id (40 digits of hex), a compose hash (64), or "" for a host of the
	// gateway's own, behind which there is no application.
	ID string
	// SPKI is the DER SubjectPublicKeyInfo of the certificate that the connection was served with.
	SPKI []byte
	// Nonce is the challenge that was sent, 32 bytes, nil for none; Exporter the connection's keying material when that was to be
	// bound, 32 bytes.
	Nonce, Exporter []byte
}

// Report is the outcome of a walk along the chain.
type Report struct {
	// Checks are all links in order. After the first failure the rest are skipped.
	Checks []Check `json:"checks"`
	// Simulated says that some evidence chains to a root that is not Intel's.
	Simulated bool `json:"simulated"`
	// Gateway and Apps are what the verified evidence says, as far as the walk came.
	Gateway *Party  `json:"gateway,omitempty"`
	Apps    []Party `json:"apps,omitempty"`
}

// Party is one side of the tunnel as its verified evidence describes it.
type Party struct {
	Kind    Kind    `json:"kind"`
	TCB     TCB     `json:"tcb"`
	Info    AppInfo `json:"info"`
	Binding Binding `json:"binding,omitempty"`
}

// Failure returns the check that failed, if one did.
func (r Report) Failure() (Check, bool) {
	i := slices.IndexFunc(r.Checks, func(c Check) bool { return c.Status == Fail })
	if i < 0 {
		return Check{}, false
	}
	return r.Checks[i], true
}

// OK reports whether no check failed.
func (r Report) OK() bool {
	_, failed := r.Failure()
	return len(r.Checks) > 0 && !failed
}

// outcome is what a link found.
type outcome struct {
	status Status
	detail string
}

func pass(format string, args ...any) outcome { return outcome{Pass, fmt.Sprintf(format, args...)} }
func skip(format string, args ...any) outcome { return outcome{Skip, fmt.Sprintf(format, args...)} }
func fail(format string, args ...any) outcome { return outcome{Fail, fmt.Sprintf(format, args...)} }

// walk is one verification under way. Each link reads what earlier ones established.
type walk struct {
	chain    Chain
	subject  Subject
	data     []byte
	now      time.Time
	verifier Verifiers
	// set by LinkDocument
	doc       *Document
	statement *Statement
	// set by LinkGatewayQuote
	quote      *Quote
	quoteError error
	// set by LinkGatewayLog
	info AppInfo
	// set by LinkAppEvidence, completed by the links after it
	apps []*appWalk
}

// links returns the chain.
func (w *walk) links() []struct {
	name  string
	check func(context.Context) outcome
} {
	return []struct {
		name  string
		check func(context.Context) outcome
	}{
		{LinkDocument, w.document},
		{LinkGatewayQuote, w.gatewayQuote},
		{LinkGatewayTCB, w.gatewayTCB},
		{LinkGatewayLog, w.gatewayLog},
		{LinkGatewayPins, w.gatewayPins},
		{LinkChallenge, w.challenge},
		{LinkStatement, w.stated},
		{LinkHost, w.host},
		{LinkFreshness, w.freshness},
		{LinkKey, w.key},
		{LinkAppEvidence, w.appEvidence},
		{LinkAppQuote, w.eachApp((*appWalk).quoted)},
		{LinkAppTCB, w.eachApp((*appWalk).tcb)},
		{LinkReplay, w.eachApp((*appWalk).replay)},
		{LinkAppIdentity, w.eachApp((*appWalk).identity)},
		{LinkAppCompose, w.eachApp((*appWalk).compose)},
		{LinkAppPins, w.eachApp((*appWalk).pins)},
		{LinkAppBinding, w.eachApp((*appWalk).binding)},
		{LinkWireGuardKey, w.eachApp((*appWalk).wireGuardKey)},
		{LinkInstance, w.eachApp((*appWalk).instance)},
	}
}

// Verify walks the chain of a document and reports every link by name. It fails closed: what is missing fails. Network is used
// only by the getters of Roots.
func (c Chain) Verify(ctx context.Context, document []byte, s Subject) Report {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MaxAge == 0 {
		c.MaxAge = defaultMaxAge
	}
	s.Host = strings.ToLower(strings.TrimSuffix(s.Host, "."))
	w := &walk{chain: c, subject: s, data: document, now: c.Now()}
	report := Report{}
	failed := ""
	for _, link := range w.links() {
		o := skip("not reached, because %s failed", failed)
		if failed == "" {
			o = link.check(ctx)
		}
		if o.status == Fail {
			failed = link.name
		}
		report.Checks = append(report.Checks, Check{Name: link.name, Status: o.status, Detail: o.detail})
	}
	w.describe(&report)
	return report
}

// describe adds what the evidence says, as far as it was verified.
func (w *walk) describe(r *Report) {
	if w.quote == nil {
		return
	}
	r.Gateway = &Party{Kind: w.quote.Kind, TCB: w.quote.TCB, Info: w.info}
	r.Simulated = w.quote.Kind != KindTDX
	for _, a := range w.apps {
		if a.quote != nil {
			r.Apps = append(r.Apps, Party{Kind: a.quote.Kind, TCB: a.quote.TCB, Info: a.info, Binding: a.evidence.Binding})
			r.Simulated = r.Simulated || a.quote.Kind != KindTDX
		}
	}
}

// judge holds an application to the pins.
func (p Pins) judge(info AppInfo) outcome {
	var pinned, free []string
	for _, pin := range []struct {
		name  string
		value Hex
		want  []Hex
	}{
		{"app id", info.AppID, p.AppIDs},
		{"compose hash", info.ComposeHash, p.ComposeHashes},
		{"mr_aggregated", info.MRAggregated, p.MRAggregated},
		{"mr_system", info.MRSystem, p.MRSystem},
		{"os image hash (stated, not measured)", info.OSImageHash, p.OSImageHashes},
	} {
		shown := fmt.Sprintf("%s %x", pin.name, []byte(pin.value))
		if len(pin.want) == 0 {
			free = append(free, shown)
			continue
		}
		if !slices.ContainsFunc(pin.want, func(h Hex) bool { return len(h) > 0 && bytes.Equal(h, pin.value) }) {
			return fail("%s is not one of the %d that are pinned", shown, len(pin.want))
		}
		pinned = append(pinned, shown)
	}
	if len(pinned) == 0 {
		return skip("not pinned, compare for yourself: %s", strings.Join(free, ", "))
	}
	return pass("pinned: %s", strings.Join(pinned, ", "))
}

// verifiers builds the verifiers of the roots, answering from the document where a root has no getter of its own.
func (w *walk) verifiers() (Verifiers, error) {
	roots := w.chain.Roots
	if len(roots) == 0 {
		roots = []VerifierConfig{{}}
	}
	var vs Verifiers
	for _, config := range roots {
		if config.Getter == nil {
			config.Getter = Stapled(w.doc.Collateral)
		}
		if config.Now == nil {
			config.Now = w.chain.Now
		}
		v, err := NewVerifier(config)
		if err != nil {
			return nil, err
		}
		vs = append(vs, v)
	}
	return vs, nil
}

// endorsed reports whether the signatures of a quote held, and the error is about what the vendor says of the platform: the
// vendor is asked only after the signatures.
func endorsed(err error) bool {
	var refusal *Refusal
	if !errors.As(err, &refusal) {
		return true
	}
	return slices.Contains([]string{CheckCollateral, CheckPCKRevocation, CheckQEIdentity, CheckTCB}, refusal.Check)
}
