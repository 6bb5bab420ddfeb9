package web_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// scene is a document under construction, and what its relying party knows. The zero value of every field is good.
type scene struct {
	gateway, app     simtdx.MachineOptions
	gatewayVM, appVM simtdx.VM
	faults           simtdx.Faults
	revoked          bool          // the gateway's machine
	binding          ratls.Binding // of the app; BindingWireGuard when ""
	apps             int           // instances; 1 when 0, none when negative
	leaves           int           // challenges that were answered together; 1 when 0, none when negative
	exporter         bool          // bound to the connection

	evidence  func(*ratls.AppEvidence)  // changes the app's evidence before it is stated
	said      func(*ratls.AppStatement) // changes the app's statement before it is quoted
	statement func(*ratls.Statement)    // changes the gateway's statement before it is quoted
	text      func(string) string       // changes its text before it is quoted
	document  func(*ratls.Document)     // changes the document at the end
	bytes     func([]byte) []byte       // changes its bytes
	subject   func(*ratls.Subject)      // changes what the relying party knows
	foreign   bool                      // the relying party accepts another root
	later     time.Duration             // by which it looks at the document
}

// shot is a finished scene.
type shot struct {
	document []byte
	subject  ratls.Subject
	roots    []ratls.VerifierConfig
	now      time.Time
}

const (
	sceneHost    = "dstack.example.com"
	sceneCompose = `{"manifest_version":2,"name":"hello","runner":"docker-compose","docker_compose_file":"services:\n  web:\n    image: hello\n"}`
	wgKey        = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA="
)

var sceneSPKI = []byte("the key of this connection")

// studio is where scenes are shot: a vendor at one time, with machines and collateral that many scenes share.
type studio struct {
	*simtdx.Authority
	now        time.Time
	machines   map[simtdx.MachineOptions]*simtdx.Machine
	collateral map[simtdx.Faults][]ratls.Collateral
}

func newStudio(t *testing.T) *studio {
	t.Helper()
	now := time.Now().Truncate(time.Second)
	authority, err := simtdx.New(simtdx.Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return &studio{authority, now, map[simtdx.MachineOptions]*simtdx.Machine{}, map[simtdx.Faults][]ratls.Collateral{}}
}

// shoot builds the document that a scene describes.
func (st *studio) shoot(t *testing.T, s scene) shot {
	t.Helper()
	now := st.now
	if s.binding == "" {
		s.binding = ratls.BindingWireGuard
	}
	out := shot{now: now.Add(s.later), roots: []ratls.VerifierConfig{{Root: st.Root()}}, subject: ratls.Subject{Host: "gateway." + sceneHost, SPKI: sceneSPKI}}
	doc := &ratls.Document{Format: ratls.Format, Apps: []ratls.AppEvidence{}}
	said := ratls.Statement{Host: out.subject.Host, Node: "node-1", TLS: []ratls.TLSKey{{SPKI: sha256.Sum256(sceneSPKI), NotAfter: now.Add(time.Hour), Use: ratls.KeyCurrent}},
		ACMEAccount: "https://ca.example/acct/1", CAA: []string{`0 issue "ca.example"`}, IssuedAt: now, ExpiresAt: now.Add(5 * time.Minute)}
	if s.apps >= 0 {
		said.App = &ratls.StatementApp{}
		for i := range max(s.apps, 1) {
			e, info := st.instance(t, s, i)
			doc.Apps = append(doc.Apps, *e)
			said.App.ID = hex.EncodeToString(info.AppID)
			said.App.Instances = append(said.App.Instances, ratls.StatementInstance{ID: e.InstanceID, WGPublicKey: wgKey, EvidenceSHA256: e.SHA256()})
		}
		out.subject.ID = said.App.ID
		out.subject.Host = said.App.ID + "." + sceneHost
		said.Host = out.subject.Host
	}
	if s.statement != nil {
		s.statement(&said)
	}
	var err error
	if doc.Statement, err = said.Text(); err != nil {
		t.Fatal(err)
	}
	if s.text != nil {
		doc.Statement = s.text(doc.Statement)
	}
	s.challenge(t, doc, &out.subject)
	td := st.boot(t, s.gateway, s.gatewayVM)
	doc.Gateway = ratls.GatewayEvidence{Kind: td.Kind(), Quote: quote(t, td, ratls.GatewayReportData(doc.Challenge.Root, []byte(doc.Statement))), EventLog: eventLog(t, td), VMConfig: td.VMConfig()}
	if s.revoked {
		s.faults.RevokedMachine = st.machines[s.gateway]
	}
	doc.Collateral = st.vendorSays(t, s.faults)
	if s.document != nil {
		s.document(doc)
	}
	if out.document, err = json.Marshal(doc); err != nil {
		t.Fatal(err)
	}
	if s.bytes != nil {
		out.document = s.bytes(out.document)
	}
	if s.subject != nil {
		s.subject(&out.subject)
	}
	if s.foreign {
		out.roots[0].Root = newStudio(t).Root()
	}
	return out
}

// instance boots an app and gathers its evidence.
func (st *studio) instance(t *testing.T, s scene, i int) (*ratls.AppEvidence, ratls.AppInfo) {
	t.Helper()
	vm := s.appVM
	if vm.AppCompose == "" {
		vm.AppCompose = sceneCompose
	}
	if vm.InstanceSeed == nil {
		vm.InstanceSeed = []byte{byte(i)}
	}
	td := st.boot(t, s.app, vm)
	info, err := td.Info()
	if err != nil {
		t.Fatal(err)
	}
	e := &ratls.AppEvidence{InstanceID: hex.EncodeToString(info.InstanceID), Kind: td.Kind(), Binding: s.binding, EventLog: eventLog(t, td), VMConfig: td.VMConfig()}
	if e.InstanceID == "" {
		e.InstanceID = "00000000000000000000000000000000000000aa"
	}
	switch s.binding {
	case ratls.BindingWireGuard:
		said := ratls.AppStatement{AppID: hex.EncodeToString(info.AppID), InstanceID: e.InstanceID, WGPublicKey: wgKey, Challenge: hex.EncodeToString(make([]byte, 32)), IssuedAt: st.now}
		if s.said != nil {
			s.said(&said)
		}
		if e.Statement, err = said.Text(); err != nil {
			t.Fatal(err)
		}
		e.Quote, e.AppCompose = quote(t, td, ratls.TaggedReportData(ratls.TagWireGuard, []byte(e.Statement))), vm.AppCompose
	case ratls.BindingCertificate:
		e.SPKI = []byte("the key that the app registered with")
		e.Quote = quote(t, td, ratls.TaggedReportData(ratls.TagCertificate, e.SPKI))
	case ratls.BindingAppInfo:
		e.Kind = ""
	}
	if s.evidence != nil {
		s.evidence(e)
	}
	return e, info
}

// challenge puts the relying party's nonce among others.
func (s scene) challenge(t *testing.T, doc *ratls.Document, subject *ratls.Subject) {
	t.Helper()
	doc.Challenge.Path = []ratls.PathStep{}
	if s.leaves < 0 {
		return
	}
	var leaves [][32]byte
	for i := range max(s.leaves, 1) {
		nonce := sha256.Sum256([]byte{byte(i)})
		c := ratls.Challenge{Nonce: nonce[:]}
		if s.exporter {
			exporter := sha256.Sum256(nonce[:])
			c.Exporter = exporter[:]
		}
		leaf, err := c.Leaf()
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leaf)
		subject.Nonce, subject.Exporter = c.Nonce, c.Exporter
	}
	root, paths, err := ratls.Tree(leaves)
	if err != nil {
		t.Fatal(err)
	}
	doc.Challenge.Nonce, doc.Challenge.Root = (*ratls.Digest)(subject.Nonce), root
	doc.Challenge.Path = append(doc.Challenge.Path, paths[len(paths)-1]...)
	if s.exporter {
		doc.Challenge.TLSExporter = (*ratls.Digest)(subject.Exporter)
	}
}

// vendorSays is the collateral with faults, a copy.
func (st *studio) vendorSays(t *testing.T, faults simtdx.Faults) []ratls.Collateral {
	t.Helper()
	if st.collateral[faults] == nil {
		v, err := ratls.NewVerifier(ratls.VerifierConfig{Root: st.Root(), Getter: st.Faulty(faults), Now: func() time.Time { return st.now }})
		if err != nil {
			t.Fatal(err)
		}
		if st.collateral[faults], err = v.Collateral(t.Context(), quote(t, st.boot(t, simtdx.MachineOptions{}, simtdx.VM{}), ratls.ReportData{})); err != nil {
			t.Fatal(err)
		}
	}
	list := slices.Clone(st.collateral[faults])
	for i := range list {
		list[i].Body = bytes.Clone(list[i].Body)
	}
	return list
}

// boot starts a domain on the machine of some options.
func (st *studio) boot(t *testing.T, o simtdx.MachineOptions, vm simtdx.VM) *simtdx.TD {
	t.Helper()
	var err error
	if st.machines[o] == nil {
		if st.machines[o], err = st.Machine(o); err != nil {
			t.Fatal(err)
		}
	}
	td, err := st.machines[o].Boot(vm)
	if err != nil {
		t.Fatal(err)
	}
	return td
}

func quote(t *testing.T, td *simtdx.TD, data ratls.ReportData) ratls.Base64 {
	t.Helper()
	raw, err := td.Quote(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func eventLog(t *testing.T, td *simtdx.TD) []ratls.Event {
	t.Helper()
	events, err := td.EventLog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return events
}

// walk is the Go verifier's view of a shot.
func (s shot) walk(ctx context.Context) ratls.Report {
	return ratls.Chain{Roots: s.roots, Now: func() time.Time { return s.now }}.Verify(ctx, s.document, s.subject)
}

// brief is what two verifiers have to agree on.
func brief(checks []ratls.Check, simulated bool) []string {
	lines := []string{fmt.Sprint("simulated ", simulated)}
	for _, c := range checks {
		lines = append(lines, fmt.Sprintf("%s: %s %s", c.Hop, c.Status, c.Name))
	}
	return lines
}
