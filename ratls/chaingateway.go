package ratls

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"
)

func (w *walk) document(context.Context) outcome {
	doc, err := ParseDocument(w.data)
	if err != nil {
		return fail("%v", err)
	}
	statement, err := ParseStatement(doc.Statement)
	if err != nil {
		return fail("%v", err)
	}
	w.doc, w.statement = doc, statement
	if w.verifier, err = w.chain.Verifiers(doc.Collateral); err != nil {
		return fail("accepted roots: %v", err)
	}
	return pass("%s, %d bytes, node %q", doc.Format, len(w.data), shorten(statement.Node))
}

func (w *walk) gatewayQuote(ctx context.Context) outcome {
	w.quote, w.quoteError = w.verifier.Verify(ctx, w.doc.Gateway.Quote)
	return quoteOutcome(w.doc.Gateway.Kind, w.quote, w.quoteError)
}

// quoteOutcome judges a verification up to the signatures.
func quoteOutcome(stated Kind, q *Quote, err error) outcome {
	switch {
	case err != nil && !endorsed(err):
		return fail("%v", err)
	case err != nil:
		return pass("the signatures hold up to an accepted root")
	case q.Kind != stated:
		return fail("the document says kind %q, the quote is of %q", shorten(string(stated)), q.Kind)
	case q.Kind != KindTDX:
		return pass("%s, version %d. %s", q.Kind, q.Version, simulatedSentence)
	default:
		return pass("%s, version %d, signed below Intel's root", q.Kind, q.Version)
	}
}

func (w *walk) gatewayTCB(context.Context) outcome { return tcbOutcome(w.quote, w.quoteError) }

// tcbOutcome judges what the vendor says of the platform.
func tcbOutcome(q *Quote, err error) outcome {
	if err != nil {
		return fail("%v", err)
	}
	return pass("platform %s, TDX module %s, quoting enclave %s, evaluation %d",
		q.TCB.Platform.Status, q.TCB.Module.Status, q.TCB.QE.Status, q.TCB.EvaluationDataNumber)
}

func (w *walk) gatewayLog(context.Context) outcome {
	info, err := DecodeAppInfo(w.quote, w.doc.Gateway.EventLog, w.doc.Gateway.VMConfig)
	if err != nil {
		return fail("%v", err)
	}
	w.info = info
	return pass("%d events replay to RTMR3 %s", len(RuntimeEvents(w.doc.Gateway.EventLog)), w.quote.RTMR[rtmr3])
}

func (w *walk) gatewayPins(context.Context) outcome { return w.chain.Gateway.judge(w.quote, w.info) }

func (w *walk) challenge(context.Context) outcome {
	proof := w.doc.Challenge
	if err := proof.consistent(); err != nil {
		return fail("%v", err)
	}
	if w.subject.Nonce == nil {
		if w.subject.Exporter != nil {
			return fail("a TLS exporter is bound only together with a nonce, and none was sent")
		}
		return skip("no nonce was sent; the statement's expiry bounds its age")
	}
	want := Challenge{Nonce: w.subject.Nonce, Exporter: w.subject.Exporter}
	leaf, err := want.Leaf()
	if err != nil {
		return fail("%v", err)
	}
	if proof.Nonce == nil || *proof.Nonce != Digest(w.subject.Nonce) {
		return fail("the document answers another nonce than the one that was sent, or none")
	}
	if Root(leaf, proof.Path) != proof.Root {
		return fail("the nonce%s that was sent is not below the root", ifBound(w.subject.Exporter, " with the exporter of this connection"))
	}
	unbound := ""
	if w.subject.Exporter == nil && (w.subject.RequireExporter || w.subject.Unbound != "") {
		unbound = strings.TrimSuffix("it is not bound to this connection: "+w.subject.Unbound, ": ")
		if w.subject.RequireExporter {
			return fail("the nonce is below the root, but %s", unbound)
		}
		unbound = "; " + unbound
	}
	return pass("the nonce%s is below the root, %d steps away%s", ifBound(w.subject.Exporter, " with the exporter of this connection"), len(proof.Path), unbound)
}

func ifBound(exporter []byte, text string) string {
	if exporter == nil {
		return ""
	}
	return text
}

// consistent holds the proof to itself: what it states is below its root, or it states nothing and the root is zero.
func (p ChallengeProof) consistent() error {
	if p.Nonce == nil {
		if p.TLSExporter != nil || len(p.Path) > 0 || p.Root != (Digest{}) {
			return errors.New("without a nonce there can be no exporter, no path, and no root but zero")
		}
		return nil
	}
	c := Challenge{Nonce: p.Nonce[:]}
	if p.TLSExporter != nil {
		c.Exporter = p.TLSExporter[:]
	}
	leaf, err := c.Leaf()
	if err != nil {
		return err
	}
	if Root(leaf, p.Path) != p.Root {
		return errors.New("the challenge of the document is not below its root")
	}
	return nil
}

func (w *walk) stated(context.Context) outcome {
	want := GatewayReportData(w.doc.Challenge.Root, []byte(w.doc.Statement))
	if w.quote.ReportData != want {
		return fail("the quote is over %s, root and statement give %s", w.quote.ReportData, want)
	}
	w.believed = true
	return pass("the quote is over the root and SHA-256 %x of the statement", sha256.Sum256([]byte(w.doc.Statement)))
}

func (w *walk) host(context.Context) outcome {
	if w.subject.Host == "" || w.statement.Host != w.subject.Host {
		return fail("the statement is about host %q, %q was asked for", shorten(w.statement.Host), shorten(w.subject.Host))
	}
	return pass("%s", shorten(w.statement.Host))
}

func (w *walk) freshness(context.Context) outcome {
	s := w.statement
	switch life := s.ExpiresAt.Sub(s.IssuedAt); {
	case s.IssuedAt.After(w.now.Add(maxSkew)):
		return fail("issued at %s, which is yet to come: it is %s", stamp(s.IssuedAt), stamp(w.now))
	case !s.ExpiresAt.After(w.now):
		return fail("expired at %s: it is %s", stamp(s.ExpiresAt), stamp(w.now))
	case life > w.chain.MaxAge:
		return fail("valid for %s, at most %s is accepted", life, w.chain.MaxAge)
	}
	return pass("issued %s, expires %s", stamp(s.IssuedAt), stamp(s.ExpiresAt))
}

func (w *walk) key(context.Context) outcome {
	if len(w.subject.SPKI) == 0 {
		return fail("the key of the connection is not known")
	}
	digest := Digest(sha256.Sum256(w.subject.SPKI))
	for _, k := range w.statement.TLS {
		if k.SPKI != digest {
			continue
		}
		if !k.NotAfter.After(w.now) {
			return fail("the key of this connection was to be used until %s", stamp(k.NotAfter))
		}
		return pass("this connection's key, SHA-256 %s, is named as %s until %s", digest, k.Use, k.NotAfter.UTC().Format(time.DateOnly))
	}
	return fail("this connection's key, SHA-256 %s, is not among the %d keys of the statement", digest, len(w.statement.TLS))
}

func (w *walk) appEvidence(context.Context) outcome {
	if w.subject.ID == "" {
		if w.statement.App != nil || len(w.doc.Apps) > 0 {
			return fail("the host is the gateway's own, and the statement names an application behind it")
		}
		return skip("%s", noApp)
	}
	if w.statement.App == nil {
		return fail("the statement names no application behind the host")
	}
	if err := covers(w.statement, w.doc.Apps); err != nil {
		return fail("%v", err)
	}
	for i := range w.doc.Apps {
		e := &w.doc.Apps[i]
		for _, stated := range w.statement.App.Instances {
			if stated.ID == e.InstanceID {
				w.apps = append(w.apps, &appWalk{walk: w, evidence: e, stated: stated})
			}
		}
	}
	return pass("%s named by the statement, with the SHA-256 of %s", count(len(w.apps), "instance"), plural(len(w.apps), "its quote", "their quotes"))
}

func count(n int, noun string) string { return fmt.Sprintf("%d %s", n, plural(n, noun, noun+"s")) }

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
