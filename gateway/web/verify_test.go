package web_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/web"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// modules puts the verifier where node can import it, and returns the folder. Without node the test is skipped.
func modules(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("node is not installed: the page's verifier is not run outside of a browser")
	}
	dir := t.TempDir()
	sources, err := fs.Sub(web.Files, "verify")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, sources); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "package.json"), []byte(`{"type":"module"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// node runs a script of testdata on input, which is sent as JSON, and decodes what it prints.
func node(t *testing.T, script string, input, output any, args ...string) {
	t.Helper()
	stdin, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", append([]string{"testdata/" + script}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("node %s: %v\n%s", script, err, stderr.String())
	}
	if err := json.Unmarshal(stdout, output); err != nil {
		t.Fatalf("node %s printed %.300s: %v", script, stdout, err)
	}
}

// nodeCase is a case of testdata/walk.mjs.
type nodeCase struct {
	Document []byte   `json:"document"`
	Host     string   `json:"host"`
	ID       string   `json:"id"`
	Nonce    string   `json:"nonce,omitempty"`
	Exporter string   `json:"exporter,omitempty"`
	SPKI     []byte   `json:"spki"`
	Roots    []string `json:"roots"`
	Now      int64    `json:"now"`
	Fresh    bool     `json:"fresh"`
}

func (s shot) nodeCase() nodeCase {
	c := nodeCase{Document: s.document, Host: s.subject.Host, ID: s.subject.ID, Nonce: hex.EncodeToString(s.subject.Nonce), Exporter: hex.EncodeToString(s.subject.Exporter), SPKI: s.subject.SPKI, Fresh: s.subject.FreshApp, Now: s.now.UnixMilli()}
	for _, r := range s.roots {
		c.Roots = append(c.Roots, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Root.Raw})))
	}
	return c
}

// row is a scene and the link at which it has to fail, "" when it is good.
type row struct {
	name string
	scene
	fails string
}

func TestThePageVerifiesAsGoDoes(t *testing.T) {
	dir := modules(t)
	studio := newStudio(t)
	rows := append(goodRows(), append(quoteRows(), append(statementRows(), appRows()...)...)...)
	var shots []shot
	for _, r := range rows {
		shots = append(shots, studio.shoot(t, r.scene))
	}
	got := walks(t, dir, shots)
	for i, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			want := shots[i].walk(t.Context())
			if failed, _ := want.Failure(); failed.Name != r.fails {
				t.Fatalf("Go fails at %q (%s), want %q", failed.Name, failed.Detail, r.fails)
			}
			agree(t, want, got[i])
		})
	}
}

// outcome is what testdata/walk.mjs tells of a case.
type outcome struct {
	Checks    []ratls.Check
	Simulated bool
}

// walks has the page's verifier walk along shots.
func walks(t *testing.T, dir string, shots []shot) (outcomes []outcome) {
	t.Helper()
	var cases []nodeCase
	for _, s := range shots {
		cases = append(cases, s.nodeCase())
	}
	node(t, "walk.mjs", cases, &outcomes, dir)
	if len(outcomes) != len(shots) {
		t.Fatalf("%d outcomes of %d cases", len(outcomes), len(shots))
	}
	return outcomes
}

// agree holds the page's verdict to Go's: the same links in the same states and, where a quote fails, the same check of it.
func agree(t *testing.T, want ratls.Report, got outcome) {
	t.Helper()
	if diff := cmp.Diff(brief(want.Checks, want.Simulated), brief(got.Checks, got.Simulated)); diff != "" {
		t.Errorf("the verifiers disagree (-Go +page):\n%s", diff)
	}
	failed, bad := want.Failure()
	i := slices.IndexFunc(got.Checks, func(c ratls.Check) bool { return c.Status == ratls.Fail })
	if !bad || i < 0 {
		return
	}
	name, _, _ := strings.Cut(failed.Detail, ":")
	if slices.Contains(ratls.QuoteChecks(), name) && !strings.HasPrefix(got.Checks[i].Detail, name+":") {
		t.Errorf("the page says %q, Go says %q", got.Checks[i].Detail, failed.Detail)
	}
	if got.Checks[i].Detail == "" {
		t.Error("the page does not say why")
	}
}

func goodRows() []row {
	return []row{
		{"version 4", scene{}, ""},
		{"version 5", scene{gateway: simtdx.MachineOptions{Version: 5}, app: simtdx.MachineOptions{Version: 5}}, ""},
		{"module without an identity", scene{gateway: simtdx.MachineOptions{UnversionedModule: true}}, ""},
		{"two instances", scene{apps: 2}, ""},
		{"the gateway's own name", scene{apps: -1}, ""},
		{"no nonce", scene{leaves: -1}, ""},
		{"one nonce of many", scene{leaves: 7}, ""},
		{"bound to the connection", scene{leaves: 3, exporter: true}, ""},
		{"registered with a certificate", scene{binding: ratls.BindingCertificate}, ""},
		{"declared by the host", scene{gatewayVM: simtdx.VM{MRConfigID: ratls.Measurement{1}}}, ""},
		{"events after the boot", scene{appVM: simtdx.VM{EditLog: func(e []ratls.Event) []ratls.Event {
			return append(e, ratls.Event{IMR: 0, Type: 1, Name: "firmware", Payload: []byte("x")})
		}}}, ""},
	}
}

func quoteRows() []row {
	rows := []row{
		{"another root", scene{foreign: true}, ratls.LinkGatewayQuote},
		{"processor CA", scene{gateway: simtdx.MachineOptions{ProcessorCA: true}}, ratls.LinkGatewayQuote},
		{"expired PCK", scene{gateway: simtdx.MachineOptions{ExpiredPCK: true}}, ratls.LinkGatewayQuote},
		{"debug", scene{gatewayVM: simtdx.VM{Debug: true}}, ratls.LinkGatewayQuote},
		{"reserved attribute", scene{gatewayVM: simtdx.VM{Attributes: 1 << 29}}, ratls.LinkGatewayQuote},
		{"SEPT_VE", scene{gatewayVM: simtdx.VM{SEPTVE: true}}, ratls.LinkGatewayQuote},
		{"module of another signer", scene{gatewayVM: simtdx.VM{MRSignerSeam: ratls.Measurement{1}}}, ratls.LinkGatewayQuote},
		{"service domain", scene{gateway: simtdx.MachineOptions{Version: 5}, gatewayVM: simtdx.VM{MRServiceTD: ratls.Measurement{1}}}, ratls.LinkGatewayQuote},
		{"kind that is claimed", scene{document: func(d *ratls.Document) { d.Gateway.Kind = ratls.KindTDX }}, ratls.LinkGatewayQuote},
		{"foreign quoting enclave", scene{gateway: simtdx.MachineOptions{ForeignQE: true}}, ratls.LinkGatewayTCB},
		{"platform out of date", scene{gateway: simtdx.MachineOptions{Platform: ratls.StatusOutOfDate}}, ratls.LinkGatewayTCB},
		{"module out of date", scene{gateway: simtdx.MachineOptions{Module: ratls.StatusOutOfDate}}, ratls.LinkGatewayTCB},
		{"enclave revoked", scene{gateway: simtdx.MachineOptions{QE: ratls.StatusRevoked}}, ratls.LinkGatewayTCB},
		{"platform below all levels", scene{gateway: simtdx.MachineOptions{Platform: simtdx.Unlisted}}, ratls.LinkGatewayTCB},
		{"no collateral", scene{document: func(d *ratls.Document) { d.Collateral = nil }, bytes: replace(`"collateral":null`, `"collateral":[]`)}, ratls.LinkGatewayTCB},
		{"one answer missing", scene{document: func(d *ratls.Document) { d.Collateral = d.Collateral[:3] }}, ratls.LinkGatewayTCB},
		{"expired collateral", scene{faults: simtdx.Faults{Expired: true}}, ratls.LinkGatewayTCB},
		{"collateral of the future", scene{faults: simtdx.Faults{Future: true}}, ratls.LinkGatewayTCB},
		{"revoked PCK", scene{gateway: simtdx.MachineOptions{Name: "revoked"}, revoked: true}, ratls.LinkGatewayTCB},
		{"revoked platform CA", scene{faults: simtdx.Faults{RevokedPlatformCA: true}}, ratls.LinkGatewayTCB},
		{"revoked signer", scene{faults: simtdx.Faults{RevokedSigning: true}}, ratls.LinkGatewayTCB},
		{"forged TCB info", scene{faults: simtdx.Faults{ForgedTCB: true}}, ratls.LinkGatewayTCB},
		{"forged QE identity", scene{faults: simtdx.Faults{ForgedQE: true}}, ratls.LinkGatewayTCB},
		{"other QE", scene{faults: simtdx.Faults{OtherQE: true}}, ratls.LinkGatewayTCB},
		{"other family", scene{faults: simtdx.Faults{OtherFMSPC: true}}, ratls.LinkGatewayTCB},
		{"flipped bit of the PCK list", scene{document: func(d *ratls.Document) { d.Collateral[2].Body[60] ^= 1 }}, ratls.LinkGatewayTCB},
		{"flipped bit of the root list", scene{document: func(d *ratls.Document) { d.Collateral[3].Body[60] ^= 1 }}, ratls.LinkGatewayTCB},
		{"issuer chain missing", scene{document: func(d *ratls.Document) { d.Collateral[0].Headers = nil }}, ratls.LinkGatewayTCB},
	}
	for tamper := simtdx.TamperBody; tamper <= simtdx.TrailingByte; tamper++ {
		for _, version := range []int{4, 5} {
			rows = append(rows, row{"tampered " + tamper.String() + " of version " + string(rune('0'+version)),
				scene{gateway: simtdx.MachineOptions{Version: version}, gatewayVM: simtdx.VM{Tamper: tamper}}, ratls.LinkGatewayQuote})
		}
	}
	return rows
}

func statementRows() []row {
	challenge := func(edit func(*ratls.ChallengeProof)) scene {
		return scene{leaves: 5, document: func(d *ratls.Document) { edit(&d.Challenge) }}
	}
	return []row{
		{"unknown member", scene{bytes: replace(`{"format"`, `{"more":1,"format"`)}, ratls.LinkDocument},
		{"member twice", scene{bytes: replace(`{"format"`, `{"apps":[],"format"`)}, ratls.LinkDocument},
		{"member missing", scene{bytes: replace(`"vm_config"`, `"vm_konfig"`)}, ratls.LinkDocument},
		{"more data", scene{bytes: func(b []byte) []byte { return append(b, '{') }}, ratls.LinkDocument},
		{"not UTF-8", scene{bytes: replace(`node-1`, "node\xff1")}, ratls.LinkDocument},
		{"byte order mark", scene{bytes: func(b []byte) []byte { return append([]byte("\xef\xbb\xbf"), b...) }}, ratls.LinkDocument},
		{"no JSON", scene{bytes: func([]byte) []byte { return nil }}, ratls.LinkDocument},
		{"deep", scene{bytes: replace(`"apps":[`, `"apps":[`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`,`)}, ratls.LinkDocument},
		{"other format", scene{document: func(d *ratls.Document) { d.Format += "x" }}, ratls.LinkDocument},
		{"upper-case digest", scene{bytes: replace(`"root":"`, `"root":"A`)}, ratls.LinkDocument},
		{"statement of another purpose", scene{text: swap(`ra-https-v1`, `ra-https-v2`)}, ratls.LinkDocument},
		{"statement with more", scene{text: swap(`{"purpose"`, `{"x":1,"purpose"`)}, ratls.LinkDocument},
		{"statement with less", scene{text: swap(`"node":"node-1",`, ``)}, ratls.LinkDocument},
		{"time that does not exist", scene{text: swap(`"not_after":"20`, `"not_after":"x20`)}, ratls.LinkDocument},
		{"key beside a statement", scene{document: func(d *ratls.Document) { d.Apps[0].SPKI = []byte("x") }}, ratls.LinkDocument},
		{"binding without its statement", scene{document: func(d *ratls.Document) { d.Apps[0].Statement = "" }}, ratls.LinkDocument},
		{"quote beside a KMS's word", scene{document: func(d *ratls.Document) { d.Apps[0].Binding, d.Apps[0].Statement = ratls.BindingAppInfo, "" }}, ratls.LinkDocument},
		{"evidence without a kind", scene{document: func(d *ratls.Document) { d.Apps[0].Kind = "" }}, ratls.LinkDocument},
		{"event of a register that is not there", scene{document: func(d *ratls.Document) { d.Gateway.EventLog[0].IMR = 4 }}, ratls.LinkDocument},
		{"event of an unknown version", scene{bytes: replace(`"event":"system-preparing"`, `"version":3,"event":"system-preparing"`)}, ratls.LinkDocument},
		{"event log of the gateway", scene{document: func(d *ratls.Document) { d.Gateway.EventLog[2].Payload = []byte{1} }}, ratls.LinkGatewayLog},
		{"event log without digests", scene{document: func(d *ratls.Document) { d.Gateway.EventLog[2].Payload, d.Gateway.EventLog[2].Digest = []byte{1}, nil }}, ratls.LinkGatewayLog},
		{"event that is not logged", scene{gatewayVM: simtdx.VM{Unlogged: true}}, ratls.LinkGatewayLog},
		{"VM configuration", scene{document: func(d *ratls.Document) { d.Gateway.VMConfig = `{"os_image_hash":"x"}` }}, ratls.LinkGatewayLog},
		{"VM configuration in another case", scene{document: func(d *ratls.Document) { d.Gateway.VMConfig = `{"OS_image_hash":"00"}` }}, ratls.LinkGatewayLog},
		{"other nonce", challenge(func(c *ratls.ChallengeProof) { c.Nonce[0] ^= 1 }), ratls.LinkChallenge},
		{"other root", challenge(func(c *ratls.ChallengeProof) { c.Root[0] ^= 1 }), ratls.LinkChallenge},
		{"other path", challenge(func(c *ratls.ChallengeProof) { c.Path[0].Hash[0] ^= 1 }), ratls.LinkChallenge},
		{"path on the other side", challenge(func(c *ratls.ChallengeProof) { c.Path[0].Right = !c.Path[0].Right }), ratls.LinkChallenge},
		{"nonce of somebody else", scene{subject: func(s *ratls.Subject) { s.Nonce = make([]byte, 32) }}, ratls.LinkChallenge},
		{"nonce not answered", scene{leaves: -1, subject: func(s *ratls.Subject) { s.Nonce = make([]byte, 32) }}, ratls.LinkChallenge},
		{"root without a nonce", scene{leaves: -1, document: func(d *ratls.Document) { d.Challenge.Root[0] = 1 }}, ratls.LinkChallenge},
		{"other connection", scene{exporter: true, subject: func(s *ratls.Subject) { s.Exporter = make([]byte, 32) }}, ratls.LinkChallenge},
		{"connection not bound", scene{subject: func(s *ratls.Subject) { s.Exporter = make([]byte, 32) }}, ratls.LinkChallenge},
		{"statement that was not quoted", scene{document: func(d *ratls.Document) { d.Statement = strings.Replace(d.Statement, "node-1", "node-2", 1) }}, ratls.LinkStatement},
		{"statement with a space", scene{document: func(d *ratls.Document) { d.Statement += " " }}, ratls.LinkStatement},
		{"root that was not quoted", scene{leaves: -1, document: func(d *ratls.Document) { *d = withChallenge(*d) }, subject: func(s *ratls.Subject) { s.Nonce = make([]byte, 32) }}, ratls.LinkStatement},
		{"other host", scene{statement: func(s *ratls.Statement) { s.Host = "other." + sceneHost }}, ratls.LinkHost},
		{"expired", scene{later: 6 * time.Minute}, ratls.LinkFreshness},
		{"of the future", scene{later: -3 * time.Minute}, ratls.LinkFreshness},
		{"living too long", scene{statement: func(s *ratls.Statement) { s.ExpiresAt = s.IssuedAt.Add(2 * time.Hour) }}, ratls.LinkFreshness},
		{"other key", scene{subject: func(s *ratls.Subject) { s.SPKI = []byte("another") }}, ratls.LinkKey},
		{"key that has ended", scene{statement: func(s *ratls.Statement) { s.TLS[0].NotAfter = s.IssuedAt }}, ratls.LinkKey},
	}
}

// withChallenge is a document whose challenge is not that of its quote.
func withChallenge(d ratls.Document) ratls.Document {
	var nonce ratls.Digest
	leaf, _ := ratls.Challenge{Nonce: nonce[:]}.Leaf()
	d.Challenge = ratls.ChallengeProof{Nonce: &nonce, Path: []ratls.PathStep{}, Root: leaf}
	return d
}

func appRows() []row {
	return []row{
		{"app behind the gateway's own name", scene{subject: func(s *ratls.Subject) { s.ID = "" }}, ratls.LinkAppEvidence},
		{"no app behind an app's name", scene{apps: -1, subject: func(s *ratls.Subject) { s.ID = strings.Repeat("ab", 20) }}, ratls.LinkAppEvidence},
		{"evidence that was not stated", scene{document: func(d *ratls.Document) { d.Apps[0].Quote = append(d.Apps[0].Quote, 0) }}, ratls.LinkAppEvidence},
		{"evidence missing", scene{apps: 2, document: func(d *ratls.Document) { d.Apps = d.Apps[:1] }}, ratls.LinkAppEvidence},
		{"evidence of another instance", scene{apps: 2, document: func(d *ratls.Document) { d.Apps[1] = d.Apps[0] }}, ratls.LinkAppEvidence},
		{"a KMS's word", scene{binding: ratls.BindingAppInfo}, ratls.LinkAppQuote},
		{"tampered quote of an app", scene{appVM: simtdx.VM{Tamper: simtdx.TamperBody}}, ratls.LinkAppQuote},
		{"debuggable app", scene{appVM: simtdx.VM{Debug: true}}, ratls.LinkAppQuote},
		{"app's platform out of date", scene{app: simtdx.MachineOptions{Platform: ratls.StatusSWHardeningNeeded}}, ratls.LinkAppTCB},
		{"app's log", scene{appVM: simtdx.VM{EditLog: func(e []ratls.Event) []ratls.Event { return e[:len(e)-1] }}}, ratls.LinkReplay},
		{"app's log changed afterwards", scene{document: func(d *ratls.Document) { d.Apps[0].EventLog[1].Payload[0] ^= 1 }}, ratls.LinkReplay},
		{"app's log with another version", scene{document: func(d *ratls.Document) { d.Apps[0].EventLog[1].Version = 2 }}, ratls.LinkReplay},
		{"app's log with a false preimage", scene{document: func(d *ratls.Document) { d.Apps[0].EventLog[1].Preimage = []byte{1} }}, ratls.LinkReplay},
		{"other app", scene{subject: func(s *ratls.Subject) { s.ID = strings.Repeat("ab", 20) }}, ratls.LinkAppIdentity},
		{"other app stated", scene{statement: func(s *ratls.Statement) { s.App.ID = strings.Repeat("ab", 20) }}, ratls.LinkAppIdentity},
		{"other compose text", scene{document: func(d *ratls.Document) { d.Apps[0].AppCompose += " " }}, ratls.LinkAppCompose},
		{"compose text missing", scene{document: func(d *ratls.Document) { d.Apps[0].AppCompose = "" }}, ratls.LinkAppCompose},
		{"app statement that was not quoted", scene{evidence: func(e *ratls.AppEvidence) { e.Statement = strings.Replace(e.Statement, "q83v", "q82v", 1) }}, ratls.LinkAppBinding},
		{"stronger binding's name", scene{binding: ratls.BindingCertificate, document: func(d *ratls.Document) {
			d.Apps[0].Binding, d.Apps[0].Statement, d.Apps[0].SPKI, d.Apps[0].AppCompose = ratls.BindingWireGuard, "{}", nil, sceneCompose
		}}, ratls.LinkAppBinding},
		{"app statement of the future", scene{said: func(s *ratls.AppStatement) { s.IssuedAt = s.IssuedAt.Add(time.Hour) }}, ratls.LinkAppBinding},
		{"app that answers no challenge", scene{subject: func(s *ratls.Subject) { s.FreshApp = true }}, ratls.LinkAppFresh},
		{"guest that answers no challenge", scene{binding: ratls.BindingCertificate, subject: func(s *ratls.Subject) { s.FreshApp = true }}, ratls.LinkAppFresh},
		{"other WireGuard key", scene{statement: func(s *ratls.Statement) {
			s.App.Instances[0].WGPublicKey = "AAAAEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA="
		}}, ratls.LinkWireGuardKey},
		{"app statement of another instance", scene{said: func(s *ratls.AppStatement) { s.InstanceID = strings.Repeat("ab", 20) }}, ratls.LinkInstance},
		{"app statement of another app", scene{said: func(s *ratls.AppStatement) { s.AppID = strings.Repeat("ab", 20) }}, ratls.LinkInstance},
		{"second of two instances", scene{apps: 2, document: func(d *ratls.Document) { d.Apps[1].AppCompose += " " }}, ratls.LinkAppCompose},
	}
}

// replace changes the first old of a document; swap that of a statement.
func replace(old, new string) func([]byte) []byte {
	return func(b []byte) []byte {
		if !bytes.Contains(b, []byte(old)) {
			panic("nothing to replace: " + old)
		}
		return bytes.Replace(b, []byte(old), []byte(new), 1)
	}
}

func swap(old, new string) func(string) string {
	return func(s string) string { return string(replace(old, new)([]byte(s))) }
}
