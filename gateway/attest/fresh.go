package attest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/tunnel/agent"
)

const (
	// maxEvidence bounds what an app's agent answers.
	maxEvidence = 2 << 20
	// freshTimeout bounds how long it may take: a TDX guest makes about one quote a second.
	freshTimeout = 15 * time.Second
	// maxFreshInstances is how many instances of an app are asked at once.
	maxFreshInstances = 8
)

// canBeFresh reports whether the guests behind a subject answer challenges: those whose agent brought evidence of its own.
func (a *Attester) canBeFresh(s subject) error {
	instances := s.instances(a.config.Registry.Snapshot())
	if len(instances) == 0 {
		return proxy.FailWith(proxy.BadRequest, http.StatusBadRequest, "fresh=app: there is no app behind this name; leave it out.")
	}
	evidence, err := registered(instances)
	if err != nil {
		return proxy.Fail(proxy.NoEvidence, err)
	}
	for _, e := range evidence {
		if e.Binding != ratls.BindingWireGuard {
			return proxy.FailWith(proxy.BadRequest, http.StatusBadRequest, "fresh=app: guests of this app have no agent that answers challenges (their binding is "+string(e.Binding)+"); leave it out.")
		}
	}
	return nil
}

// answerFresh serves the line of those whose challenge goes on to the app: one round to every instance for all of them.
func (a *Attester) answerFresh(ctx context.Context) {
	for a.await(ctx, a.fresh) {
		j := a.fresh.take()
		if j == nil {
			continue
		}
		o := a.makeFresh(ctx, j)
		a.fresh.done(j)
		j.tell(o)
	}
}

// makeFresh has all instances and then the gateway answer the challenges of a job.
func (a *Attester) makeFresh(ctx context.Context, j *job) outcome {
	ctx, cancel := context.WithTimeout(ctx, quoteTimeout)
	defer cancel()
	challenges, err := j.challenges()
	if err != nil {
		return outcome{err: err}
	}
	snapshot := a.config.Registry.Snapshot()
	if err := a.reachable(j.topic.subject, snapshot); err != nil {
		return outcome{err: err}
	}
	instances := j.topic.subject.instances(snapshot)
	evidence, err := a.askAll(ctx, instances, challenges.Root())
	if err != nil {
		return outcome{err: proxy.FailWith(proxy.NoEvidence, 0, "Not every instance of the app answered the challenge: try again, or without fresh=app.")}
	}
	release, err := a.turn(ctx)
	if err != nil {
		return outcome{err: err}
	}
	defer release()
	p, err := a.prove(ctx, j.topic.subject, challenges, instances, evidence)
	if err != nil {
		return outcome{err: proxy.Fail(proxy.NoEvidence, err)}
	}
	return outcome{batch: p.batch}
}

// askAll has every instance answer the challenge. One that does not spoils it for all: a document covers the whole app.
func (a *Attester) askAll(ctx context.Context, instances []*registry.Instance, challenge ratls.Digest) ([]ratls.AppEvidence, error) {
	ctx, cancel := context.WithTimeout(ctx, freshTimeout)
	defer cancel()
	evidence := make([]ratls.AppEvidence, len(instances))
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.SetLimit(maxFreshInstances)
	for i, inst := range instances {
		tasks.Go(func() error {
			e, err := a.ask(ctx, inst, challenge)
			if err != nil {
				a.log.Warn("an instance does not answer a challenge", "app", inst.App, "instance", inst.ID, "error", err)
				return err
			}
			evidence[i] = *e
			return nil
		})
	}
	return evidence, tasks.Wait()
}

// ask passes a challenge through the tunnel to an instance's agent, and verifies what comes back as a registration is verified.
func (a *Attester) ask(ctx context.Context, inst *registry.Instance, challenge ratls.Digest) (*ratls.AppEvidence, error) {
	body, err := a.fetch(ctx, inst, challenge)
	if err != nil {
		return nil, err
	}
	e, err := ratls.ParseAppEvidence(body)
	if err != nil {
		return nil, err
	}
	if e.Binding != ratls.BindingWireGuard {
		return nil, fmt.Errorf("binding is %q, want %q", e.Binding, ratls.BindingWireGuard)
	}
	verified, err := e.Verify(ctx, a.config.Verifier)
	if err != nil {
		return nil, err
	}
	st := verified.Statement
	switch {
	case st.Challenge != challenge.String():
		return nil, fmt.Errorf("the app statement answers challenge %s, want %s", st.Challenge, challenge)
	case st.WGPublicKey != inst.Key.String():
		return nil, fmt.Errorf("the app statement names WireGuard key %s, the tunnel has %s", st.WGPublicKey, inst.Key)
	case st.InstanceID != inst.ID.String() || st.AppID != inst.App.String() || !bytes.Equal(verified.Info.ComposeHash, inst.Compose[:]):
		return nil, fmt.Errorf("the evidence is of app %s, instance %s, code %x", st.AppID, st.InstanceID, []byte(verified.Info.ComposeHash))
	}
	return e, nil
}

// fetch asks an agent over a connection of its own.
func (a *Attester) fetch(ctx context.Context, inst *registry.Instance, challenge ratls.Digest) ([]byte, error) {
	url := fmt.Sprintf("http://%s:%d%s?challenge=%s", inst.Addr, agent.EvidencePort, agent.EvidencePath, challenge)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return a.config.Dial(ctx, inst, agent.EvidencePort)
		},
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxEvidence+1))
	switch {
	case err != nil:
		return nil, err
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the agent answers %s", response.Status)
	case len(body) > maxEvidence:
		return nil, fmt.Errorf("the agent's answer is longer than %d bytes", maxEvidence)
	}
	return body, nil
}
