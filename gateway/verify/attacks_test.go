package verify_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/demo"
	"dstack.host/gateway/verify"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// refuseBinding answers what cannot bind documents to connections.
func refuseBinding(m *adversary, w http.ResponseWriter, r *http.Request) bool {
	if !r.URL.Query().Has("bind") {
		return false
	}
	http.Error(w, "no", http.StatusBadRequest)
	return true
}

// say answers a status and a body.
func say(status int, body string) func(*adversary, http.ResponseWriter, *http.Request) bool {
	return func(_ *adversary, w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return true
	}
}

// attacks are one change a row.
func attacks(t *testing.T, w *world) []attack {
	foreign := must(must(must(simtdx.New(simtdx.Options{}))(t).Machine(simtdx.MachineOptions{}))(t).Boot(simtdx.VM{AppCompose: "{}"}))(t)
	old := w.boot(t, simtdx.MachineOptions{Platform: ratls.StatusOutOfDate}, simtdx.VM{AppCompose: "{}"})
	debug := w.boot(t, simtdx.MachineOptions{}, simtdx.VM{AppCompose: "{}", Debug: true})
	stale := w.vendor.Faulty(simtdx.Faults{Expired: true})
	other := "4Zk5b4Mx3nqEo0ZkCQpHnRzJ6yM2o1R9rj1aU7o4sVE="
	return []attack{
		{name: "nothing"},
		{name: "no binding to the connection", want: ratls.LinkChallenge, answer: refuseBinding, text: "not bound to this connection: the gateway refused it: the gateway answers 400"},
		{name: "no binding to the connection, which is accepted", answer: refuseBinding, options: exporter(verify.ExporterAuto), text: "not bound to this connection: the gateway refused it: the gateway answers 400"},
		{name: "no binding asked for", options: exporter(verify.ExporterOff), text: "not bound to this connection: that was not asked for"},
		{name: "no TLS 1.3", want: ratls.LinkChallenge, tls: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, text: "not bound to this connection: TLS 1.2 has no exporter"},
		{name: "no TLS 1.3, which is accepted", tls: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, options: exporter(verify.ExporterAuto), text: "not bound to this connection: TLS 1.2 has no exporter"},
		{name: "a nonce of one's own", options: func(_ *world, o *verify.Options) { o.Nonce = bytes.Repeat([]byte{7}, 32) }, text: "the nonce with the exporter"},

		// The certificate.
		{name: "certificate of nobody known", want: verify.CheckCertificate, options: func(_ *world, o *verify.Options) { o.CAs = x509.NewCertPool() }},
		{name: "certificate of another name", want: verify.CheckCertificate, leaf: func(c *x509.Certificate) { c.DNSNames = []string{"x." + demo.DefaultBase + ".example"} }},
		{name: "certificate expired", want: verify.CheckCertificate, leaf: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) },
			statement: func(s *ratls.Statement) { s.TLS[0].NotAfter = time.Now().Add(time.Hour) }},

		// No document, or another.
		{name: "no evidence", want: ratls.LinkDocument, text: "503 no_evidence: T. D", answer: say(503, `{"reason":"no_evidence","title":"T","detail":"D"}`)},
		{name: "nothing there", want: ratls.LinkDocument, text: "404", answer: say(404, "")},
		{name: "redirected", want: ratls.LinkDocument, text: "302", answer: say(302, "")},
		{name: "empty", want: ratls.LinkDocument, answer: say(200, "")},
		{name: "a page", want: ratls.LinkDocument, answer: say(200, "<html>\x1b[2J")},
		{name: "endless", want: ratls.LinkDocument, text: "longer than", answer: func(_ *adversary, w http.ResponseWriter, _ *http.Request) bool {
			chunk := []byte(strings.Repeat(" ", 1<<20))
			for range 17 {
				if _, err := w.Write(chunk); err != nil {
					break
				}
			}
			return true
		}},
		{name: "older format", want: ratls.LinkDocument, document: func(_ *adversary, d *ratls.Document) { d.Format = "https://dstack.host/ra-https/v0" }},
		{name: "older purpose", want: ratls.LinkDocument, document: func(_ *adversary, d *ratls.Document) {
			d.Statement = strings.Replace(d.Statement, "ra-https-v1", "ra-https-v0", 1)
		}},
		{name: "a member more", want: ratls.LinkDocument, raw: func(s string) string { return strings.Replace(s, "{", `{"trusted":true,`, 1) }},
		{name: "a member twice", want: ratls.LinkDocument, raw: func(s string) string {
			return strings.Replace(s, "{", `{"format":"https://dstack.host/ra-https/v1",`, 1)
		}},
		{name: "a member less", want: ratls.LinkDocument, raw: func(s string) string { return strings.Replace(s, `"apps":`, `"spare":`, 1) }},

		// The gateway's evidence.
		{name: "quote of another vendor", want: ratls.LinkGatewayQuote, tee: foreign},
		{name: "simulated quote called hardware", want: ratls.LinkGatewayQuote, document: func(_ *adversary, d *ratls.Document) { d.Gateway.Kind = ratls.KindTDX }},
		{name: "simulated root not accepted", want: ratls.LinkGatewayQuote, options: func(_ *world, o *verify.Options) { o.Chain.Roots = nil }},
		{name: "quote damaged", want: ratls.LinkGatewayQuote, document: func(_ *adversary, d *ratls.Document) { d.Gateway.Quote[600] ^= 1 }},
		{name: "quote cut short", want: ratls.LinkGatewayQuote, document: func(_ *adversary, d *ratls.Document) { d.Gateway.Quote = d.Gateway.Quote[:700] }},
		{name: "domain that its host can debug", want: ratls.LinkGatewayQuote, tee: debug},
		{name: "no collateral", want: ratls.LinkGatewayTCB, document: func(_ *adversary, d *ratls.Document) { d.Collateral = []ratls.Collateral{} }},
		{name: "one piece of collateral missing", want: ratls.LinkGatewayTCB, document: func(_ *adversary, d *ratls.Document) { d.Collateral = d.Collateral[1:] }},
		{name: "expired collateral", want: ratls.LinkGatewayTCB, document: func(m *adversary, d *ratls.Document) {
			for i := range d.Collateral {
				_, d.Collateral[i].Body, _ = stale.Get(context.Background(), d.Collateral[i].URL)
			}
		}},
		{name: "platform out of date", want: ratls.LinkGatewayTCB, text: "OutOfDate", tee: old},
		{name: "platform out of date, which is accepted", tee: old, options: func(_ *world, o *verify.Options) { policy(o, ratls.Policy{AcceptedTCB: []string{"OutOfDate"}}) }},
		{name: "collateral older than demanded", want: ratls.LinkGatewayTCB, options: func(_ *world, o *verify.Options) { policy(o, ratls.Policy{MinEvaluationDataNumber: 18}) }},
		{name: "event missing in the log", want: ratls.LinkGatewayLog, document: func(_ *adversary, d *ratls.Document) {
			d.Gateway.EventLog = slices.DeleteFunc(d.Gateway.EventLog, func(e ratls.Event) bool { return e.Name == "compose-hash" })
		}},
		{name: "no event log", want: ratls.LinkGatewayLog, document: func(_ *adversary, d *ratls.Document) { d.Gateway.EventLog = []ratls.Event{} }},
		{name: "another program than is pinned", want: ratls.LinkGatewayPins, options: func(w *world, o *verify.Options) { o.Chain.Gateway.AppIDs = []ratls.Hex{make(ratls.Hex, 20)} }},
		{name: "another image than is pinned", want: ratls.LinkGatewayPins, text: "mrtd", options: func(w *world, o *verify.Options) { o.Chain.Gateway.MRTD = []ratls.Hex{make(ratls.Hex, 48)} }},
		{name: "an OS image hash that nothing measured covers", want: ratls.LinkGatewayPins, text: "pins nothing without", options: func(w *world, o *verify.Options) {
			o.Chain.Gateway.OSImageHashes = []ratls.Hex{make(ratls.Hex, 32)}
		}},
		{name: "another platform than is pinned", want: ratls.LinkGatewayPins, text: "ppid", options: func(w *world, o *verify.Options) { o.Chain.Gateway.PPIDs = []ratls.Hex{make(ratls.Hex, 16)} }},

		// The statement.
		{name: "relayed document of a real gateway", want: ratls.LinkChallenge, answer: func(m *adversary, w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.WriteString(w, m.relay(r.Context(), r.URL.RawQuery))
			return true
		}},
		{name: "relayed without binding", want: verify.CheckHistory + " " + ratls.LinkKey, options: exporter(verify.ExporterAuto), answer: func(m *adversary, w http.ResponseWriter, r *http.Request) bool {
			if !refuseBinding(m, w, r) {
				_, _ = io.WriteString(w, m.relay(r.Context(), r.URL.RawQuery))
			}
			return true
		}},
		{name: "replayed document without a nonce", want: ratls.LinkChallenge, answer: func(m *adversary, w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.WriteString(w, m.relay(r.Context(), ""))
			return true
		}},
		{name: "replayed document for another nonce", want: ratls.LinkChallenge, answer: func(m *adversary, w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.WriteString(w, m.relay(r.Context(), "nonce="+strings.Repeat("00", 32)))
			return true
		}},
		{name: "another nonce in the proof", want: ratls.LinkChallenge, document: func(_ *adversary, d *ratls.Document) { d.Challenge.Nonce = new(ratls.Digest) }},
		{name: "no nonce in the proof", want: ratls.LinkChallenge, document: func(_ *adversary, d *ratls.Document) {
			d.Challenge = ratls.ChallengeProof{Path: []ratls.PathStep{}}
		}},
		{name: "another root", want: ratls.LinkChallenge, document: func(_ *adversary, d *ratls.Document) { d.Challenge.Root[0] ^= 1 }},
		{name: "statement changed", want: ratls.LinkStatement, document: func(_ *adversary, d *ratls.Document) {
			d.Statement = strings.Replace(d.Statement, `"demo"`, `"omed"`, 1)
		}},
		{name: "quote of the gateway's for something else", want: ratls.LinkStatement, document: func(m *adversary, d *ratls.Document) {
			d.Gateway.Quote, _ = m.td.Quote(context.Background(), ratls.TaggedReportData(ratls.TagCertificate, []byte("x")))
		}},
		{name: "another host", want: ratls.LinkHost, statement: func(s *ratls.Statement) { s.Host = "x." + demo.DefaultBase }},
		{name: "expired", want: ratls.LinkFreshness, text: "expired", statement: func(s *ratls.Statement) { s.IssuedAt, s.ExpiresAt = ago(2*time.Hour), ago(time.Hour) }},
		{name: "from the future", want: ratls.LinkFreshness, text: "yet to come", statement: func(s *ratls.Statement) { s.IssuedAt, s.ExpiresAt = ago(-time.Hour), ago(-2*time.Hour) }},
		{name: "valid for too long", want: ratls.LinkFreshness, text: "at most", statement: func(s *ratls.Statement) { s.ExpiresAt = s.IssuedAt.Add(24 * time.Hour) }},
		{name: "key of another connection", want: ratls.LinkKey, statement: func(s *ratls.Statement) { s.TLS[0].SPKI[0] ^= 1 }},
		{name: "key that has had its time", want: ratls.LinkKey, statement: func(s *ratls.Statement) { s.TLS[0].NotAfter = ago(time.Minute) }},

		// Issuance.
		{name: "an account whose records are not pinned to it", want: verify.CheckCAA, text: "not limited to the statement's account", history: attested,
			statement: func(s *ratls.Statement) {
				s.ACMEAccount, s.CAA = account, []string{`0 issue "letsencrypt.org"`, `0 issuewild ";"`}
			}},
		{name: "an account with other ways to prove a name", want: verify.CheckCAA, text: "not limited to dns-01", history: attested,
			statement: func(s *ratls.Statement) {
				s.ACMEAccount, s.CAA = account, []string{`0 issue "letsencrypt.org;accounturi=` + account + `"`, `0 issuewild ";"`}
			}},
		{name: "an account without records", want: verify.CheckCAA, text: "no issue record", history: attested,
			statement: func(s *ratls.Statement) { s.ACMEAccount, s.CAA = account, nil }},
		{name: "an account with records for wildcards only", want: verify.CheckCAA, text: "no issue record", history: attested,
			statement: func(s *ratls.Statement) { s.ACMEAccount, s.CAA = account, pinnedCAA()[1:] }},
		{name: "records that are none", want: verify.CheckCAA, statement: func(s *ratls.Statement) { s.CAA = []string{"0 issue"} }},
		{name: "an account without a history", want: verify.CheckHistory, text: "status 404", statement: accounted, history: nothing},
		{name: "no history and no account", want: verify.CheckHistory, text: "status 404", history: nothing},
		{name: "every key attested", statement: accounted, history: attested, text: "2 with this connection's, were quoted"},
		{name: "history in the other form", statement: accounted, history: attestedV0, text: "1 with this connection's, were quoted"},
		{name: "history without an account", history: func(m *adversary) string { return m.keys("", m.quoted(m.spki())) }, text: "1 with this connection's"},
		{name: "empty history without an account", want: verify.CheckHistory, history: func(m *adversary) string { return m.keys("") }, text: "history of keys is empty"},
		{name: "empty history", want: verify.CheckHistory, text: "not among the 0", statement: accounted, history: func(m *adversary) string { return m.keys(account) }},
		{name: "history of another account", want: verify.CheckHistory, text: "ACME account", statement: accounted, history: func(m *adversary) string { return m.keys(account+"0", m.quoted(m.spki())) }},
		{name: "history without this key", want: verify.CheckHistory, text: "not among the 1", statement: accounted, history: func(m *adversary) string { return m.keys(account, m.quoted([]byte("other"))) }},
		{name: "history with a key that has no quote", want: verify.CheckHistory, text: "it has no quote", statement: accounted,
			history: func(m *adversary) string {
				return m.keys(account, m.quoted(m.spki()), `{"public_key":"00","quote":"","attestation":""}`)
			}},
		{name: "history with the quote of another key", want: verify.CheckHistory, text: "the quote is over", statement: accounted,
			history: func(m *adversary) string { return m.keys(account, m.entry([]byte("other"), m.td, m.spki())) }},
		{name: "history quoted by another program", want: verify.CheckHistory, text: "it was quoted by app", statement: accounted,
			history: func(m *adversary) string {
				return m.keys(account, m.entry(m.spki(), m.boot(m.t, simtdx.MachineOptions{}, simtdx.VM{AppCompose: "{ }"}), m.spki()))
			}},
		{name: "this key quoted by another image that logs the gateway's app", want: verify.CheckHistory, text: "other registers", statement: accounted,
			history: func(m *adversary) string { return m.keys(account, m.entry(m.spki(), m.otherImage(), m.spki())) }},
		{name: "this key quoted by the gateway and an earlier image", statement: accounted, text: "2 of them by images with other registers",
			history: func(m *adversary) string {
				return m.keys(account, m.quoted(m.spki()), m.entry(m.spki(), m.otherImage(), m.spki()), m.entry([]byte("old"), m.otherImage(), []byte("old")))
			}},
		{name: "another key quoted by an image that is not pinned", want: verify.CheckHistory, text: "another program than is pinned: mrtd", statement: accounted,
			options: func(w *world, o *verify.Options) { o.Chain.Gateway.MRTD = []ratls.Hex{image(t, w.td)} },
			history: func(m *adversary) string {
				return m.keys(account, m.quoted(m.spki()), m.entry([]byte("old"), m.otherImage(), []byte("old")))
			}},
		{name: "history quoted by another vendor's machine", want: verify.CheckHistory, text: "quote-root", statement: accounted,
			history: func(m *adversary) string { return m.keys(account, m.entry(m.spki(), foreign, m.spki())) }},
		{name: "history on a platform that is out of date now", statement: accounted, text: "2 with this connection's",
			history: func(m *adversary) string {
				past := m.boot(m.t, simtdx.MachineOptions{Platform: ratls.StatusOutOfDate}, simtdx.VM{AppCompose: adversarysCompose})
				return m.keys(account, m.quoted(m.spki()), m.entry([]byte("old"), past, []byte("old")))
			}},
		{name: "this key on a platform that is out of date now", want: verify.CheckHistory, text: "OutOfDate", statement: accounted,
			history: func(m *adversary) string {
				past := m.boot(m.t, simtdx.MachineOptions{Platform: ratls.StatusOutOfDate}, simtdx.VM{AppCompose: adversarysCompose})
				return m.keys(account, m.entry(m.spki(), past, m.spki()))
			}},
		{name: "history that is no JSON", want: verify.CheckHistory, text: "key history", statement: accounted, history: func(*adversary) string { return "<html>" }},
		{name: "history with a quote that is no JSON", want: verify.CheckHistory, statement: accounted,
			history: func(*adversary) string {
				return `{"account_uri":"` + account + `","quoted_hist_keys":[{"public_key":"00","quote":"x","attestation":""}]}`
			}},
		{name: "account's quote for another account", want: verify.CheckHistory, text: "account " + account, statement: accounted,
			history: func(m *adversary) string {
				quote := m.evidence(m.td, ratls.TaggedReportData(ratls.TagACMEAccount, []byte("x")))
				return strings.Replace(attested(m), `"account_quote":""`, `"account_quote":`+quote, 1)
			}},

		// The instances.
		{name: "instances removed", want: ratls.LinkAppEvidence, document: func(_ *adversary, d *ratls.Document) { d.Apps = []ratls.AppEvidence{} }},
		{name: "evidence of another app", want: ratls.LinkAppEvidence, document: func(m *adversary, d *ratls.Document) { d.Apps = m.real(context.Background(), 1).Apps }},
		{name: "another quote of the same instance", want: ratls.LinkAppEvidence, document: func(m *adversary, d *ratls.Document) { d.Apps[0].Quote[700] ^= 1 }},
		{name: "another app behind the name", want: ratls.LinkAppIdentity, answer: func(m *adversary, w http.ResponseWriter, r *http.Request) bool {
			st, _ := m.stated(r.Context())
			other := m.real(r.Context(), 1)
			st.App = must(ratls.ParseStatement(other.Statement))(m.t).App
			_, _ = w.Write(m.prove(r, st, other.Apps))
			return true
		}},
		{name: "only a KMS vouches", want: ratls.LinkAppQuote, text: "there is no quote", apps: func(_ *adversary, apps []ratls.AppEvidence) {
			apps[0] = ratls.AppEvidence{InstanceID: apps[0].InstanceID, Binding: ratls.BindingAppInfo}
		}},
		{name: "app quoted by another vendor's machine", want: ratls.LinkAppQuote, apps: func(_ *adversary, apps []ratls.AppEvidence) {
			apps[0].Quote, _ = foreign.Quote(context.Background(), ratls.ReportData{})
		}},
		{name: "app on a platform that is out of date", want: ratls.LinkAppTCB, apps: func(_ *adversary, apps []ratls.AppEvidence) {
			apps[0].Quote, _ = old.Quote(context.Background(), ratls.ReportData{})
		}},
		{name: "event missing in the app's log", want: ratls.LinkReplay, document: func(_ *adversary, d *ratls.Document) { d.Apps[0].EventLog = d.Apps[0].EventLog[1:] }},
		{name: "compose text of another app", want: ratls.LinkAppCompose, document: func(_ *adversary, d *ratls.Document) { d.Apps[0].AppCompose += " " }},
		{name: "no compose text", want: ratls.LinkAppCompose, document: func(_ *adversary, d *ratls.Document) { d.Apps[0].AppCompose = "" }},
		{name: "another app than is pinned", want: ratls.LinkAppPins, options: func(_ *world, o *verify.Options) { o.Chain.Apps.ComposeHashes = []ratls.Hex{make(ratls.Hex, 32)} }},
		{name: "another key provider than is pinned", want: ratls.LinkAppPins, text: "key provider none", options: func(_ *world, o *verify.Options) { o.Chain.Apps.KeyProviders = []string{"kms"} }},
		{name: "another family than is pinned", want: ratls.LinkAppPins, text: "fmspc", options: func(_ *world, o *verify.Options) { o.Chain.Apps.FMSPCs = []ratls.Hex{{1, 2, 3, 4, 5, 6}} }},
		{name: "as pinned", options: func(_ *world, o *verify.Options) { o.Chain.Apps.KeyProviders = []string{"kms", "none"} }, text: "pinned: key provider none"},
		{name: "app's statement changed", want: ratls.LinkAppBinding, document: func(_ *adversary, d *ratls.Document) { d.Apps[0].Statement += " " }},
		{name: "challenge not passed on to the app", want: ratls.LinkAppFresh, options: func(_ *world, o *verify.Options) { o.FreshApp = true }},
		{name: "tunnel to somebody else", want: ratls.LinkWireGuardKey, statement: func(s *ratls.Statement) { s.App.Instances[0].WGPublicKey = other }},
		{name: "instance by another id", want: ratls.LinkInstance, statement: func(s *ratls.Statement) { s.App.Instances[0].ID = strings.Repeat("0", 40) },
			apps: func(_ *adversary, apps []ratls.AppEvidence) { apps[0].InstanceID = strings.Repeat("0", 40) }},
	}
}

func ago(d time.Duration) time.Time { return time.Now().Add(-d) }

// nothing is a history that is not there.
func nothing(*adversary) string { return "" }

// exporter sets what becomes of answers that are not bound.
func exporter(e verify.Exporter) func(*world, *verify.Options) {
	return func(_ *world, o *verify.Options) { o.Exporter = e }
}

// otherImage is a TEE of another image that logs the adversary's own app, as anybody can.
func (m *adversary) otherImage() *simtdx.TD {
	return m.boot(m.t, simtdx.MachineOptions{}, simtdx.VM{AppCompose: adversarysCompose, MRTD: ratls.Measurement{1}})
}

// image is the register MRTD of a TEE.
func image(t *testing.T, td *simtdx.TD) ratls.Hex {
	q := must(ratls.ParseQuote(must(td.Quote(t.Context(), ratls.ReportData{}))(t)))(t)
	return q.MRTD[:]
}

// policy sets the policy of every root.
func policy(o *verify.Options, p ratls.Policy) {
	o.Chain.Roots = slices.Clone(o.Chain.Roots)
	for i := range o.Chain.Roots {
		o.Chain.Roots[i].Policy = p
	}
}

const (
	account           = "https://acme.example/acct/1"
	adversarysCompose = `{"name":"adversary"}`
)

func pinnedCAA() []string {
	value := "letsencrypt.org; validationmethods=dns-01; accounturi=" + account
	return []string{fmt.Sprintf("0 issue %q", value), fmt.Sprintf("0 issuewild %q", value)}
}

// accounted makes a statement that of a gateway with an ACME account.
func accounted(s *ratls.Statement) { s.ACMEAccount, s.CAA = account, pinnedCAA() }

// spki is the key that the adversary serves with.
func (m *adversary) spki() []byte { return m.certificate.Leaf.RawSubjectPublicKeyInfo }

// keys is the history of an account.
func (m *adversary) keys(account string, entries ...string) string {
	return fmt.Sprintf(`{"account_uri":%q,"hist_keys":[],"quoted_hist_keys":[%s],"account_quote":"","account_attestation":""}`, account, strings.Join(entries, ","))
}

// quoted is a key that the adversary's TEE quoted.
func (m *adversary) quoted(spki []byte) string { return m.entry(spki, m.td, spki) }

func (m *adversary) entry(spki []byte, td *simtdx.TD, over []byte) string {
	quote := m.evidence(td, ratls.TaggedReportData(ratls.TagZTCertificate, over))
	return fmt.Sprintf(`{"public_key":"%x","quote":%s,"attestation":""}`, spki, quote)
}

// evidence is a quote as the guest agent answers it, as JSON text in a JSON string.
func (m *adversary) evidence(td *simtdx.TD, data ratls.ReportData) string {
	raw := must(td.Quote(context.Background(), data))(m.t)
	events := jsonText(m.t, must(td.EventLog(context.Background()))(m.t))
	text := fmt.Sprintf(`{"quote":"%x","event_log":%s,"report_data":"%s","vm_config":""}`, raw, jsonText(m.t, events), data)
	return jsonText(m.t, text)
}

// attested is a history of this connection's key and of another, with the account's quote.
func attested(m *adversary) string {
	return strings.Replace(m.keys(account, m.quoted(m.spki()), m.quoted([]byte("older"))), `"account_attestation":""`,
		`"account_attestation":`+m.attestation(ratls.TaggedReportData(ratls.TagACMEAccount, []byte(account))), 1)
}

// attestedV0 is one with attestations instead of quotes.
func attestedV0(m *adversary) string {
	return m.keys(account, fmt.Sprintf(`{"public_key":"%x","quote":"","attestation":%s}`, m.spki(), m.attestation(ratls.TaggedReportData(ratls.TagZTCertificate, m.spki()))))
}

func (m *adversary) attestation(data ratls.ReportData) string {
	events := must(m.td.EventLog(context.Background()))(m.t)
	a := ratls.Attestation{Quote: must(m.td.Quote(context.Background(), data))(m.t), Events: events, RuntimeEvents: ratls.RuntimeEvents(events), ReportData: data}
	return jsonText(m.t, fmt.Sprintf(`{"attestation":"%x"}`, must(a.MarshalBinary())(m.t)))
}

// TestWhateverAnAdversaryChangesIsRefusedByName is the measure of this package: one change, one check that fails. What was
// seen is then judged again from its bundle, with the same outcome.
func TestWhateverAnAdversaryChangesIsRefusedByName(t *testing.T) {
	w := newWorld(t)
	for _, a := range attacks(t, w) {
		t.Run(a.name, func(t *testing.T) {
			url, _ := w.play(t, a)
			o := w.options
			if a.options != nil {
				a.options(w, &o)
			}
			r, err := verify.URL(t.Context(), url, o)
			if err != nil {
				t.Fatal(err)
			}
			expect(t, r, a.want, a.text)
			replayed(t, r, o)
		})
	}
}

// expect holds a result to the one check that has to fail, and to a text.
func expect(t *testing.T, r *verify.Result, want, text string) {
	t.Helper()
	var failed, told []string
	for _, c := range r.Checks {
		if c.Status == ratls.Fail {
			failed = append(failed, c.Name)
		}
		if c.Status == ratls.Fail || want == "" {
			told = append(told, c.Detail)
		}
	}
	if got := strings.Join(failed, " "); got != want || r.OK() != (want == "") || !strings.Contains(strings.Join(told, "\n"), text) {
		var out strings.Builder
		_ = r.Print(&out)
		t.Errorf("failed %q, want %q with %q in its detail\n%s", got, want, text, out.String())
	}
}

// replayed holds a result to that of its bundle.
func replayed(t *testing.T, r *verify.Result, o verify.Options) {
	t.Helper()
	b := must(verify.ParseBundle(must(r.Bundle.Encode())(t)))(t)
	again := must(b.Verify(t.Context(), o))(t)
	if diff := cmp.Diff(r.Checks, again.Checks); diff != "" || again.Verdict != r.Verdict || !again.Time.Equal(r.Time) || !again.Replayed {
		t.Errorf("judged again %s at %s, first %s at %s (-first +again):\n%s", again.Verdict, again.Time, r.Verdict, r.Time, diff)
	}
	if diff := cmp.Diff(r.Claims, again.Claims); diff != "" {
		t.Errorf("claims (-first +again):\n%s", diff)
	}
}
