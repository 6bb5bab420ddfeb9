package attest

import (
	"context"
	"time"

	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
)

// proven is a quote and what it was made of.
type proven struct {
	batch     *ratls.Batch
	instances []*registry.Instance // behind the subject
	changed   <-chan struct{}      // of the certificates: while it is open, the statement names the keys that serve
	issued    time.Time
	expires   time.Time
}

// answerAll serves the line: it waits for its turn first, so that a job collects callers until the quote before it is made.
func (a *Attester) answerAll(ctx context.Context) {
	for a.await(ctx, a.line.quotes) {
		release, err := a.turn(ctx)
		if err != nil {
			return
		}
		if j := a.line.take(a.line.quotes); j != nil {
			o := a.make(ctx, j)
			a.line.done(a.line.quotes, j)
			j.tell(o)
		}
		release()
	}
}

// await returns when there may be something to take from a queue, or false when ctx has ended.
func (a *Attester) await(ctx context.Context, q *queue) bool {
	for a.line.idle(q) {
		select {
		case <-q.wake:
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// make has the quote for a job made, by whoever has the turn.
func (a *Attester) make(ctx context.Context, j *job) outcome {
	ctx, cancel := context.WithTimeout(ctx, quoteTimeout)
	defer cancel()
	s := j.topic.subject
	if r := j.topic.round; r != nil {
		p, err := a.prove(ctx, s, r.challenges, r.instances, r.evidence)
		if err != nil {
			return outcome{err: proxy.Fail(proxy.NoEvidence, err)}
		}
		return outcome{batch: p.batch}
	}
	var challenges *ratls.Challenges
	if j.topic.challenged {
		var err error
		if challenges, err = ratls.NewChallenges(j.challenges()); err != nil {
			return outcome{err: err}
		}
	}
	snapshot := a.config.Registry.Snapshot()
	if err := a.reachable(s, snapshot); err != nil {
		return outcome{err: err}
	}
	instances := s.instances(snapshot)
	evidence, err := registered(instances)
	if err != nil {
		return outcome{err: proxy.Fail(proxy.NoEvidence, err)}
	}
	p, err := a.prove(ctx, s, challenges, instances, evidence)
	switch {
	case err != nil:
		return outcome{err: proxy.Fail(proxy.NoEvidence, err)}
	case challenges != nil:
		return outcome{batch: p.batch}
	}
	d, err := a.newDocument(s, p)
	if err != nil {
		return outcome{err: err}
	}
	a.cache.keep(d)
	return outcome{held: d}
}

// prove has one quote made, of what there is to say of a subject now.
func (a *Attester) prove(ctx context.Context, s subject, challenges *ratls.Challenges, instances []*registry.Instance, evidence []ratls.AppEvidence) (p proven, err error) {
	p.instances, p.changed = instances, a.config.Certs.Changed()
	st := a.statement(s, instances, evidence)
	p.issued = time.Now()
	p.expires = p.issued.Add(a.config.Validity)
	st.IssuedAt, st.ExpiresAt = p.issued, p.expires
	p.batch, err = a.prover.ProveBatch(ctx, st, challenges, evidence)
	return p, err
}
