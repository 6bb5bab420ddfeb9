package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
)

// gatewayLabel names the gateway itself below each base domain.
const gatewayLabel = "gateway"

// subject is what a host name stands for: the gateway itself, or an app's instances.
type subject struct {
	host string        // canonical: one spelling for all names of the same thing
	name registry.Name // the zero Name for the gateway's own names
}

// own reports whether the subject is the gateway itself.
func (s subject) own() bool { return s.name.ID == "" }

// instances are those behind the name in a snapshot; nil for the gateway itself.
func (s subject) instances(snapshot *registry.Snapshot) []*registry.Instance {
	if s.own() {
		return nil
	}
	return snapshot.Resolve(s.name)
}

// id is what the name names, in hex; "" for the gateway itself.
func (s subject) id() string {
	if hash, err := registry.ParseComposeHash(s.name.ID); s.name.Kind == registry.KindCompose && err == nil {
		return hex.EncodeToString(hash[:])
	}
	return s.name.ID
}

// parseSubject reads a host name of ours in any spelling, without looking at who is registered. As everywhere, a base or one label
// below it is ours; a base may lie below another.
func parseSubject(host string, bases []string) (subject, error) {
	host = strings.ToLower(host)
	label, base, _ := strings.Cut(host, ".")
	switch {
	case slices.Contains(bases, host) || slices.Contains(bases, base) && label == gatewayLabel:
		return subject{host: host}, nil
	case !slices.Contains(bases, base):
		return subject{}, proxy.Fail(proxy.Misdirected, nil)
	}
	name, err := registry.ParseLabel(label)
	if err != nil {
		return subject{}, proxy.Fail(proxy.UnknownApp, err)
	}
	return subject{host: name.ID + "." + base, name: registry.Name{ID: name.ID, Kind: name.Kind}}, nil
}

// subjectOf finds what a host of ours stands for. An app that nobody registered is none.
func (a *Attester) subjectOf(host string) (subject, error) {
	if held := a.cache.find(host); held != nil {
		return held.subject, nil // whether its document still holds is looked at before it is used
	}
	s, err := parseSubject(host, a.config.Bases)
	if err != nil {
		return subject{}, err
	}
	return s, a.reachable(s, a.config.Registry.Snapshot())
}

// reachable tells why there is nothing behind a subject in a snapshot, if so.
func (a *Attester) reachable(s subject, snapshot *registry.Snapshot) error {
	switch {
	case s.own() || len(s.instances(snapshot)) > 0:
		return nil
	case !snapshot.Loaded():
		return proxy.Fail(proxy.Starting, nil)
	}
	return proxy.Fail(proxy.UnknownApp, nil)
}

// sameInstances reports whether what a statement said of the one list is true of the other: the same instances, running the same
// code behind the same keys. Evidence may be newer.
func sameInstances(a, b []*registry.Instance) bool {
	return slices.EqualFunc(a, b, func(x, y *registry.Instance) bool {
		return x == y || x.ID == y.ID && x.App == y.App && x.Compose == y.Compose && x.Key == y.Key && x.Identity == y.Identity
	})
}

// statement is what there is to say of a host, without its times, and the evidence behind it, which is in the order of instances.
func (a *Attester) statement(s subject, instances []*registry.Instance, evidence []ratls.AppEvidence) ratls.Statement {
	st := ratls.Statement{Host: s.host, Node: a.config.Node, ACMEAccount: a.config.Certs.Account()}
	for _, key := range a.config.Certs.Keys() {
		st.TLS = append(st.TLS, ratls.TLSKey{SPKI: sha256.Sum256(key.SPKI), NotAfter: key.NotAfter, Use: key.Use})
	}
	for _, record := range a.config.Certs.CAA() {
		st.CAA = append(st.CAA, fmt.Sprintf("%d %s %q", record.Flag, record.Tag, record.Value))
	}
	if s.own() {
		return st
	}
	st.App = &ratls.StatementApp{ID: instances[0].App.String()}
	for i, inst := range instances {
		st.App.Instances = append(st.App.Instances, ratls.StatementInstance{ID: inst.ID.String(), WGPublicKey: inst.Key.String(), EvidenceSHA256: evidence[i].SHA256(), Identity: inst.Identity})
	}
	return st
}

// registered is the evidence that instances brought when they registered.
func registered(instances []*registry.Instance) ([]ratls.AppEvidence, error) {
	evidence := make([]ratls.AppEvidence, len(instances))
	for i, inst := range instances {
		if len(inst.Evidence) == 0 {
			return nil, fmt.Errorf("instance %s: %w", inst.ID, errors.New("it brought no evidence"))
		}
		e, err := ratls.ParseAppEvidence(inst.Evidence)
		if err != nil {
			return nil, fmt.Errorf("instance %s: %w", inst.ID, err)
		}
		evidence[i] = *e
	}
	return evidence, nil
}
