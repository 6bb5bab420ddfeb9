package explorer_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dstack.host/gateway/explorer"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// inputs are sound ones of every kind, of one simulated vendor.
type inputs struct {
	explorer                                            *explorer.Explorer
	quote, certificate, legacy, log, document, attested []byte
}

func newInputs(t testing.TB) inputs {
	t.Helper()
	authority, err := simtdx.New(simtdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	machine, err := authority.Machine(simtdx.MachineOptions{})
	if err != nil {
		t.Fatal(err)
	}
	td, err := machine.Boot(simtdx.VM{AppCompose: "{}"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	in := inputs{explorer: explorer.New(explorer.Config{Roots: []ratls.VerifierConfig{{}, {Root: authority.Root()}}})}
	must := func(value []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	in.quote = must(td.Quote(ctx, ratls.ReportData{1}))
	for _, c := range []struct {
		to     *[]byte
		legacy bool
	}{{&in.certificate, false}, {&in.legacy, true}} {
		cert, err := ratls.NewCertificate(ctx, td, ratls.CertOptions{Legacy: c.legacy})
		if err != nil {
			t.Fatal(err)
		}
		*c.to = cert.Certificate[0]
	}
	events, err := td.EventLog(ctx)
	if err != nil {
		t.Fatal(err)
	}
	in.log = must(json.Marshal(events))
	a := ratls.Attestation{Quote: in.quote, RuntimeEvents: ratls.RuntimeEvents(events), ReportData: ratls.ReportData{1}, Config: td.VMConfig()}
	in.attested = must(a.MarshalBinary())
	verifier, err := ratls.NewVerifier(ratls.VerifierConfig{Root: authority.Root(), Getter: authority.Getter()})
	if err != nil {
		t.Fatal(err)
	}
	prover, err := ratls.NewProver(ratls.ProverConfig{Platform: td, Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	d, err := prover.Prove(ctx, ratls.Statement{Host: "gateway.dstack.host", Node: "<b>node</b>", TLS: []ratls.TLSKey{{Use: ratls.KeyCurrent, NotAfter: time.Now().Add(time.Hour)}}, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Minute)}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	in.document = must(json.Marshal(d))
	return in
}

// statuses are the outcomes of checks by name.
func statuses(f *explorer.Found) map[string]ratls.Status {
	all := map[string]ratls.Status{}
	for _, c := range f.Checks {
		all[c.Name] = c.Status
	}
	return all
}

func TestEveryKindIsRecognisedAndChecked(t *testing.T) {
	in := newInputs(t)
	flipped := bytes.Clone(in.quote)
	flipped[200] ^= 1
	for _, row := range []struct {
		name, what string
		input      []byte
		want       map[string]ratls.Status
	}{
		{"quote", "TDX quote", in.quote, map[string]ratls.Status{ratls.CheckQuoteSignature: ratls.Pass, ratls.CheckCollateral: ratls.Skip, ratls.CheckTCB: ratls.Skip}},
		{"quote in hex", "TDX quote", []byte(hex.EncodeToString(in.quote) + "\n"), map[string]ratls.Status{ratls.CheckQuoteSignature: ratls.Pass}},
		{"quote in hex with 0x", "TDX quote", []byte("0x" + hex.EncodeToString(in.quote)), map[string]ratls.Status{ratls.CheckQuoteSignature: ratls.Pass}},
		{"quote in base64", "TDX quote", []byte(base64.StdEncoding.EncodeToString(in.quote)), map[string]ratls.Status{ratls.CheckQuoteSignature: ratls.Pass}},
		{"quote with a bit flipped", "TDX quote", flipped, map[string]ratls.Status{ratls.CheckQuoteSignature: ratls.Fail, ratls.CheckTCB: ratls.Skip}},
		{"certificate", "RA-TLS certificate", in.certificate, map[string]ratls.Status{ratls.CheckReportData: ratls.Pass, ratls.CheckReplay: ratls.Pass}},
		{"certificate of the older form", "RA-TLS certificate", in.legacy, map[string]ratls.Status{ratls.CheckReportData: ratls.Pass, ratls.CheckReplay: ratls.Pass}},
		{"certificate as PEM", "RA-TLS certificate", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: in.certificate}), map[string]ratls.Status{ratls.CheckReplay: ratls.Pass}},
		{"attestation", "attestation of dstack", in.attested, map[string]ratls.Status{ratls.CheckReportData: ratls.Pass, ratls.CheckReplay: ratls.Pass}},
		{"event log", "event log of dstack", in.log, nil},
		{"document", "attestation document", in.document, map[string]ratls.Status{ratls.LinkGatewayQuote: ratls.Pass, ratls.LinkGatewayTCB: ratls.Pass, ratls.LinkStatement: ratls.Pass, ratls.LinkKey: ratls.Skip}},
		{"bundle", "verification bundle", kept(t), map[string]ratls.Status{"tls-certificate": ratls.Fail, "key-history": ratls.Skip, ratls.LinkGatewayQuote: ratls.Fail}},
	} {
		found, err := in.explorer.Look(t.Context(), row.input)
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if found.What != row.what || len(found.Sections) == 0 {
			t.Errorf("%s is shown as %q with %d sections, want %q", row.name, found.What, len(found.Sections), row.what)
		}
		got := statuses(found)
		for check, status := range row.want {
			if got[check] != status {
				t.Errorf("%s: check %s is %q, want %q", row.name, check, got[check], status)
			}
		}
	}
}

// kept is a bundle of a demo, whose roots lie beside it.
func kept(t testing.TB) []byte {
	t.Helper()
	text, err := os.ReadFile("../verify/testdata/bundle.json")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestABundleIsShownWhole looks for a value of every part that a bundle has.
func TestABundleIsShownWhole(t *testing.T) {
	var pems [][]byte
	for _, file := range []string{"ca.pem", "simulated-tdx-root.pem"} {
		text, err := os.ReadFile("../verify/testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		pems = append(pems, text)
	}
	block, _ := pem.Decode(pems[1])
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	cas := x509.NewCertPool()
	cas.AppendCertsFromPEM(pems[0])
	e := explorer.New(explorer.Config{CAs: cas, Roots: []ratls.VerifierConfig{{}, {Root: root}}})
	found, err := e.Look(t.Context(), kept(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range found.Checks {
		if c.Status == ratls.Fail {
			t.Errorf("%+v", c)
		}
	}
	var bundle struct{ Nonce string }
	if err := json.Unmarshal(kept(t), &bundle); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	e.ServeHTTP(w, form(t, "file", kept(t)))
	for _, want := range []string{
		bundle.Nonce, "TLS 1.3", "Certificates of the connection", "dstack-gateway internal CA", "History of keys", "DNS dstack.localhost CAA",
		"tcb_platform", "UpToDate", "from the collateral", "Intel SGX PCK Certificate", "tcbEvaluationDataNumber", "revoked", "FMSPC", "app-compose.json of instance",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func TestTheLimitIsTold(t *testing.T) {
	e := explorer.New(explorer.Config{MaxInput: 100 << 10})
	w := httptest.NewRecorder()
	e.ServeHTTP(w, form(t, "file", make([]byte, 200<<10)))
	if w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), "100 KiB") || !strings.Contains(w.Body.String(), "dstack-gateway explorer") {
		t.Errorf("%d\n%s", w.Code, w.Body)
	}
}

func TestHostileInputIsRefusedWithAReason(t *testing.T) {
	in := newInputs(t)
	for name, row := range map[string]struct {
		input []byte
		fault string
	}{
		"nothing":               {nil, "none of what"},
		"white space":           {[]byte(" \n"), "none of what"},
		"prose":                 {[]byte("Hello, world!"), "none of what"},
		"other JSON":            {[]byte(`{"a":1}`), "none of what"},
		"broken JSON":           {[]byte(`{`), "not JSON"},
		"a log of nulls":        {[]byte(`[null]`), "null"},
		"a deep log":            {[]byte(strings.Repeat("[", 100000)), "nested"},
		"half a quote":          {in.quote[:300], "quote-parse"},
		"a quote and more":      {append(bytes.Clone(in.quote), 1), "quote-parse"},
		"a document and more":   {append(bytes.Clone(in.document), '{'), "JSON"},
		"half a document":       {in.document[:len(in.document)/2], "JSON"},
		"a key for a cert":      {[]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "no certificate"},
		"an attestation of SNP": {[]byte{0, 3, 0}, "not supported yet: AMD SEV-SNP"},
		"twenty megabytes":      {make([]byte, 20<<20), "at most"},
	} {
		if found, err := in.explorer.Look(t.Context(), row.input); err == nil || !strings.Contains(err.Error(), row.fault) {
			t.Errorf("%s: %v %v, want %q", name, found, err, row.fault)
		}
	}
}

// form is a request with one part.
func form(t testing.TB, field string, content []byte) *http.Request {
	t.Helper()
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	part, err := w.CreateFormFile(field, "x")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = part.Write(content)
	_ = w.Close()
	r := httptest.NewRequest(http.MethodPost, "/explorer", &body)
	r.Header.Set("Content-Type", w.FormDataContentType())
	return r
}

func TestThePageEscapesWhatItShows(t *testing.T) {
	in := newInputs(t)
	hostile := bytes.Replace(in.log, []byte(`"app-id"`), []byte(`"<script>alert(1)</script>"`), 1)
	for _, input := range [][]byte{hostile, in.document} {
		w := httptest.NewRecorder()
		in.explorer.ServeHTTP(w, form(t, "file", input))
		body := w.Body.String()
		if w.Code != http.StatusOK || strings.Contains(body, "<script") || strings.Contains(body, "<b>node") {
			t.Errorf("%d: hostile text gets through: %.300s", w.Code, body)
		}
		if policy := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-") || strings.Contains(policy, "unsafe") {
			t.Errorf("policy %q", policy)
		}
	}
}

func TestTheFormIsAnsweredByWhatIsSent(t *testing.T) {
	in := newInputs(t)
	large := httptest.NewRequest(http.MethodPost, "/explorer", io.MultiReader(strings.NewReader("--x\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\n"), io.LimitReader(zeros{}, 20<<20)))
	large.Header.Set("Content-Type", "multipart/form-data; boundary=x")
	plain := httptest.NewRequest(http.MethodPost, "/explorer", strings.NewReader("x"))
	broken := httptest.NewRequest(http.MethodPost, "/explorer", strings.NewReader("nothing of a form"))
	broken.Header.Set("Content-Type", "multipart/form-data; boundary=x")
	for name, row := range map[string]struct {
		request *http.Request
		status  int
		text    string
	}{
		"the form":          {httptest.NewRequest(http.MethodGet, "/explorer", nil), 200, "<textarea"},
		"a file":            {form(t, "file", in.quote), 200, "This is: TDX quote"},
		"a pasted text":     {form(t, "text", []byte(hex.EncodeToString(in.quote))), 200, "This is: TDX quote"},
		"an empty form":     {form(t, "text", nil), 400, "nothing to look at"},
		"another field":     {form(t, "other", in.quote), 400, "nothing to look at"},
		"prose":             {form(t, "text", []byte("prose")), 400, "none of what"},
		"not a form":        {plain, 415, "multipart/form-data"},
		"a broken form":     {broken, 400, "could not be read"},
		"too much":          {large, 413, "larger than"},
		"another method":    {httptest.NewRequest(http.MethodDelete, "/explorer", nil), 405, "GET shows it"},
		"a query is no use": {httptest.NewRequest(http.MethodGet, "/explorer?text=<script>", nil), 200, "<textarea"},
	} {
		w := httptest.NewRecorder()
		in.explorer.ServeHTTP(w, row.request)
		if w.Code != row.status || !strings.Contains(w.Body.String(), row.text) {
			t.Errorf("%s: %d, want %d with %q\n%.200s", name, w.Code, row.status, row.text, w.Body)
		}
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestThePageIsReadableOnEveryScreen(t *testing.T) {
	browser := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			browser = path
			break
		}
	}
	if browser == "" {
		t.Skip("no Chromium on this machine")
	}
	in := newInputs(t)
	w := httptest.NewRecorder()
	in.explorer.ServeHTTP(w, form(t, "file", in.document))
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		for name, values := range w.Header() {
			out.Header()[name] = values
		}
		_, _ = out.Write(w.Body.Bytes())
	}))
	defer server.Close()
	for _, size := range []string{"360,800", "1100,800"} {
		shot := filepath.Join(t.ArtifactDir(), "explorer-"+size+".png")
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		out, err := exec.CommandContext(ctx, browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
			"--disable-component-update", "--disable-sync", "--user-data-dir="+t.TempDir(), "--window-size="+size, "--screenshot="+shot, server.URL).CombinedOutput()
		cancel()
		if info, statErr := os.Stat(shot); err != nil || statErr != nil || info.Size() < 5000 {
			t.Errorf("%s: no picture: %v %v\n%.500s", size, err, statErr, out)
		}
		t.Log(shot)
	}
}

func FuzzLook(f *testing.F) {
	in := newInputs(f)
	for _, input := range [][]byte{in.quote, in.certificate, in.log, in.document, in.attested, []byte("{}"), nil} {
		f.Add(input)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		found, err := in.explorer.Look(t.Context(), input)
		if (found == nil) == (err == nil) {
			t.Errorf("%v %v", found, err)
		}
	})
}
