package verify

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"dstack.host/ratls"
)

// judgement is one verification of a bundle.
type judgement struct {
	bundle  *Bundle
	options Options
	memory  *memory
	target  target
	chain   []*x509.Certificate
	now     time.Time
	// set by walk
	report ratls.Report
	claims []ratls.Claim // beside those of the report
	// set by certificate: it is valid below a publicly trusted root
	public bool
}

// judge makes every check.
func (b *Bundle) judge(ctx context.Context, o Options, m *memory) (*Result, error) {
	j := &judgement{bundle: b, options: o, memory: m, now: b.Time}
	var err error
	if j.target, err = parseTarget(b.URL); err != nil {
		return nil, err
	}
	if j.chain, err = b.TLS.chain(); err != nil {
		return nil, err
	}
	if o.Chain.Now != nil {
		j.now = o.Chain.Now()
	}
	j.options.Chain.Now = func() time.Time { return j.now }
	j.walk(ctx)
	checks := []ratls.Check{j.certificate(), j.timestamps(), j.caa(ctx), j.dnssec(ctx), j.history(ctx)}
	for i := range checks {
		checks[i].Hop = ratls.HopCertificate
	}
	result := &Result{URL: b.URL, Verdict: ratls.Pass, Time: j.now, Collected: b.Time, Report: j.report, Bundle: b}
	result.Checks = append(checks, j.report.Checks...)
	result.Claims = append(append([]ratls.Claim{}, j.claims...), j.report.Claims...)
	if !result.Report.OK() {
		result.Verdict = ratls.Fail
	}
	return result, ctx.Err()
}

// walk walks the chain of the document, if there is one.
func (j *judgement) walk(ctx context.Context) {
	text, refusal := j.bundle.document()
	if refusal != "" {
		j.report.Checks = []ratls.Check{{Hop: ratls.HopGateway, Name: ratls.LinkDocument, Status: ratls.Fail, Detail: refusal}}
		return
	}
	subject := j.bundle.subject(j.target, j.chain[0])
	subject.FreshApp = subject.FreshApp || j.options.FreshApp
	if subject.RequireExporter = j.options.Exporter == "" || j.options.Exporter == ExporterRequire; subject.RequireExporter && subject.Unbound != "" {
		subject.Unbound += " (--exporter=auto accepts that)"
	}
	j.report = j.options.Chain.Verify(ctx, text, subject)
	if doc, err := ratls.ParseDocument(text); err == nil {
		j.memory.stapled = doc.Collateral
	}
}

// unquoted is why nothing that the statement says can be believed; ok when it can.
func (j *judgement) unquoted(name string) (check ratls.Check, ok bool) {
	if j.report.Statement != nil {
		return check, true
	}
	failed, _ := j.report.Failure()
	return skip(name, "not reached, because %s failed", failed.Name), false
}

func (j *judgement) claim(hop, source, name, value string) {
	j.claims = append(j.claims, ratls.Claim{Hop: hop, Name: name, Value: value, Source: source})
}

func pass(name, format string, args ...any) ratls.Check { return check(name, ratls.Pass, format, args) }
func skip(name, format string, args ...any) ratls.Check { return check(name, ratls.Skip, format, args) }
func fail(name, format string, args ...any) ratls.Check { return check(name, ratls.Fail, format, args) }

func check(name string, status ratls.Status, format string, args []any) ratls.Check {
	return ratls.Check{Name: name, Status: status, Detail: fmt.Sprintf(format, args...)}
}
