package enroll_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"net/http"
	"strings"
	"testing"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

// TestEvidenceThatIsRefused shows evidence that does not hold, or is of something else, beside a client certificate that
// would do alone: what a request carries has to be right.
func TestEvidenceThatIsRefused(t *testing.T) {
	w := newWorld(t)
	resident := w.resident(t)
	seed := make([]byte, 20)
	td := w.boot(t, simtdx.VM{AppCompose: "{}", InstanceSeed: seed})
	twin := func(vm simtdx.VM) *simtdx.TD { // the same app and instance
		vm.AppCompose, vm.InstanceSeed = "{}", seed
		return w.boot(t, vm)
	}
	cert, key, residentsKey := attested(t, td), newKey(), w.registry.Snapshot().Instance(idOf(t, resident).ID).Key
	old := dial(t, w.at, cert).challenge(t)
	// made makes evidence of this domain's statement, for this session and key, and spoils it.
	made := func(edit func(*ratls.AppEvidence)) func(string) string {
		return func(c string) string { return evidence(t, td, statement(t, td, key, c), edit) }
	}
	stating := func(change func(*ratls.AppStatement)) func(string) string {
		return func(c string) string {
			s := statement(t, td, key, c)
			change(&s)
			return evidence(t, td, s)
		}
	}
	of := func(other *simtdx.TD) func(string) string {
		return func(c string) string { return evidence(t, other, statement(t, other, key, c)) }
	}
	damaged := func(damage func([]byte)) func(string) string {
		return made(func(e *ratls.AppEvidence) {
			e.Quote = bytes.Clone(e.Quote)
			damage(e.Quote)
		})
	}
	as := func(text string) func(string) string { return func(string) string { return text } }
	tests := []struct {
		name     string
		evidence func(challenge string) string
		text     string
	}{
		{"made for another TLS session", func(string) string { return evidence(t, td, statement(t, td, key, old)) }, "answers another TLS session's challenge"},
		{"challenge of zeros", func(string) string { return evidence(t, td, statement(t, td, key, strings.Repeat("0", 64))) }, "answers another TLS session's challenge"},
		{"the challenge in another statement than was quoted", made(func(e *ratls.AppEvidence) {
			e.Statement = strings.Replace(e.Statement, "dstack-wg-v1", "dstack-wg-v1 ", 1)
		}), "evidence: report-data"},
		{"names the resident's key", stating(func(s *ratls.AppStatement) { s.WGPublicKey = residentsKey.String() }), "the app statement names WireGuard key " + residentsKey.String()},
		{"names another app", stating(func(s *ratls.AppStatement) { s.AppID = idOf(t, resident).App.String() }), "the app statement names app"},
		{"names another instance", stating(func(s *ratls.AppStatement) { s.InstanceID = idOf(t, resident).ID.String() }), "the evidence is filed under instance"},
		{"names another instance and is filed under its own", func(c string) string {
			s := statement(t, td, key, c)
			s.InstanceID = idOf(t, resident).ID.String()
			return evidence(t, td, s, func(e *ratls.AppEvidence) { e.InstanceID = idOf(t, td).ID.String() })
		}, "the app statement names instance"},
		{"of the resident", of(resident), "evidence: app id is"},
		{"of another instance of the app", of(w.boot(t, simtdx.VM{AppCompose: "{}"})), "evidence: instance id is"},
		{"of the instance with other code", of(w.boot(t, simtdx.VM{AppCompose: "{} ", AppID: idOf(t, td).Info.AppID, InstanceSeed: seed})), "evidence: compose hash is"},
		{"of a debuggable twin", of(twin(simtdx.VM{Debug: true})), "evidence: td-attributes"},
		{"of a twin whose RTMR3 does not replay", func(c string) string {
			other := twin(simtdx.VM{Unlogged: true})
			s := statement(t, td, key, c)
			text := must(s.Text())(t)
			return evidence(t, td, s, func(e *ratls.AppEvidence) {
				e.Quote = must(other.Quote(t.Context(), ratls.TaggedReportData(ratls.TagWireGuard, []byte(text))))(t)
			})
		}, "evidence: rtmr3-replay"},
		{"truncated event log", made(func(e *ratls.AppEvidence) { e.EventLog = e.EventLog[:len(e.EventLog)-1] }), "evidence: rtmr3-replay"},
		{"app-compose that does not hash", made(func(e *ratls.AppEvidence) { e.AppCompose = `{"port_policy":{}}` }), "evidence: app-info: the app-compose has SHA-256"},
		{"flipped bit", damaged(func(q []byte) { q[200] ^= 1 }), "evidence: quote-signature"},
		{"quote over the TLS key", made(func(e *ratls.AppEvidence) {
			spki := cert.Leaf.RawSubjectPublicKeyInfo
			e.Quote = must(td.Quote(t.Context(), ratls.TaggedReportData(ratls.TagCertificate, spki)))(t)
		}), "evidence: report-data"},
		{"panic: signed data of size 0", damaged(func(q []byte) { binary.LittleEndian.PutUint32(q[signedSizeV4:], 0) }), "evidence: quote-parse"},
		{"panic: authentication data of size 0xffff", damaged(func(q []byte) { binary.LittleEndian.PutUint16(q[authSizeV4:], 0xffff) }), "evidence: quote-parse"},
		{"says that it is real", made(func(e *ratls.AppEvidence) { e.Kind = ratls.KindTDX }), `evidence: quote-root: the evidence states kind "tdx"`},
		{"that of the certificate", as(certificateEvidence(t, w, cert)), `binding is "ratls-cert"`},
		{"without a quote", as(`{"instance_id":"` + idOf(t, td).ID.String() + `","kind":"","binding":"kms-app-info","quote":"","statement":"","event_log":[],"app_compose":"","vm_config":""}`), `binding is "kms-app-info"`},
		{"empty", as(`{}`), "is missing"},
		{"a string", as(`"evidence"`), "evidence: "},
		{"a list", as(`[]`), "evidence: "},
		{"quote of 33 KiB", made(func(e *ratls.AppEvidence) { e.Quote = append(e.Quote, make([]byte, 33<<10)...) }), "quote has"},
		{"member twice", func(c string) string {
			return strings.Replace(evidence(t, td, statement(t, td, key, c)), `{"instance_id"`, `{"kind":"tdx","instance_id"`, 1)
		}, "occurs twice"},
		{"unknown member", func(c string) string {
			return strings.Replace(evidence(t, td, statement(t, td, key, c)), `{"instance_id"`, `{"trust":"me","instance_id"`, 1)
		}, "not a known member"},
		{"null in it", func(c string) string {
			return strings.Replace(evidence(t, td, statement(t, td, key, c)), `"vm_config":"`, `"vm_config":null,"x":"`, 1)
		}, "is null"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w.unchanged(t, func() answer {
				s := dial(t, w.at, cert)
				return s.register(t, withEvidence(key, test.evidence(s.challenge(t))))
			}, http.StatusBadRequest, test.text)
		})
	}
}

// certificateEvidence is good evidence of a certificate, which a request can't bring.
func certificateEvidence(t testing.TB, w *world, cert tls.Certificate) string {
	t.Helper()
	quote, info, err := ratls.VerifyCertificate(t.Context(), w.config.Verifier, cert.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	return string(must(must(ratls.CertificateEvidence(cert.Leaf, quote.Kind, info))(t).MarshalJSON())(t))
}

func TestEvidenceNeedsTLS13(t *testing.T) {
	w := newWorld(t)
	w.resident(t)
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	cert := attested(t, td)
	s := dial(t, w.at, cert, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 })
	text := withEvidence(key, evidence(t, td, statement(t, td, key, s.challenge(t))))
	w.unchanged(t, func() answer { return s.register(t, text) }, http.StatusBadRequest, "evidence: needs TLS 1.3")
	// Without evidence, TLS 1.2 is as good.
	if a := s.register(t, body(key)); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestEvidenceIsGoodForItsSessionOnly sends the same request on the session that it was made for, and on the next.
func TestEvidenceIsGoodForItsSessionOnly(t *testing.T) {
	w := newWorld(t)
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	cert := attested(t, td)
	s := dial(t, w.at, cert)
	text := withEvidence(key, evidence(t, td, statement(t, td, key, s.challenge(t))))
	first := s.register(t, text)
	w.unchanged(t, func() answer { return s.register(t, text) }, http.StatusOK, first.body)
	w.unchanged(t, func() answer { return register(t, w.at, cert, text) }, http.StatusBadRequest, "another TLS session's challenge")
}

// TestAReportedPolicyMayDifferFromTheMeasuredOne and loses, but has to be well-formed all the same.
func TestAReportedPolicyMayDifferFromTheMeasuredOne(t *testing.T) {
	w := newWorld(t)
	td, key := w.boot(t, simtdx.VM{AppCompose: `{"port_policy":{"ports":[{"port":81}],"restrict_mode":true}}`}), newKey()
	cert := attested(t, td)
	with := func(policy string) answer {
		s := dial(t, w.at, cert)
		text := withEvidence(key, evidence(t, td, statement(t, td, key, s.challenge(t))))
		return s.register(t, strings.Replace(text, `{"ports":[],"restrict_mode":false}`, policy, 1))
	}
	w.unchanged(t, func() answer { return with(`{"ports":[{"port":0}]}`) }, http.StatusBadRequest, "port must be between 1 and 65535")
	if a := with(`{"ports":[{"port":22}],"restrict_mode":true}`); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	ports := w.registry.Snapshot().Instance(idOf(t, td).ID).Ports
	if !ports.Allowed(81) || ports.Allowed(22) || ports.Allowed(80) {
		t.Errorf("ports %+v", ports)
	}
}

// TestMeasuredPoliciesThatCannotBeRead are those of an app-compose.json that hashes, and makes no sense.
func TestMeasuredPoliciesThatCannotBeRead(t *testing.T) {
	w := newWorld(t)
	w.resident(t)
	for compose, text := range map[string]string{
		`not JSON`:                               "app_compose: ",
		`[]`:                                     "app_compose: ",
		`null`:                                   "app_compose: ",
		`{"port_policy":{},"port_policy":{}}`:    "app_compose: JSON member port_policy occurs twice",
		`{"Port_Policy":{"restrict_mode":true}}`: "app_compose: JSON member Port_Policy has to be written",
		`{"port_policy":{"ports":[{"port":65536}]}}`:  "app_compose: port_policy: port 65536 out of u16 range",
		`{"port_policy":{"ports":null}}`:              "app_compose: JSON member port_policy.ports is null",
		`{"port_policy":{"ports":[{"port":"http"}]}}`: "app_compose: ",
		`{"port_policy":{"ports":[{"port":1e9}]}}`:    "app_compose: ",
	} {
		td, key := w.boot(t, simtdx.VM{AppCompose: compose}), newKey()
		w.unchanged(t, func() answer {
			s := dial(t, w.at, attested(t, td))
			return s.register(t, withEvidence(key, evidence(t, td, statement(t, td, key, s.challenge(t)))))
		}, http.StatusBadRequest, text)
	}
}

func TestTheChallengeIsTheAgents(t *testing.T) {
	if enroll.ExporterLabel != agent.ExporterLabel || enroll.ExporterSize != agent.ExporterSize {
		t.Errorf("server %q of %d bytes, agent %q of %d", enroll.ExporterLabel, enroll.ExporterSize, agent.ExporterLabel, agent.ExporterSize)
	}
}

// TestTheStrongerEvidenceIsPassedOn holds what the registry is given when an instance that registered with less comes
// with evidence, whatever the registry makes of it.
func TestTheStrongerEvidenceIsPassedOn(t *testing.T) {
	w := newWorld(t)
	for _, certificate := range []func(*simtdx.TD) tls.Certificate{
		func(td *simtdx.TD) tls.Certificate { return w.kms.guest(t, fromKMS(t, td)) },
		func(td *simtdx.TD) tls.Certificate { return attested(t, td) },
	} {
		td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
		cert := certificate(td)
		given := passedOn(t, w, cert, key, nil)
		if e := must(ratls.ParseAppEvidence(given.Evidence))(t); e.Binding == ratls.BindingWireGuard {
			t.Errorf("binding %q of a certificate", e.Binding)
		}
		given = passedOn(t, w, cert, key, td)
		if e := must(ratls.ParseAppEvidence(given.Evidence))(t); e.Binding != ratls.BindingWireGuard || e.AppCompose != "{}" {
			t.Errorf("binding %q, want that of the request", e.Binding)
		}
	}
}

// passedOn registers, with evidence of a domain if there is one, and returns what the registry was given.
func passedOn(t *testing.T, w *world, cert tls.Certificate, key tunnel.PublicKey, td *simtdx.TD) (given registry.Instance) {
	t.Helper()
	at := w.serve(t, func(c *enroll.Config) {
		c.Register = func(ctx context.Context, inst registry.Instance) (registry.Instance, bool, error) {
			given = inst
			return w.registry.Register(ctx, inst)
		}
	})
	s := dial(t, at, cert)
	text := body(key)
	if td != nil {
		text = withEvidence(key, evidence(t, td, statement(t, td, key, s.challenge(t))))
	}
	if a := s.register(t, text); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	return given
}
