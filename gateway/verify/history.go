package verify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"dstack.host/ratls"
)

// maxKeys bounds the keys of a history: each costs some milliseconds.
const maxKeys = 512

// acmeInfo is what a gateway tells of its ACME account and of the keys of its certificates, newest first (dstack 0.6
// gateway/rpc/proto/gateway_rpc.proto, AcmeInfoResponse). Other members are of other versions.
type acmeInfo struct {
	AccountURI         string      `json:"account_uri"`
	Keys               []quotedKey `json:"quoted_hist_keys"`
	AccountQuote       string      `json:"account_quote"`
	AccountAttestation string      `json:"account_attestation"`
}

// quotedKey is a SubjectPublicKeyInfo in DER with its evidence: a quote as the guest agent's GetQuote answers it, or an
// attestation as Attest does, each as JSON text.
type quotedKey struct {
	PublicKey   ratls.Hex `json:"public_key"`
	Quote       string    `json:"quote"`
	Attestation string    `json:"attestation"`
}

// history holds every key that the gateway says its certificates had to a quote of the gateway's program: to what the relying
// party pins, and this connection's key also to the very image that made the document. An app id alone is what any image can
// log. That no other certificate exists, only a certificate transparency monitor can see.
func (j *judgement) history(ctx context.Context) ratls.Check {
	if c, ok := j.unquoted(CheckHistory); !ok {
		return c
	}
	account := j.report.Statement.ACMEAccount
	info, reason, err := j.acmeInfo()
	switch {
	case err != nil:
		return fail(CheckHistory, "%v", err)
	case info == nil:
		return fail(CheckHistory, "%s", reason)
	case info.AccountURI != account:
		return fail(CheckHistory, "the history is of ACME account %q, the statement names %q", info.AccountURI, account)
	}
	h, err := j.newHistorian()
	if err != nil {
		return fail(CheckHistory, "%v", err)
	}
	if err := h.account(ctx, *info); err != nil {
		return fail(CheckHistory, "account %s: %v", info.AccountURI, err)
	}
	var here, elsewhere, others int // records of this connection's key by this image and by others; all records by others
	for _, k := range info.Keys {
		digest := sha256.Sum256(k.PublicKey)
		current := bytes.Equal(k.PublicKey, j.chain[0].RawSubjectPublicKeyInfo)
		same, err := h.key(ctx, k, current)
		switch {
		case err != nil:
			return fail(CheckHistory, "key SHA-256 %x: %v", digest, err)
		case current && same:
			here++
		case current:
			elsewhere++
		}
		if !same {
			others++
		}
	}
	switch {
	case here == 0 && elsewhere > 0:
		return fail(CheckHistory, "this connection's key was quoted only by images with other registers MRTD, RTMR1 and RTMR2 than the gateway's")
	case here == 0:
		return fail(CheckHistory, "this connection's key is not among the %d that the gateway's program had quoted", len(info.Keys))
	case others > 0 && j.options.Chain.Gateway.Empty():
		return pass(CheckHistory, "%d records of keys, this connection's among them, were quoted by app %x; %d of them by images with other registers, earlier ones or somebody's: pin the gateway's measurements to tell", len(info.Keys), []byte(h.gateway.Info.AppID), others)
	}
	return pass(CheckHistory, "all keys that its certificates are said to have had, %d with this connection's, were quoted by app %x", len(info.Keys), []byte(h.gateway.Info.AppID))
}

// acmeInfo reads the history; nil, with the reason, when the gateway offers none.
func (j *judgement) acmeInfo() (info *acmeInfo, reason string, err error) {
	answer := j.bundle.ACMEInfo
	switch {
	case answer.Error != "":
		return nil, "the gateway's history of keys could not be fetched: " + answer.Error, nil
	case answer.Status != http.StatusOK:
		return nil, fmt.Sprintf("the gateway offers no history of its keys (status %d)", answer.Status), nil
	}
	info = new(acmeInfo)
	if err := ratls.DecodeStrict(answer.Body, maxACMEInfo, true, info); err != nil {
		return nil, "", fmt.Errorf("key history: %w", err)
	}
	if len(info.Keys) > maxKeys {
		return nil, "", fmt.Errorf("key history: %d keys, at most %d are read", len(info.Keys), maxKeys)
	}
	if len(info.Keys) == 0 && info.AccountURI == "" {
		return nil, "the gateway's history of keys is empty", nil
	}
	return info, "", nil
}

// historian verifies evidence of the gateway's past.
type historian struct {
	now, past ratls.Verifiers // by the policy; and by one that forgives platforms that have become outdated since
	gateway   *ratls.Party    // that quoted the document
	pins      ratls.Pins
}

func (j *judgement) newHistorian() (*historian, error) {
	chain := j.options.Chain
	if len(chain.Roots) == 0 {
		chain.Roots = []ratls.VerifierConfig{{}}
	}
	chain.Roots = slices.Clone(chain.Roots)
	for i := range chain.Roots {
		if chain.Roots[i].Getter == nil {
			chain.Roots[i].Getter = j.memory
		}
	}
	now, err := chain.Verifiers(nil)
	if err != nil {
		return nil, err
	}
	for i := range chain.Roots {
		chain.Roots[i].Policy.AcceptedTCB = []string{ratls.StatusSWHardeningNeeded, ratls.StatusConfigurationNeeded,
			ratls.StatusConfigurationAndSWHardeningNeeded, ratls.StatusOutOfDate, ratls.StatusOutOfDateConfigurationNeeded}
	}
	past, err := chain.Verifiers(nil)
	if err != nil {
		return nil, err
	}
	return &historian{now: now, past: past, gateway: j.report.Gateway, pins: j.options.Chain.Gateway}, nil
}

// key verifies one key, the one of the connection by today's policy, and reports whether the gateway's present image quoted it.
func (h *historian) key(ctx context.Context, k quotedKey, current bool) (same bool, err error) {
	e, err := evidenceOf(k.Quote, k.Attestation)
	if err != nil {
		return false, err
	}
	verifiers := h.past
	if current {
		verifiers = h.now
	}
	return h.verify(ctx, verifiers, e, ratls.TaggedReportData(ratls.TagZTCertificate, k.PublicKey))
}

// account verifies the quote over the account's URI, where there is one. The statement's own quote names the account too.
func (h *historian) account(ctx context.Context, info acmeInfo) error {
	if info.AccountQuote == "" && info.AccountAttestation == "" {
		return nil
	}
	e, err := evidenceOf(info.AccountQuote, info.AccountAttestation)
	if err != nil {
		return err
	}
	_, err = h.verify(ctx, h.past, e, ratls.TaggedReportData(ratls.TagACMEAccount, []byte(info.AccountURI)))
	return err
}

// verify holds evidence to the report data that it has to be over, and to the program that has to have made it.
// It reports whether that was the gateway's present image.
func (h *historian) verify(ctx context.Context, verifiers ratls.Verifiers, e evidence, want ratls.ReportData) (same bool, err error) {
	q, err := verifiers.Verify(ctx, e.quote)
	if err != nil {
		return false, err
	}
	if q.Kind != h.gateway.Quote.Kind {
		return false, fmt.Errorf("the quote is of %q, the gateway's of %q", q.Kind, h.gateway.Quote.Kind)
	}
	if q.ReportData != want {
		return false, fmt.Errorf("the quote is over %s, want %s", q.ReportData, want)
	}
	info, err := ratls.DecodeAppInfo(q, e.events, e.config)
	if err != nil {
		return false, err
	}
	if app := h.gateway.Info.AppID; len(app) == 0 || !bytes.Equal(info.AppID, app) {
		return false, fmt.Errorf("it was quoted by app %x, the gateway is app %x", []byte(info.AppID), []byte(app))
	}
	if err := h.pins.Judge(q, info); err != nil {
		return false, fmt.Errorf("it was quoted by another program than is pinned: %w", err)
	}
	return sameImage(q, h.gateway.Quote), nil
}

// sameImage compares firmware, kernel and the file system with its command line. RTMR0 holds the size of the machine, in which the
// nodes of one gateway may differ.
func sameImage(a, b *ratls.Quote) bool {
	return a.MRTD == b.MRTD && a.RTMR[1] == b.RTMR[1] && a.RTMR[2] == b.RTMR[2]
}

// evidence is a quote with what belongs to it.
type evidence struct {
	quote  []byte
	events []ratls.Event
	config string
}

// evidenceOf reads the two forms; the quote, where there are both.
func evidenceOf(quote, attestation string) (evidence, error) {
	switch {
	case quote != "":
		return fromQuote(quote)
	case attestation != "":
		return fromAttestation(attestation)
	}
	return evidence{}, errors.New("it has no quote")
}

func fromQuote(text string) (e evidence, err error) {
	var answer struct {
		Quote    ratls.Hex `json:"quote"`
		EventLog string    `json:"event_log"`
		VMConfig string    `json:"vm_config"`
	}
	if err := ratls.DecodeStrict([]byte(text), maxACMEInfo, true, &answer); err != nil {
		return e, fmt.Errorf("quote: %w", err)
	}
	e.quote, e.config = answer.Quote, answer.VMConfig
	if err := ratls.DecodeStrict([]byte(answer.EventLog), maxACMEInfo, true, &e.events); err != nil {
		return e, fmt.Errorf("event log: %w", err)
	}
	return e, nil
}

func fromAttestation(text string) (e evidence, err error) {
	var answer struct {
		Attestation ratls.Hex `json:"attestation"`
	}
	if err := ratls.DecodeStrict([]byte(text), maxACMEInfo, true, &answer); err != nil {
		return e, fmt.Errorf("attestation: %w", err)
	}
	a, err := ratls.ParseAttestation(answer.Attestation)
	if err != nil {
		return e, err
	}
	return evidence{quote: a.Quote, events: a.RuntimeEvents, config: a.Config}, nil
}
