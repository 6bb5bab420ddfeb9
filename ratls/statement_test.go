package ratls_test

import (
	"bytes"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"os"
	"strings"
	"testing"
	"time"

	"dstack.host/ratls"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

const (
	someApp      = "1111111111111111111111111111111111111111"
	someInstance = "2222222222222222222222222222222222222222"
)

var someKey = base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{3}, 32))

func statement() ratls.Statement {
	return ratls.Statement{
		Host: someApp + ".dstack.host", Node: "a", CAA: []string{},
		TLS:      []ratls.TLSKey{{SPKI: ratls.Digest{1}, NotAfter: now.Add(time.Hour), Use: ratls.KeyCurrent}},
		App:      &ratls.StatementApp{ID: someApp, Instances: []ratls.StatementInstance{{ID: someInstance, WGPublicKey: someKey}}},
		IssuedAt: now, ExpiresAt: now.Add(5 * time.Minute),
	}
}

func TestReportDataMatchesDstack(t *testing.T) {
	for tag, want := range map[string]string{
		ratls.TagCertificate:   "8d07f3b3f589a432d16fdfd740d895d227a184d069523af8d06ed879f4787c1dde7582d00c5908d22ee28ee10870ba26cce2bbfcd033299071c6e79553eff4f8",
		ratls.TagZTCertificate: "de59c5ef9f3905eb186993bb20db2dbaa3b638b237fb9eedbb52fa943bcba8e401f119dd9a7f5dd46955dc0457b8fee9ca97da8b8ba4b4ecc738855e19337d56",
	} {
		if got := ratls.TaggedReportData(tag, []byte("test-public-key")); got.String() != want {
			t.Errorf("%s gives %s, want %s", tag, got, want)
		}
	}
	text := []byte("x")
	digest := sum256(text)
	want := sha512.Sum512(append(append([]byte("ra-https-v1:"), make([]byte, 32)...), digest...))
	if got := ratls.GatewayReportData([32]byte{}, text); got != ratls.ReportData(want) {
		t.Errorf("the gateway's report data is %s, want %x", got, want)
	}
}

func sum256(b []byte) []byte {
	sum, _ := hex.DecodeString(sha256Hex(b))
	return sum
}

func TestEveryLeafOfATreeHasAWayToItsRoot(t *testing.T) {
	for n := 1; n <= 33; n++ {
		leaves := make([][32]byte, n)
		for i := range leaves {
			leaf, err := ratls.Challenge{Nonce: bytes.Repeat([]byte{byte(i)}, 32)}.Leaf()
			if err != nil {
				t.Fatal(err)
			}
			leaves[i] = leaf
		}
		root, paths, err := ratls.Tree(leaves)
		if err != nil {
			t.Fatal(err)
		}
		for i := range leaves {
			if ratls.Root(leaves[i], paths[i]) != root {
				t.Errorf("leaf %d of %d does not lead to the root", i, n)
			}
			if n > 1 && ratls.Root(leaves[i], paths[(i+1)%n]) == root {
				t.Errorf("leaf %d of %d leads to the root by another's way", i, n)
			}
		}
	}
	if _, _, err := ratls.Tree(nil); err == nil {
		t.Error("a tree without leaves has a root")
	}
}

func TestChallengesHaveOneSize(t *testing.T) {
	exporter := bytes.Repeat([]byte{1}, 32)
	for _, c := range []ratls.Challenge{{}, {Nonce: make([]byte, 31)}, {Nonce: make([]byte, 33)}, {Nonce: make([]byte, 64)}, {Nonce: make([]byte, 32), Exporter: make([]byte, 31)}} {
		if _, err := c.Leaf(); err == nil {
			t.Errorf("a nonce of %d and an exporter of %d bytes are accepted", len(c.Nonce), len(c.Exporter))
		}
	}
	with, err := ratls.Challenge{Nonce: make([]byte, 32), Exporter: exporter}.Leaf()
	if err != nil {
		t.Fatal(err)
	}
	if without, _ := (ratls.Challenge{Nonce: make([]byte, 32)}).Leaf(); with == without {
		t.Error("the exporter is not in the leaf")
	}
}

func TestStatementsRoundTripAsText(t *testing.T) {
	text, err := statement().Text()
	if err != nil {
		t.Fatal(err)
	}
	read, err := ratls.ParseStatement(text)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := read.Text(); err != nil || again != text {
		t.Errorf("%v\n%s\n%s", err, text, again)
	}
	if strings.Contains(text, "null") {
		t.Errorf("the statement says null where a list is: %s", text)
	}
}

// member replaces, or with value "-" removes, one member of a JSON object by its path.
func member(t *testing.T, text, path, value string) string {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		t.Fatal(err)
	}
	at, names := object, strings.Split(path, ".")
	for _, name := range names[:len(names)-1] {
		at = at[name].(map[string]any)
	}
	if value == "-" {
		delete(at, names[len(names)-1])
	} else {
		at[names[len(names)-1]] = json.RawMessage(value)
	}
	out, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestStatementsAreReadStrictly(t *testing.T) {
	text, err := statement().Text()
	if err != nil {
		t.Fatal(err)
	}
	instance := `{"id":"` + someInstance + `","wg_public_key":"` + someKey + `","evidence_sha256":""}`
	for name, hostile := range map[string]string{
		"unknown member":        member(t, text, "more", `1`),
		"missing member":        member(t, text, "caa", "-"),
		"missing app":           member(t, text, "app", "-"),
		"null host":             member(t, text, "host", `null`),
		"null list":             member(t, text, "tls", `null`),
		"a member twice":        strings.Replace(text, `{`, `{"host":"evil",`, 1),
		"a member in capitals":  strings.Replace(text, `"host"`, `"Host"`, 1),
		"another purpose":       member(t, text, "purpose", `"dstack-wg-v1"`),
		"no keys":               member(t, text, "tls", `[]`),
		"a key without a use":   strings.Replace(text, `"current"`, `"later"`, 1),
		"host in capitals":      member(t, text, "host", `"A.dstack.host"`),
		"host with a dot":       member(t, text, "host", `"a.dstack.host."`),
		"ends before it begins": member(t, text, "expires_at", `"2026-11-24T11:00:00Z"`),
		"an unknown identity":   member(t, text, "app.instances", `[`+strings.TrimSuffix(instance, "}")+`,"identity":"word of mouth"}]`),
		"a short app id":        member(t, text, "app.id", `"11"`),
		"an app id in capitals": member(t, text, "app.id", `"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"`),
		"no instances":          member(t, text, "app.instances", `[]`),
		"an instance twice":     member(t, text, "app.instances", `[`+instance+`,`+instance+`]`),
		"a key of 31 bytes":     strings.Replace(text, someKey, base64.StdEncoding.EncodeToString(make([]byte, 31)), 1),
		"more behind":           text + "{}",
		"a list":                "[" + text + "]",
		"deep":                  member(t, text, "node", strings.Repeat(`[`, 60)+strings.Repeat(`]`, 60)),
		"huge":                  member(t, text, "node", `"`+strings.Repeat("x", 2<<20)+`"`),
		"not UTF-8":             strings.Replace(text, `"node":"a"`, "\"node\":\"\xff\"", 1),
		"nothing":               "",
		"only null":             "null",
	} {
		if _, err := ratls.ParseStatement(hostile); err == nil {
			t.Errorf("%s: accepted\n%.300s", name, hostile)
		}
	}
}

func TestAppStatementsAreReadStrictly(t *testing.T) {
	sound := ratls.AppStatement{AppID: someApp, InstanceID: someInstance, WGPublicKey: someKey, Challenge: strings.Repeat("ab", 32), IssuedAt: now}
	text, err := sound.Text()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ratls.ParseAppStatement(text); err != nil {
		t.Fatal(err)
	}
	for name, hostile := range map[string]string{
		"another purpose":   member(t, text, "purpose", `"ra-https-v1"`),
		"unknown member":    member(t, text, "more", `1`),
		"missing challenge": member(t, text, "challenge", "-"),
		"null key":          member(t, text, "wg_public_key", `null`),
		"short challenge":   member(t, text, "challenge", `"ab"`),
		"key in hex":        member(t, text, "wg_public_key", `"`+strings.Repeat("ab", 32)+`"`),
		"long":              member(t, text, "purpose", `"`+strings.Repeat("x", 5000)+`"`),
	} {
		if _, err := ratls.ParseAppStatement(hostile); err == nil {
			t.Errorf("%s: accepted\n%.300s", name, hostile)
		}
	}
}

func FuzzStatement(f *testing.F) {
	text, err := statement().Text()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ratls.ParseStatement(text)
		if err != nil {
			return
		}
		again, err := s.Text()
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if _, err := ratls.ParseStatement(again); err != nil {
			t.Errorf("%v: %s", err, again)
		}
	})
}

func FuzzAppStatement(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ratls.ParseAppStatement(text)
		if err != nil {
			return
		}
		again, err := s.Text()
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if _, err := ratls.ParseAppStatement(again); err != nil {
			t.Errorf("%v: %s", err, again)
		}
	})
}

func FuzzAppEvidence(f *testing.F) {
	a := vendor(f)
	v := verifier(f, a, a.Getter(), ratls.Policy{})
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := ratls.ParseAppEvidence(text)
		if err != nil {
			return
		}
		if _, err := e.Verify(t.Context(), v); err == nil {
			t.Errorf("verified below a foreign root: %s", text)
		}
	})
}

// FuzzDocument changes the kept document of a gateway with an app behind it. It is judged as of its own time, below its own root and
// with its own key, so that every link is reached; what passes still has to say the same.
func FuzzDocument(f *testing.F) {
	k := keptDocument(f)
	f.Add(k.text)
	f.Fuzz(func(t *testing.T, text []byte) {
		if report := k.chain.Verify(t.Context(), text, k.subject); !report.OK() {
			return
		}
		d, err := ratls.ParseDocument(text)
		if err != nil {
			t.Fatalf("verified, and not readable: %v", err)
		}
		if d.Statement != k.document.Statement || len(d.Apps) != 1 || d.Apps[0].SHA256() != k.document.Apps[0].SHA256() || d.Apps[0].AppCompose != k.document.Apps[0].AppCompose {
			t.Errorf("verified with another content: %s", text)
		}
	})
}

// kept is a document in testdata, who accepts it and for what.
type kept struct {
	text     []byte
	document *ratls.Document
	chain    ratls.Chain
	subject  ratls.Subject
}

func keptDocument(t testing.TB) (k kept) {
	t.Helper()
	read := func(file string) []byte {
		data, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	root, _ := pem.Decode(read("document-root.pem"))
	certificate, err := x509.ParseCertificate(root.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := pem.Decode(read("document-key.pem"))
	k.text = read("document.json")
	if k.document, err = ratls.ParseDocument(k.text); err != nil {
		t.Fatal(err)
	}
	statement, err := ratls.ParseStatement(k.document.Statement)
	if err != nil {
		t.Fatal(err)
	}
	k.chain = ratls.Chain{Roots: []ratls.VerifierConfig{{Root: certificate}}, Now: func() time.Time { return statement.IssuedAt }}
	k.subject = ratls.Subject{Host: statement.Host, ID: statement.App.ID, SPKI: key.Bytes}
	return k
}

// TestTheKeptDocumentVerifies makes sure that FuzzDocument starts at the end of the chain.
func TestTheKeptDocumentVerifies(t *testing.T) {
	k := keptDocument(t)
	if report := k.chain.Verify(t.Context(), k.text, k.subject); !report.OK() || len(report.Apps) != 1 {
		t.Errorf("failed %s", failures(report))
	}
}
