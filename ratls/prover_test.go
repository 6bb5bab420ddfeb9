package ratls_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
)

// proverTest is a gateway's platform, its prover, and one instance behind it.
type proverTest struct {
	gateway, app *simtdx.TD
	verifier     *ratls.Verifier
	prover       *ratls.Prover
	statement    ratls.Statement
	evidence     []ratls.AppEvidence
}

func newProverTest(t testing.TB, gateway simtdx.VM) *proverTest {
	t.Helper()
	authority, err := simtdx.New(simtdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	start := func(vm simtdx.VM) *simtdx.TD {
		m, err := authority.Machine(simtdx.MachineOptions{})
		if err != nil {
			t.Fatal(err)
		}
		td, err := m.Boot(vm)
		if err != nil {
			t.Fatal(err)
		}
		return td
	}
	p := &proverTest{gateway: start(gateway), app: start(simtdx.VM{AppCompose: `{"name":"<app> & more"}`})}
	if p.verifier, err = ratls.NewVerifier(ratls.VerifierConfig{Root: authority.Root(), Getter: authority.Getter()}); err != nil {
		t.Fatal(err)
	}
	if p.prover, err = ratls.NewProver(ratls.ProverConfig{Platform: p.gateway, Verifier: p.verifier, ReferenceValues: &ratls.ReferenceValues{URL: "https://example.com/values"}}); err != nil {
		t.Fatal(err)
	}
	info, err := p.app.Info()
	if err != nil {
		t.Fatal(err)
	}
	key := tunnel.NewPrivateKey().PublicKey().String()
	e, err := ratls.NewAppEvidence(t.Context(), p.app, ratls.AppStatement{
		AppID: hex.EncodeToString(info.AppID), InstanceID: hex.EncodeToString(info.InstanceID), WGPublicKey: key,
		Challenge: strings.Repeat("00", 32), IssuedAt: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	p.evidence = []ratls.AppEvidence{*e}
	p.statement = ratls.Statement{
		Host: "app.example.com", Node: "<node>", TLS: []ratls.TLSKey{{NotAfter: time.Now().Add(time.Hour), Use: ratls.KeyCurrent}},
		App:      &ratls.StatementApp{ID: hex.EncodeToString(info.AppID), Instances: []ratls.StatementInstance{{ID: e.InstanceID, WGPublicKey: key, EvidenceSHA256: e.SHA256()}}},
		IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Minute),
	}
	return p
}

// challengesOf makes n challenges that differ, every third bound to a connection.
func challengesOf(n int) []ratls.Challenge {
	list := make([]ratls.Challenge, n)
	for i := range list {
		list[i].Nonce = bytes.Repeat([]byte{byte(i)}, ratls.NonceSize)
		list[i].Nonce[0] = byte(i >> 8)
		if i%3 == 0 {
			list[i].Exporter = bytes.Repeat([]byte{0xee}, ratls.ExporterSize)
		}
	}
	return list
}

func TestOneQuoteAnswersEveryChallengeOfABatch(t *testing.T) {
	p := newProverTest(t, simtdx.VM{AppCompose: "gateway"})
	for _, n := range []int{1, 2, 3, 7, 600} {
		list := challengesOf(n)
		cs, err := ratls.NewChallenges(list)
		if err != nil {
			t.Fatal(err)
		}
		b, err := p.prover.ProveBatch(t.Context(), p.statement, cs, p.evidence)
		if err != nil {
			t.Fatal(err)
		}
		if b.Len() != n || cs.Len() != n {
			t.Fatalf("%d documents for %d challenges", b.Len(), n)
		}
		first := b.Document(0)
		for i, c := range list {
			d := b.Document(i)
			if i == 0 || i == n-1 {
				d = readBack(t, b, i)
			}
			leaf, err := c.Leaf()
			if err != nil {
				t.Fatal(err)
			}
			if ratls.Root(leaf, d.Challenge.Path) != [32]byte(cs.Root()) || !bytes.Equal(d.Challenge.Nonce[:], c.Nonce) || (d.Challenge.TLSExporter == nil) != (c.Exporter == nil) {
				t.Fatalf("challenge %d of %d is not below the root: %+v", i, n, d.Challenge)
			}
			if !bytes.Equal(d.Gateway.Quote, first.Gateway.Quote) {
				t.Fatal("two quotes in one batch")
			}
		}
		q, err := p.verifier.Verify(t.Context(), first.Gateway.Quote)
		if err != nil || q.ReportData != ratls.GatewayReportData(cs.Root(), []byte(first.Statement)) {
			t.Errorf("the quote is over %v (%v), not over root and statement", q.ReportData, err)
		}
	}
}

// readBack parses the text of a document, and holds it to the document.
func readBack(t *testing.T, b *ratls.Batch, i int) *ratls.Document {
	t.Helper()
	pieces, err := b.Text(i)
	if err != nil {
		t.Fatal(err)
	}
	d, err := ratls.ParseDocument(bytes.Join(pieces[:], nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.Document(i), d, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the text of a document says something else (-document +text):\n%s", diff)
	}
	return d
}

func TestTheTextOfADocumentIsThatOfItsMembers(t *testing.T) {
	p := newProverTest(t, simtdx.VM{})
	b, err := p.prover.ProveBatch(t.Context(), p.statement, nil, p.evidence)
	if err != nil {
		t.Fatal(err)
	}
	pieces, err := b.Text(0)
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	encoder := json.NewEncoder(&want)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(b.Document(0)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), string(bytes.Join(pieces[:], nil))+"\n"); diff != "" || b.Len() != 1 {
		t.Errorf("%d documents, (-marshalled +text):\n%s", b.Len(), diff)
	}
}

func TestProvingRefusesWhatItCannotCover(t *testing.T) {
	p := newProverTest(t, simtdx.VM{})
	other := newProverTest(t, simtdx.VM{})
	for name, row := range map[string]struct {
		edit func(*ratls.Statement)
		apps []ratls.AppEvidence
		want string
	}{
		"no evidence":              {nil, nil, "names 1"},
		"another instance's":       {nil, other.evidence, "has no evidence"},
		"evidence twice":           {nil, append(p.evidence, p.evidence...), "names 1"},
		"another evidence":         {func(s *ratls.Statement) { s.App.Instances[0].EvidenceSHA256 = strings.Repeat("ab", 32) }, p.evidence, "names"},
		"a statement without host": {func(s *ratls.Statement) { s.Host = "" }, p.evidence, "host"},
	} {
		t.Run(name, func(t *testing.T) {
			s := p.statement
			app := *s.App
			app.Instances = append([]ratls.StatementInstance{}, app.Instances...)
			s.App = &app
			if row.edit != nil {
				row.edit(&s)
			}
			if _, err := p.prover.Prove(t.Context(), s, nil, row.apps); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want it to say %q", err, row.want)
			}
		})
	}
}

func TestChallengesOfTheWrongSizeAreRefused(t *testing.T) {
	good := challengesOf(1)[0]
	for name, list := range map[string][]ratls.Challenge{
		"none":              {},
		"nonce too short":   {good, {Nonce: make([]byte, 31)}},
		"nonce too long":    {good, {Nonce: make([]byte, 33)}},
		"exporter too long": {good, {Nonce: good.Nonce, Exporter: make([]byte, 33)}},
	} {
		if _, err := ratls.NewChallenges(list); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAProverWithoutItsPartsIsRefused(t *testing.T) {
	_, err := ratls.NewProver(ratls.ProverConfig{ReferenceValues: &ratls.ReferenceValues{URL: "http://example.com"}})
	for _, want := range []string{"platform", "verifier", "https"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name the %s", err, want)
		}
	}
}

func TestAQuoteThatDoesNotArriveEndsWithTheContext(t *testing.T) {
	p := newProverTest(t, simtdx.VM{QuoteLatency: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.prover.Prove(ctx, p.statement, nil, p.evidence); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
}

func BenchmarkProveBatch(b *testing.B) {
	p := newProverTest(b, simtdx.VM{})
	cs, err := ratls.NewChallenges(challengesOf(1000))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.prover.ProveBatch(b.Context(), p.statement, cs, p.evidence); err != nil {
			b.Fatal(err)
		}
	}
}
