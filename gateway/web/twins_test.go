package web_test

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/registry"
	"dstack.host/gateway/web"
	"dstack.host/ratls"
)

// TestDamageIsFoundWhereGoFindsIt flips bits all over a quote and the collateral: the signatures cover everything that counts, and
// what they do not cover has to be judged alike.
func TestDamageIsFoundWhereGoFindsIt(t *testing.T) {
	dir := modules(t)
	studio := newStudio(t)
	good := studio.shoot(t, scene{apps: -1})
	seed := uint64(studio.now.Unix())
	random := rand.New(rand.NewPCG(seed, 0))
	var shots []shot
	for range 60 {
		doc, err := ratls.ParseDocument(good.document)
		if err != nil {
			t.Fatal(err)
		}
		parts := [][]byte{doc.Gateway.Quote, doc.Collateral[0].Body, doc.Collateral[1].Body, doc.Collateral[2].Body, doc.Collateral[3].Body}
		part := parts[random.IntN(len(parts))]
		part[random.IntN(len(part))] ^= 1 << random.IntN(8)
		bad := good
		if bad.document, err = json.Marshal(doc); err != nil {
			t.Fatal(err)
		}
		shots = append(shots, bad)
	}
	for i, got := range walks(t, dir, shots) {
		want := shots[i].walk(t.Context())
		if want.OK() != got.ok() {
			failed, _ := want.Failure()
			t.Errorf("seed %d, case %d: Go says %q, the page %t", seed, i, failed, got.ok())
		}
	}
}

func (o outcome) ok() bool { return ratls.Report{Checks: o.Checks}.OK() }

func TestThePageKnowsIntelsRoot(t *testing.T) {
	dir := modules(t)
	var pem string
	node(t, "export.mjs", nil, &pem, filepath.Join(dir, "intel.js"), "intelRoot")
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(pem)) {
		t.Fatal("the page's root is not a certificate")
	}
	want := x509.NewCertPool()
	want.AddCert(ratls.IntelRoot())
	if !pool.Equal(want) {
		t.Error("the page has another root than ratls")
	}
}

func TestThePageHasTheLinksOfTheChain(t *testing.T) {
	dir := modules(t)
	var got []string
	node(t, "export.mjs", nil, &got, filepath.Join(dir, "chain.js"), "linkNames")
	var want []string
	for _, c := range (ratls.Chain{}).Verify(t.Context(), nil, ratls.Subject{}).Checks {
		want = append(want, c.Name)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the page has links %v, want %v", got, want)
	}
	for _, name := range want {
		page := render(t, web.Attestation{Checks: []web.Check{{Name: name, Status: web.Fail, Detail: "because"}}})
		if n := strings.Count(page, `data-link="`+name+`"`); n != 1 {
			t.Errorf("the page has %d places for link %s", n, name)
		}
	}
}

func TestThePageReadsNamesAsTheRegistryDoes(t *testing.T) {
	dir := modules(t)
	id, hash := strings.Repeat("0a", 20), strings.Repeat("a", 51)
	labels := []string{
		id, "0x" + id, id + "-80", id + "-8080s", id + "-8080g", id + "s", id + "g", id + "-s", id + "-g", hash + "a", hash + "q", hash + "qs", hash + "q-443s",
		"", "gateway", id[1:], id + "0", id + "-", id + "-0", id + "-65536", id + "-65535", id + "-080", id + "-80x", id + "-sg", id + "sg", id + "--80", "0x" + id + "s",
		hash + "b", hash + "1", hash, hash + "aa", strings.Repeat("ab", 32), "0x" + id[2:], "g" + id[1:], id + "-80-90", id + "-+80", id + "- 80",
	}
	type read struct {
		Host        string
		ID          string
		Passthrough bool
	}
	var got []read
	hosts := make([]string, len(labels))
	for i, l := range labels {
		hosts[i] = l + ".dstack.example.com"
	}
	node(t, "names.mjs", hosts, &got, dir)
	for i, label := range labels {
		want := read{Host: hosts[i]}
		if name, err := registry.ParseLabel(label); err == nil {
			want = read{Host: name.ID + ".dstack.example.com", ID: name.ID, Passthrough: name.Passthrough}
			if name.Kind == registry.KindCompose {
				h, err := registry.ParseComposeHash(name.ID)
				if err != nil {
					t.Fatal(err)
				}
				want.ID = hex.EncodeToString(h[:])
			}
		}
		if got[i] != want {
			t.Errorf("%q: the page reads %+v, the registry %+v", label, got[i], want)
		}
	}
}

func TestTheScriptIsOneModule(t *testing.T) {
	script := web.Script()
	for _, bad := range []string{"</script", "<!--", "\nimport ", "\nexport ", "innerHTML", "eval(", "https://cdn"} {
		if strings.Contains(script, bad) {
			t.Errorf("the script contains %q", bad)
		}
	}
	if n := strings.Count(script, "\n"); n > 1700 {
		t.Errorf("the script has %d lines", n)
	}
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("node is not installed: the script is not parsed")
	}
	check := exec.CommandContext(t.Context(), "node", "--input-type=module", "--check")
	check.Stdin = strings.NewReader(script)
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestThePageConvergesAsRatlsDoes runs the vectors that ratls is held to.
func TestThePageConvergesAsRatlsDoes(t *testing.T) {
	dir := modules(t)
	text, err := os.ReadFile("../../ratls/testdata/convergence.json")
	if err != nil {
		t.Fatal(err)
	}
	var want struct{ Rows []map[string]any }
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	node(t, "converge.mjs", json.RawMessage(text), &got, dir)
	if len(want.Rows) < 8*8*8 || len(got) != len(want.Rows) {
		t.Fatalf("%d rows of %d", len(got), len(want.Rows))
	}
	for i := range got {
		if diff := cmp.Diff(want.Rows[i], got[i]); diff != "" {
			t.Errorf("row %d (-want +got):\n%s", i, diff)
		}
	}
}
