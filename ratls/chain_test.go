package ratls_test

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
)

// network is a gateway with instances of one app behind it, and a relying party that accepts their vendor.
type network struct {
	*proverTest
	vendor  *simtdx.Authority
	subject ratls.Subject
	chain   ratls.Chain
}

// newNetwork has one instance for each binding.
func newNetwork(t testing.TB, bindings ...ratls.Binding) *network {
	t.Helper()
	vendor, err := simtdx.New(simtdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n := &network{proverTest: new(proverTest), vendor: vendor}
	n.gateway = boot(t, vendor, machine{}, vm{AppCompose: `{"name":"gateway"}`})
	n.verifier = verifier(t, vendor, vendor.Getter(), ratls.Policy{})
	if n.prover, err = ratls.NewProver(ratls.ProverConfig{Platform: n.gateway, Verifier: n.verifier}); err != nil {
		t.Fatal(err)
	}
	spki := []byte("key")
	n.statement = statement()
	n.statement.App.Instances = nil
	n.statement.TLS[0].SPKI = ratls.Digest(sum256(spki))
	n.statement.IssuedAt, n.statement.ExpiresAt = time.Now(), time.Now().Add(time.Minute)
	n.statement.TLS[0].NotAfter = time.Now().Add(time.Hour)
	nonce := make([]byte, ratls.NonceSize)
	for _, b := range bindings {
		n.join(t, b, nonce)
	}
	n.statement.Host = n.statement.App.ID + ".dstack.host"
	n.subject = ratls.Subject{Host: n.statement.Host, ID: n.statement.App.ID, SPKI: spki, Nonce: nonce}
	n.chain = ratls.Chain{Roots: []ratls.VerifierConfig{{}, {Root: vendor.Root()}}}
	return n
}

// join boots an instance whose evidence has a binding. A statement answers the challenge of nonce.
func (n *network) join(t testing.TB, binding ratls.Binding, nonce []byte) {
	t.Helper()
	td := boot(t, n.vendor, machine{}, vm{AppCompose: `{"name":"app"}`})
	info, err := td.Info()
	if err != nil {
		t.Fatal(err)
	}
	app, instance, key := hex.EncodeToString(info.AppID), hex.EncodeToString(info.InstanceID), tunnel.NewPrivateKey().PublicKey().String()
	leaf, err := ratls.Challenge{Nonce: nonce}.Leaf()
	if err != nil {
		t.Fatal(err)
	}
	var e *ratls.AppEvidence
	switch binding {
	case ratls.BindingWireGuard:
		e, err = ratls.NewAppEvidence(t.Context(), td, ratls.AppStatement{AppID: app, InstanceID: instance, WGPublicKey: key, Challenge: hex.EncodeToString(leaf[:]), IssuedAt: time.Now()})
	case ratls.BindingCertificate:
		c, failed := ratls.NewCertificate(t.Context(), td, ratls.CertOptions{})
		if failed != nil {
			t.Fatal(failed)
		}
		leaf, failed := x509.ParseCertificate(c.Certificate[0])
		if failed != nil {
			t.Fatal(failed)
		}
		e, err = ratls.CertificateEvidence(leaf, ratls.KindSimulatedTDX, info)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.evidence = append(n.evidence, *e)
	n.statement.App.ID = app
	n.statement.App.Instances = append(n.statement.App.Instances, ratls.StatementInstance{ID: instance, WGPublicKey: key, EvidenceSHA256: e.SHA256()})
}

// judged proves, with a change to the document, and walks the chain.
func (n *network) judged(t testing.TB, change func(*ratls.Document)) ratls.Report {
	t.Helper()
	d, err := n.prover.Prove(t.Context(), n.statement, &ratls.Challenge{Nonce: n.subject.Nonce, Exporter: n.subject.Exporter}, n.evidence)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(d)
	}
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return n.chain.Verify(t.Context(), text, n.subject)
}

// failures are the hops and names of the checks that failed.
func failures(r ratls.Report) string {
	var out []string
	for _, c := range r.Checks {
		if c.Status == ratls.Fail {
			out = append(out, c.Hop+" "+c.Name)
		}
	}
	return strings.Join(out, ", ")
}

// count is how many checks of a hop have a status.
func count(r ratls.Report, hop string, status ratls.Status) (n int) {
	for _, c := range r.Checks {
		if c.Hop == hop && c.Status == status {
			n++
		}
	}
	return n
}

func TestEveryInstanceIsJudgedByItself(t *testing.T) {
	n := newNetwork(t, ratls.BindingWireGuard, ratls.BindingCertificate, ratls.BindingWireGuard)
	r := n.judged(t, nil)
	if !r.OK() || !r.Simulated || len(r.Apps) != 3 || r.Statement == nil {
		t.Fatalf("failed %s: %+v", failures(r), r)
	}
	var hops []string
	for _, e := range n.evidence {
		hops = append(hops, "app "+e.InstanceID)
	}
	r = n.judged(t, func(d *ratls.Document) { d.Apps[0].EventLog = d.Apps[0].EventLog[1:]; d.Apps[2].Statement += " " })
	if got, want := failures(r), hops[0]+" "+ratls.LinkReplay+", "+hops[2]+" "+ratls.LinkAppBinding; got != want {
		t.Errorf("failed %s, want %s", got, want)
	}
	if got := count(r, hops[1], ratls.Pass); got != 6 {
		t.Errorf("%d checks of the sound instance passed: %+v", got, r.Checks)
	}
	for _, c := range r.Claims {
		if c.Hop == hops[2] && c.Name == "wg_public_key" {
			t.Errorf("the claim of a statement that nobody quoted: %+v", c)
		}
	}
}

func TestTheWeakerBindingIsNeverTakenForTheStronger(t *testing.T) {
	n := newNetwork(t, ratls.BindingCertificate)
	if r := n.judged(t, nil); !r.OK() || r.Apps[0].Binding != ratls.BindingCertificate {
		t.Errorf("failed %s", failures(r))
	}
	n.chain.RequireCompose = true
	if r := n.judged(t, func(d *ratls.Document) { d.Apps[0].AppCompose = "" }); !strings.HasSuffix(failures(r), " "+ratls.LinkAppCompose) {
		t.Errorf("without a compose text: failed %q", failures(r))
	}
	n.chain.RequireCompose = false
	n.chain.RequireWireGuard = true
	if r := n.judged(t, nil); !strings.HasSuffix(failures(r), " "+ratls.LinkWireGuardKey) {
		t.Errorf("failed %q", failures(r))
	}
	n.subject.FreshApp = true
	if r := n.judged(t, nil); !strings.HasSuffix(failures(r), " "+ratls.LinkAppFresh) {
		t.Errorf("failed %q", failures(r))
	}
}

func TestAFreshInstanceAnswersTheRootOfTheChallenge(t *testing.T) {
	n := newNetwork(t, ratls.BindingWireGuard)
	n.chain.RequireWireGuard = true
	n.subject.FreshApp = true
	if r := n.judged(t, nil); !r.OK() {
		t.Errorf("failed %s", failures(r))
	}
	n.subject.Nonce[0]++
	if r := n.judged(t, nil); !strings.HasSuffix(failures(r), " "+ratls.LinkAppFresh) {
		t.Errorf("an older answer: failed %q", failures(r))
	}
}

func TestTheGatewaysOwnNameHasNoApp(t *testing.T) {
	n := newNetwork(t, ratls.BindingWireGuard)
	n.subject.ID = ""
	if r := n.judged(t, nil); failures(r) != "statement "+ratls.LinkAppEvidence {
		t.Errorf("an app behind it: failed %q", failures(r))
	}
	n.statement.App, n.evidence = nil, nil
	r := n.judged(t, nil)
	if !r.OK() || count(r, "app", ratls.Skip) != 10 || len(r.Apps) > 0 {
		t.Errorf("failed %q: %+v", failures(r), r.Checks)
	}
	n.subject.ID = someApp
	if r := n.judged(t, nil); failures(r) != "statement "+ratls.LinkAppEvidence {
		t.Errorf("no app where there should be one: failed %q", failures(r))
	}
}

func TestNothingIsBelievedOfWhatWasNotReached(t *testing.T) {
	n := newNetwork(t, ratls.BindingWireGuard)
	n.chain.Gateway.AppIDs = []ratls.Hex{make(ratls.Hex, 20)}
	r := n.judged(t, nil)
	if failures(r) != "gateway "+ratls.LinkGatewayPins || r.Statement != nil || len(r.Apps) > 0 {
		t.Errorf("failed %q, statement %v, apps %v", failures(r), r.Statement, r.Apps)
	}
	for _, c := range r.Claims {
		if c.Hop != ratls.HopGateway || c.Source == ratls.FromStatement {
			t.Errorf("a claim of what was not reached: %+v", c)
		}
	}
	if got := count(r, "app", ratls.Skip); got != 10 {
		t.Errorf("%d links of instances are told, want 10", got)
	}
	if r := n.chain.Verify(t.Context(), nil, n.subject); failures(r) != "gateway "+ratls.LinkDocument || r.Claims != nil {
		t.Errorf("without a document: %+v", r)
	}
}

func TestEveryPinIsHeld(t *testing.T) {
	n := newNetwork(t, ratls.BindingWireGuard)
	r := n.judged(t, nil)
	q, info := r.Apps[0].Quote, r.Apps[0].Info
	fmspc, err := hex.DecodeString(q.FMSPC)
	if err != nil {
		t.Fatal(err)
	}
	lists := func(p *ratls.Pins) []*[]ratls.Hex {
		return []*[]ratls.Hex{&p.AppIDs, &p.ComposeHashes, &p.MRAggregated, &p.MRSystem, &p.OSImageHashes, &p.MRTD, &p.RTMR0, &p.RTMR1, &p.RTMR2, &p.FMSPCs, &p.PPIDs}
	}
	measured := [][]byte{info.AppID, info.ComposeHash, info.MRAggregated, info.MRSystem, info.OSImageHash, q.MRTD[:], q.RTMR[0][:], q.RTMR[1][:], q.RTMR[2][:], fmspc, q.PPID}
	if (ratls.Pins{}).Judge(nil, ratls.AppInfo{}) != nil || !(ratls.Pins{}).Empty() {
		t.Error("no pins are pins")
	}
	for i, value := range measured {
		good, bad, both, empty := new(ratls.Pins), new(ratls.Pins), new(ratls.Pins), new(ratls.Pins)
		other := slices.Clone(value)
		other[0] ^= 1
		*lists(good)[i], *lists(bad)[i] = []ratls.Hex{value}, []ratls.Hex{other}
		*lists(both)[i], *lists(empty)[i] = []ratls.Hex{other, value}, []ratls.Hex{{}}
		if len(good.OSImageHashes) > 0 { // no quote covers it, so it counts only beside something that does
			if err := good.Judge(q, info); err == nil || !strings.Contains(err.Error(), "pins nothing without") {
				t.Errorf("an OS image hash alone: %v", err)
			}
			for _, p := range []*ratls.Pins{good, bad, both, empty} {
				p.MRTD, p.RTMR1, p.RTMR2 = []ratls.Hex{q.MRTD[:]}, []ratls.Hex{q.RTMR[1][:]}, []ratls.Hex{q.RTMR[2][:]}
			}
		}
		if good.Judge(q, info) != nil || both.Judge(q, info) != nil {
			t.Errorf("list %d: %v, %v", i, good.Judge(q, info), both.Judge(q, info))
		}
		if bad.Judge(q, info) == nil || good.Judge(nil, ratls.AppInfo{}) == nil || empty.Judge(nil, ratls.AppInfo{}) == nil || empty.Judge(q, info) == nil || bad.Empty() {
			t.Errorf("list %d holds nothing: %v, %v, %v", i, bad.Judge(q, info), good.Judge(nil, ratls.AppInfo{}), empty.Judge(nil, ratls.AppInfo{}))
		}
	}
	info.KeyProviderInfo = ratls.Hex(`{"name":"kms","id":"00ff"}`)
	for _, row := range []struct {
		pins ratls.Pins
		ok   bool
	}{
		{ratls.Pins{KeyProviders: []string{"kms"}, KeyProviderIDs: []string{"00ff"}}, true},
		{ratls.Pins{KeyProviders: []string{"tpm"}}, false},
		{ratls.Pins{KeyProviders: []string{"kms"}, KeyProviderIDs: []string{"01ff"}}, false},
		{ratls.Pins{KeyProviders: []string{""}}, false},
	} {
		if err := row.pins.Judge(q, info); (err == nil) != row.ok {
			t.Errorf("%+v: %v", row.pins, err)
		}
	}
	info.KeyProviderInfo = ratls.Hex(`{"name":"kms","name":"tpm"}`)
	if err := (ratls.Pins{KeyProviders: []string{"kms", "tpm"}}).Judge(q, info); err == nil || !strings.Contains(err.Error(), "key provider (none)") {
		t.Errorf("a provider by two names: %v", err)
	}
	if err := (ratls.Pins{AppIDs: []ratls.Hex{{1}}, MRTD: []ratls.Hex{{1}}}).Judge(q, info); err == nil || strings.Count(err.Error(), "is not one of") != 2 {
		t.Errorf("not all faults are told: %v", err)
	}
}
