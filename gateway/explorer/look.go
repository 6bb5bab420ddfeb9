package explorer

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"dstack.host/gateway/registry"
	"dstack.host/gateway/verify"
	"dstack.host/ratls"
)

// Found is what an input turned out to be.
type Found struct {
	What     string // for people, as "TDX quote"
	Checks   []ratls.Check
	Sections []Section
}

// Section is a part of it, as names and values.
type Section struct {
	Title string
	Rows  []Row
	Text  string // verbatim text below the rows; "" for none
}

// Row is one value.
type Row struct{ Name, Value, Note string }

// add appends a row whose value is printed.
func (s *Section) add(name string, value any, note ...string) {
	s.Rows = append(s.Rows, Row{name, fmt.Sprint(value), strings.Join(note, "; ")})
}

// errUnknown is an input that is nothing of what there is.
var errUnknown = errors.New("this is none of what the explorer knows: a TDX quote (binary, hex or base64), an event log, an attestation document, a verification bundle, " +
	"an RA-TLS certificate (PEM or DER), or an attestation of dstack (binary or hex)")

// Look recognises an input and decodes it. An error says why it can't be shown; a damaged input of a known kind is shown with the
// check that fails.
func (e *Explorer) Look(ctx context.Context, input []byte) (*Found, error) {
	if int64(len(input)) > e.maxInput {
		return nil, fmt.Errorf("the input has %d bytes, at most %d are looked at", len(input), e.maxInput)
	}
	trimmed := bytes.TrimSpace(input)
	switch {
	case len(trimmed) == 0:
		return nil, errUnknown
	case trimmed[0] == '{' || trimmed[0] == '[':
		return e.lookJSON(ctx, trimmed)
	case bytes.HasPrefix(trimmed, []byte("-----BEGIN")):
		block, _ := pem.Decode(trimmed)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("the PEM text holds no certificate")
		}
		return e.lookBinary(ctx, block.Bytes)
	}
	if raw, ok := textual(trimmed); ok {
		return e.lookBinary(ctx, raw)
	}
	return e.lookBinary(ctx, input)
}

// textual undoes hex or base64, with white space anywhere.
func textual(text []byte) ([]byte, bool) {
	plain := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, string(text))
	if raw, err := hex.DecodeString(strings.TrimPrefix(plain, "0x")); err == nil {
		return raw, true
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if raw, err := encoding.DecodeString(plain); err == nil {
			return raw, true
		}
	}
	return nil, false
}

// lookJSON tells documents, bundles and event logs apart by their members.
func (e *Explorer) lookJSON(ctx context.Context, text []byte) (*Found, error) {
	if text[0] == '[' {
		events, err := ratls.ParseEventLog(text)
		if err != nil {
			return nil, err
		}
		return &Found{What: "event log of dstack", Sections: []Section{eventSection("Events", events)}}, nil
	}
	var kind struct{ Format string }
	if err := json.Unmarshal(text, &kind); err != nil {
		return nil, fmt.Errorf("this is not JSON: %w", err)
	}
	switch kind.Format {
	case ratls.Format:
		return e.lookDocument(ctx, text)
	case verify.BundleFormat:
		return e.lookBundle(ctx, text)
	}
	return nil, errUnknown
}

// lookBinary tells certificates, attestations and quotes apart by how they begin.
func (e *Explorer) lookBinary(ctx context.Context, raw []byte) (*Found, error) {
	if cert, err := x509.ParseCertificate(raw); err == nil {
		return e.lookCertificate(ctx, cert)
	}
	if len(raw) > 2 && raw[0] >= 3 && raw[0] <= 5 && raw[1] == 0 {
		return e.lookQuote(ctx, raw)
	}
	a, err := ratls.ParseAttestation(raw)
	switch {
	case err == nil:
		return e.lookAttestation(ctx, a)
	case errors.Is(err, ratls.ErrUnsupported):
		return nil, err
	}
	return nil, errUnknown
}

// lookQuote shows a quote. What depends on the vendor's collateral can't be checked without it.
func (e *Explorer) lookQuote(ctx context.Context, raw []byte) (*Found, error) {
	q, err := ratls.ParseQuote(raw)
	if err != nil {
		return nil, err
	}
	return &Found{What: "TDX quote", Checks: e.quoteChecks(ctx, raw, nil), Sections: quoteSections("Quote", q, raw)}, nil
}

// quoteChecks makes the checks of a quote, with what collateral there is.
func (e *Explorer) quoteChecks(ctx context.Context, raw []byte, collateral []ratls.Collateral) []ratls.Check {
	verifiers, err := e.verifiers(collateral)
	var q *ratls.Quote
	if err == nil {
		q, err = verifiers.Verify(ctx, raw)
	}
	refused, _ := errors.AsType[*ratls.Refusal](err)
	var checks []ratls.Check
	status, detail := ratls.Pass, "holds"
	if q != nil && q.Kind != ratls.KindTDX {
		detail = "holds, below a root that is not Intel's: SIMULATED, no hardware stands behind this"
	}
	for _, name := range ratls.QuoteChecks() {
		switch {
		case refused != nil && name == refused.Check:
			checks = append(checks, ratls.Check{Name: name, Status: ratls.Fail, Detail: refused.Err.Error()})
			status, detail = ratls.Skip, "not reached, because "+name+" failed"
			continue
		case refused == nil && err != nil && name == ratls.CheckCollateral:
			status, detail = ratls.Skip, "needs the vendor's collateral, which a quote does not bring: a document or a bundle does"
		}
		checks = append(checks, ratls.Check{Name: name, Status: status, Detail: detail})
	}
	return checks
}

// verifiers answer from the collateral that is given and ask nobody.
func (e *Explorer) verifiers(collateral []ratls.Collateral) (ratls.Verifiers, error) {
	var all ratls.Verifiers
	for _, root := range e.roots {
		root.Getter = ratls.Stapled(collateral)
		v, err := ratls.NewVerifier(root)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// lookEvidence shows a quote with the event log that came with it, and whether it is over what it should be.
func (e *Explorer) lookEvidence(ctx context.Context, raw []byte, events []ratls.Event, vmConfig string, stated *ratls.ReportData) ([]ratls.Check, []Section) {
	checks := e.quoteChecks(ctx, raw, nil)
	q, err := ratls.ParseQuote(raw)
	if err != nil {
		return checks, nil
	}
	if stated != nil {
		c := ratls.Check{Name: ratls.CheckReportData, Status: ratls.Pass, Detail: "the quote is over what it should be"}
		if q.ReportData != *stated {
			c.Status, c.Detail = ratls.Fail, fmt.Sprintf("the quote is over %s, it should be over %s", q.ReportData, stated)
		}
		checks = append(checks, c)
	}
	replay := ratls.Check{Name: ratls.CheckReplay, Status: ratls.Pass, Detail: fmt.Sprintf("%d events replay to RTMR3 of the quote", len(ratls.RuntimeEvents(events)))}
	info, err := ratls.DecodeAppInfo(q, events, vmConfig)
	sections := quoteSections("Quote", q, raw)
	if err != nil {
		replay.Status, replay.Detail = ratls.Fail, err.Error()
	} else {
		sections = append(sections, appSection("App", info))
	}
	return append(checks, replay), append(sections, eventSection("Events", events))
}

func (e *Explorer) lookAttestation(ctx context.Context, a *ratls.Attestation) (*Found, error) {
	f := &Found{What: "attestation of dstack"}
	f.Checks, f.Sections = e.lookEvidence(ctx, a.Quote, a.RuntimeEvents, a.Config, &a.ReportData)
	f.Sections = append(f.Sections, textSection("Configuration", a.Config))
	return f, nil
}

func (e *Explorer) lookCertificate(ctx context.Context, cert *x509.Certificate) (*Found, error) {
	f := &Found{What: "certificate"}
	s := Section{Title: "Certificate"}
	s.add("subject", cert.Subject)
	s.add("issuer", cert.Issuer)
	s.add("valid", fmt.Sprintf("%s to %s", stamp(cert.NotBefore), stamp(cert.NotAfter)))
	s.add("names", strings.Join(cert.DNSNames, ", "))
	s.add("key, SHA-256", sum(cert.RawSubjectPublicKeyInfo))
	carried, err := ratls.ReadCertificate(cert)
	if err != nil {
		f.Checks, f.Sections = []ratls.Check{{Name: ratls.CheckCertificate, Status: ratls.Fail, Detail: err.Error()}}, []Section{s}
		return f, nil
	}
	s.add("evidence", carried.Source, `"" for none`)
	s.add("made for", carried.Usage)
	f.Sections = []Section{s}
	if carried.AppInfo != nil {
		f.Sections = append(f.Sections, appSection("App, as the issuer says", *carried.AppInfo))
	}
	if len(carried.Quote) > 0 {
		f.What = "RA-TLS certificate"
		expected := ratls.TaggedReportData(ratls.TagCertificate, carried.SPKI)
		checks, sections := e.lookEvidence(ctx, carried.Quote, carried.Events, carried.VMConfig, &expected)
		f.Checks, f.Sections = checks, append(f.Sections, sections...)
	}
	return f, nil
}

// lookDocument walks the chain with the document's own collateral. Which connection it came on is not known.
func (e *Explorer) lookDocument(ctx context.Context, text []byte) (*Found, error) {
	d, err := ratls.ParseDocument(text)
	if err != nil {
		return nil, err
	}
	st, err := ratls.ParseStatement(d.Statement)
	if err != nil {
		return nil, err
	}
	report := ratls.Chain{Roots: e.roots}.Verify(ctx, text, ratls.Subject{Host: st.Host, ID: named(st.Host)})
	for i, c := range report.Checks {
		if c.Name == ratls.LinkKey && c.Status == ratls.Fail {
			report.Checks[i].Status, report.Checks[i].Detail = ratls.Skip, "a document alone comes without the connection whose key this would be; dstack-gateway verify looks at it"
		}
	}
	return &Found{What: "attestation document", Checks: report.Checks, Sections: append(claimSections(report.Claims), documentSections(d, st)...)}, nil
}

// named is what the label of a host names, in hex; "" for none.
func named(host string) string {
	label, _, _ := strings.Cut(host, ".")
	name, err := registry.ParseLabel(label)
	if err != nil {
		return ""
	}
	if hash, err := registry.ParseComposeHash(name.ID); name.Kind == registry.KindCompose && err == nil {
		return hex.EncodeToString(hash[:])
	}
	return name.ID
}

// lookBundle judges a verification again, at its own time.
func (e *Explorer) lookBundle(ctx context.Context, text []byte) (*Found, error) {
	b, err := verify.ParseBundle(text)
	if err != nil {
		return nil, err
	}
	result, err := b.Verify(ctx, verify.Options{CAs: e.cas, Chain: ratls.Chain{Roots: e.roots}})
	if err != nil {
		return nil, err
	}
	f := &Found{What: "verification bundle", Checks: result.Checks, Sections: bundleSections(b)}
	f.Sections = append(f.Sections, claimSections(result.Claims)...)
	d, err := ratls.ParseDocument(b.Document.Body)
	if err != nil {
		f.Sections = append(f.Sections, textSection("Answer instead of a document, status "+fmt.Sprint(b.Document.Status), string(b.Document.Body)))
		return f, nil
	}
	if st, err := ratls.ParseStatement(d.Statement); err == nil {
		f.Sections = append(f.Sections, documentSections(d, st)...)
	}
	return f, nil
}
