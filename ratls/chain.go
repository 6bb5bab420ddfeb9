package ratls

import (
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
	// Hop is where on the way the link is: one of the Hop constants; HopApp is followed by a space and the instance's id once
	// that is known.
	Hop    string `json:"hop"`
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Detail is for people: what was compared, or why it failed.
	Detail string `json:"detail"`
}

// Hops of the way from the relying party to the instances.
const (
	HopCertificate = "certificate" // the TLS certificate, which is judged without evidence
	HopGateway     = "gateway"     // the machine and the program that quoted the statement
	HopStatement   = "statement"   // what that program says
	HopApp         = "app"         // an instance behind it
)

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
	LinkAppFresh     = "app-freshness"        // they answer the relying party's challenge too, when that was asked for
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
	// RequireCompose fails instances without their app-compose text, as stock dstack guests are; its hash is measured all the same.
	RequireCompose bool
	// MaxAge is the longest life of a statement that is accepted, an hour when 0.
	MaxAge time.Duration
	// Now is the time at which everything is judged; nil is time.Now.
	Now func() time.Time
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
	// Unbound says why Exporter is nil although there is a nonce, for the report; "" when nothing is to be said.
	Unbound string
	// RequireExporter fails a proof without the exporter.
	RequireExporter bool
	// FreshApp says that the instances were asked to quote the challenge themselves: their statements have to name its root.
	FreshApp bool
}

// Report is the outcome of a walk along the chain.
type Report struct {
	// Checks are all links in order, those of each instance together. After a failure what depends on it is skipped.
	Checks []Check `json:"checks"`
	// Simulated says that some evidence chains to a root that is not Intel's.
	Simulated bool `json:"simulated"`
	// Claims are what the verified evidence says, as far as the walk came, and where each of them is from.
	Claims []Claim `json:"claims"`
	// Gateway and Apps are the two sides of the tunnel, as far as the walk came.
	Gateway *Party  `json:"-"`
	Apps    []Party `json:"-"`
	// Statement is the gateway's once its quote was found to be over it, nil before.
	Statement *Statement `json:"-"`
}

// Party is one side of the tunnel as its verified evidence describes it.
type Party struct {
	Quote   *Quote
	Info    AppInfo
	Binding Binding // of an instance
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
	// set by LinkStatement: the statement is what the gateway quoted
	believed bool
	// set by LinkAppEvidence, completed by the links after it
	apps []*appWalk
}

// link is one link: what it is called, and what finds out whether it holds.
type link struct {
	name  string
	check func(context.Context) outcome
}

// gatewayLinks and statementLinks are the chain up to the instances.
func (w *walk) gatewayLinks() []link {
	return []link{
		{LinkDocument, w.document},
		{LinkGatewayQuote, w.gatewayQuote},
		{LinkGatewayTCB, w.gatewayTCB},
		{LinkGatewayLog, w.gatewayLog},
		{LinkGatewayPins, w.gatewayPins},
	}
}

func (w *walk) statementLinks() []link {
	return []link{
		{LinkChallenge, w.challenge},
		{LinkStatement, w.stated},
		{LinkHost, w.host},
		{LinkFreshness, w.freshness},
		{LinkKey, w.key},
		{LinkAppEvidence, w.appEvidence},
	}
}

// follow checks links until one fails, reports all of them, and returns the name of the one that failed. A walk that has
// failed before checks none.
func follow(ctx context.Context, report *Report, hop string, links []link, failed string) string {
	for _, l := range links {
		o := skip("not reached, because %s failed", failed)
		if failed == "" {
			o = l.check(ctx)
		}
		if o.status == Fail {
			failed = l.name
		}
		report.Checks = append(report.Checks, Check{Hop: hop, Name: l.name, Status: o.status, Detail: o.detail})
	}
	return failed
}

// Verify walks the chain of a document and reports every link by name. It fails closed: what is missing fails. Instances are
// judged independently of each other, and all have to hold. Network is used only by the getters of Roots.
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
	failed := follow(ctx, &report, HopGateway, w.gatewayLinks(), "")
	failed = follow(ctx, &report, HopStatement, w.statementLinks(), failed)
	for _, a := range w.apps {
		follow(ctx, &report, a.hop(), a.links(), "")
	}
	if len(w.apps) == 0 {
		for _, l := range (&appWalk{}).links() {
			o := skip("%s", noApp)
			if failed != "" {
				o = skip("not reached, because %s failed", failed)
			}
			report.Checks = append(report.Checks, Check{Hop: HopApp, Name: l.name, Status: o.status, Detail: o.detail})
		}
	}
	w.describe(&report)
	return report
}

// noApp is why the links of instances are skipped at a name that has none.
const noApp = "the host is the gateway's own: there is no application behind it"

// describe adds what the evidence says, as far as it was verified.
func (w *walk) describe(r *Report) {
	if w.quote == nil {
		return
	}
	r.Gateway = &Party{Quote: w.quote, Info: w.info}
	r.Simulated = w.quote.Kind != KindTDX
	r.Claims = quoteClaims(HopGateway, w.quote, w.info)
	if w.believed {
		r.Statement = w.statement
		r.Claims = append(r.Claims, statementClaims(w.statement)...)
	}
	for _, a := range w.apps {
		if a.quote != nil {
			r.Apps = append(r.Apps, Party{Quote: a.quote, Info: a.info, Binding: a.evidence.Binding})
			r.Simulated = r.Simulated || a.quote.Kind != KindTDX
			r.Claims = append(r.Claims, a.claims()...)
		}
	}
}

// Verifiers are those of the accepted roots, each with its policy and the clock of the chain. A root without a getter is
// answered from the given collateral.
func (c Chain) Verifiers(stapled []Collateral) (Verifiers, error) {
	roots := c.Roots
	if len(roots) == 0 {
		roots = []VerifierConfig{{}}
	}
	var vs Verifiers
	for _, config := range roots {
		if config.Getter == nil {
			config.Getter = Stapled(stapled)
		}
		if config.Now == nil {
			config.Now = c.Now
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
