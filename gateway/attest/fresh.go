package attest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
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

// round is what a subject's instances have answered to the challenges of a batch.
type round struct {
	challenges *ratls.Challenges
	instances  []*registry.Instance
	evidence   []ratls.AppEvidence // of each instance
}

// canBeFresh reports whether the guests behind a subject answer challenges, which are those whose agent brought evidence of its
// own, and in which round: whoever is asked together is named by apps. All names of one app share its rounds, and a name that
// leads to several apps, as a compose hash may, has rounds of its own, so that one app's agents never make another's callers wait.
func (a *Attester) canBeFresh(s subject) (apps string, err error) {
	instances := s.instances(a.config.Registry.Snapshot())
	if len(instances) == 0 {
		return "", proxy.FailWith(proxy.BadRequest, http.StatusBadRequest, "fresh=app: there is no app behind this name; leave it out.")
	}
	evidence, err := registered(instances)
	if err != nil {
		return "", proxy.Fail(proxy.NoEvidence, err)
	}
	apps = instances[0].App.String()
	for i, e := range evidence {
		if e.Binding != ratls.BindingWireGuard {
			return "", proxy.FailWith(proxy.BadRequest, http.StatusBadRequest, "fresh=app: guests of this app have no agent that answers challenges (their binding is "+string(e.Binding)+"); leave it out.")
		}
		if instances[i].App != instances[0].App {
			apps = s.name.ID
		}
	}
	return apps, nil
}

// answerRounds serves those whose challenge goes on to an app: one round of questions to its instances for all who wait for it.
func (a *Attester) answerRounds(ctx context.Context) {
	for a.await(ctx, a.line.rounds) {
		if j := a.line.take(a.line.rounds); j != nil {
			a.answerRound(ctx, j)
			a.line.done(a.line.rounds, j)
		}
	}
}

// answerRound asks every instance behind the names that are waited for once, with the root of all challenges, and lets the
// gateway quote what each name's instances have answered.
func (a *Attester) answerRound(ctx context.Context, j *job) {
	challenges, err := ratls.NewChallenges(j.challenges())
	if err != nil {
		j.tell(outcome{err: err})
		return
	}
	snapshot, named := a.config.Registry.Snapshot(), map[subject][]*waiter{}
	asked := map[registry.InstanceID]*registry.Instance{}
	for i, w := range j.waiters {
		w.index = i
		named[w.subject] = append(named[w.subject], w)
		for _, inst := range w.subject.instances(snapshot) {
			asked[inst.ID] = inst
		}
	}
	answers := a.askAll(ctx, asked, challenges.Root())
	for s, waiters := range named {
		r, err := a.answered(s, snapshot, answers)
		if err != nil {
			(&job{waiters: waiters}).tell(outcome{err: err})
			continue
		}
		r.challenges = challenges
		a.line.pass(waiters, topic{subject: s, challenged: true, round: r})
	}
}

// answered is what the instances of a subject have answered. One that has not spoils it for all: a document covers the whole app.
func (a *Attester) answered(s subject, snapshot *registry.Snapshot, answers map[registry.InstanceID]*ratls.AppEvidence) (*round, error) {
	if err := a.reachable(s, snapshot); err != nil {
		return nil, err
	}
	r := &round{instances: s.instances(snapshot)}
	for _, inst := range r.instances {
		e := answers[inst.ID]
		if e == nil {
			return nil, proxy.FailWith(proxy.NoEvidence, 0, "Not every instance of the app answered the challenge: try again, or without fresh=app.")
		}
		r.evidence = append(r.evidence, *e)
	}
	return r, nil
}

// askAll has instances answer a challenge. Those that do not are missing in what it returns.
func (a *Attester) askAll(ctx context.Context, instances map[registry.InstanceID]*registry.Instance, challenge ratls.Digest) map[registry.InstanceID]*ratls.AppEvidence {
	ctx, cancel := context.WithTimeout(ctx, freshTimeout)
	defer cancel()
	var mu sync.Mutex
	answers := make(map[registry.InstanceID]*ratls.AppEvidence, len(instances))
	var tasks errgroup.Group
	tasks.SetLimit(maxFreshInstances)
	for _, inst := range instances {
		tasks.Go(func() error {
			e, err := a.ask(ctx, inst, challenge)
			if err != nil {
				a.log.Warn("an instance does not answer a challenge", "app", inst.App, "instance", inst.ID, "error", err)
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			answers[inst.ID] = e
			return nil
		})
	}
	_ = tasks.Wait() // none returns an error
	return answers
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
