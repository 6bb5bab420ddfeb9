package verify_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dstack.host/gateway"
	"dstack.host/gateway/demo"
	"dstack.host/gateway/verify"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// TestMain makes the adversary's authority one that the system trusts.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "verify-test-")
	if err == nil {
		publicCA, publicKey, err = authority()
	}
	if err == nil {
		file := filepath.Join(dir, "roots.pem")
		err = errors.Join(os.Setenv("SSL_CERT_FILE", file), os.Setenv("SSL_CERT_DIR", dir),
			os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: publicCA.Raw}), 0o600))
	}
	if err != nil {
		log.Fatal(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// publicCA is one that everybody accepts, and that can be talked into anything. Set by TestMain.
var (
	publicCA  *x509.Certificate
	publicKey *ecdsa.PrivateKey
)

func authority() (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gullible CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	root, err := x509.ParseCertificate(der)
	return root, key, err
}

// world is a real gateway with two apps, and what an adversary has: certificates of an authority that the relying party
// accepts, and a TEE of its own below the same root.
type world struct {
	demo     *demo.Demo
	vendor   *simtdx.Authority
	td       *simtdx.TD
	verifier *ratls.Verifier
	options  verify.Options
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{demo: must(demo.Start(t.Context(), demo.Options{Base: demo.DefaultBase}))(t)}
	t.Cleanup(func() {
		w.demo.Stop()
		if err := w.demo.Wait(); err != nil {
			t.Error(err)
		}
	})
	w.vendor = must(gateway.Authority(w.demo.Dir()))(t)
	w.td = w.boot(t, simtdx.MachineOptions{}, simtdx.VM{AppCompose: `{"name":"adversary"}`})
	w.verifier = must(ratls.NewVerifier(ratls.VerifierConfig{Root: w.vendor.Root(), Getter: w.vendor.Getter()}))(t)
	w.options = verify.Options{
		CAs:   x509.NewCertPool(),
		Chain: ratls.Chain{Roots: []ratls.VerifierConfig{{}, {Root: w.vendor.Root()}}},
	}
	w.options.CAs.AddCert(publicCA)
	block, _ := pem.Decode(must(os.ReadFile(w.demo.CAFile()))(t))
	w.options.CAs.AddCert(must(x509.ParseCertificate(block.Bytes))(t))
	return w
}

// must ends the test if making a value failed.
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func (w *world) boot(t testing.TB, o simtdx.MachineOptions, vm simtdx.VM) *simtdx.TD {
	t.Helper()
	machine := must(w.vendor.Machine(o))(t)
	return must(machine.Boot(vm))(t)
}

// issue makes a certificate for every name of the demo, with a change.
func issue(t testing.TB, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"*." + demo.DefaultBase, demo.DefaultBase},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * time.Minute), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if change != nil {
		change(template)
	}
	der := must(x509.CreateCertificate(rand.Reader, template, publicCA, key.Public(), publicKey))(t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: must(x509.ParseCertificate(der))(t)}
}

// attack is what an adversary changes; nil functions change nothing.
type attack struct {
	name string
	want string // the one check that fails; "" when it is none
	text string // has to be told by that check; or by any, when none fails

	leaf      func(*x509.Certificate)
	tls       func(*tls.Config)
	tee       *simtdx.TD                                                // quotes in the place of the adversary's own
	statement func(*ratls.Statement)                                    // before it is quoted
	apps      func(*adversary, []ratls.AppEvidence)                     // before their hashes are
	document  func(*adversary, *ratls.Document)                         // after
	raw       func(string) string                                       // the text of the document
	answer    func(*adversary, http.ResponseWriter, *http.Request) bool // instead of a document; false leaves it
	history   func(*adversary) string                                   // of the gateway's keys; "" is 404, and nil the adversary's true one
	options   func(*world, *verify.Options)
}

// adversary answers in the gateway's place.
type adversary struct {
	*world
	attack
	t           *testing.T
	certificate tls.Certificate
	host        string // the name that it plays
}

// play runs an adversary until the test ends, and returns the URL of the app's name there.
func (w *world) play(t *testing.T, a attack) (url string, m *adversary) {
	t.Helper()
	m = &adversary{world: w, attack: a, t: t, certificate: issue(t, a.leaf), host: w.demo.Apps()[0].ID.String() + "." + demo.DefaultBase}
	config := &tls.Config{Certificates: []tls.Certificate{m.certificate}, NextProtos: []string{"http/1.1"}}
	if a.tls != nil {
		a.tls(config)
	}
	listener := must(tls.Listen("tcp", "127.0.0.1:0", config))(t)
	server := &http.Server{Handler: m, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return fmt.Sprintf("https://%s:%d", m.host, listener.Addr().(*net.TCPAddr).Port), m
}

func (m *adversary) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/.dstack/acme-info" && m.keyHistory() != "":
		_, _ = io.WriteString(w, m.keyHistory())
	case r.URL.Path != verify.AttestationPath:
		http.NotFound(w, r)
	case m.answer != nil && m.answer(m, w, r):
	default:
		_, _ = w.Write(m.forge(r))
	}
}

// keyHistory is what the adversary tells of its keys.
func (m *adversary) keyHistory() string {
	if m.history != nil {
		return m.history(m)
	}
	return m.keys("", m.entry(m.spki(), m.quoting(), m.spki()))
}

// quoting is the TEE that makes the documents.
func (m *adversary) quoting() *simtdx.TD {
	if m.tee != nil {
		return m.tee
	}
	return m.td
}

// relay asks the real gateway the same question.
func (m *adversary) relay(ctx context.Context, query string) string {
	url := strings.TrimSuffix(m.demo.Apps()[0].URL, "/") + verify.AttestationPath
	if query != "" {
		url += "?" + query
	}
	text, err := m.demo.Get(ctx, url, false)
	if err != nil {
		m.t.Error(err)
	}
	return text
}

// real is the real gateway's document of an app.
func (m *adversary) real(ctx context.Context, app int) *ratls.Document {
	text, err := m.demo.Get(ctx, strings.TrimSuffix(m.demo.Apps()[app].URL, "/")+verify.AttestationPath, false)
	if err != nil {
		m.t.Error(err)
	}
	doc, err := ratls.ParseDocument([]byte(text))
	if err != nil {
		m.t.Error(err)
	}
	return doc
}

// challenge is what the relying party sent.
func challenge(r *http.Request) *ratls.Challenge {
	nonce, _ := hex.DecodeString(r.URL.Query().Get("nonce"))
	c := &ratls.Challenge{Nonce: nonce}
	if r.URL.Query().Has("bind") {
		c.Exporter, _ = r.TLS.ExportKeyingMaterial("EXPORTER-dstack-ra-https", nonce, ratls.ExporterSize)
	}
	return c
}

// stated is what the adversary has quoted: the real gateway's statement about the app, with the adversary's own TLS key.
func (m *adversary) stated(ctx context.Context) (ratls.Statement, []ratls.AppEvidence) {
	doc := m.real(ctx, 0)
	st, err := ratls.ParseStatement(doc.Statement)
	if err != nil {
		m.t.Error(err)
		return ratls.Statement{}, nil
	}
	st.TLS = []ratls.TLSKey{{SPKI: sha256.Sum256(m.certificate.Leaf.RawSubjectPublicKeyInfo), NotAfter: m.certificate.Leaf.NotAfter, Use: ratls.KeyCurrent}}
	st.IssuedAt = time.Now()
	st.ExpiresAt = st.IssuedAt.Add(5 * time.Minute)
	return *st, doc.Apps
}

// forge makes a document of what the real gateway says, in the adversary's own TEE.
func (m *adversary) forge(r *http.Request) []byte {
	st, apps := m.stated(r.Context())
	if m.statement != nil {
		m.statement(&st)
	}
	if m.apps != nil {
		m.apps(m, apps)
	}
	return m.prove(r, st, apps)
}

func (m *adversary) prove(r *http.Request, st ratls.Statement, apps []ratls.AppEvidence) []byte {
	for i := range apps {
		if st.App != nil && i < len(st.App.Instances) {
			st.App.Instances[i].EvidenceSHA256 = apps[i].SHA256()
		}
	}
	prover, err := ratls.NewProver(ratls.ProverConfig{Platform: m.quoting(), Verifier: lenient{m.verifier}})
	if err != nil {
		m.t.Error(err)
		return nil
	}
	doc, err := prover.Prove(r.Context(), st, challenge(r), apps)
	if err != nil {
		m.t.Error(err)
		return nil
	}
	if m.document != nil {
		m.document(m, doc)
	}
	text, err := json.Marshal(doc)
	if err != nil {
		m.t.Error(err)
	}
	if m.raw != nil {
		text = []byte(m.raw(string(text)))
	}
	return text
}

// lenient staples what there is: an adversary does not mind quotes of strangers.
type lenient struct{ *ratls.Verifier }

func (l lenient) Collateral(ctx context.Context, raw []byte) ([]ratls.Collateral, error) {
	c, err := l.Verifier.Collateral(ctx, raw)
	if err != nil {
		return nil, nil
	}
	return c, nil
}

// jsonText is a value as JSON.
func jsonText(t testing.TB, v any) string {
	t.Helper()
	return string(must(json.Marshal(v))(t))
}

// TestARealGatewayPasses at each of its names, with everything that can be asked of it, now and from the bundle.
func TestARealGatewayPasses(t *testing.T) {
	w := newWorld(t)
	app := w.demo.Apps()[0]
	compose := w.demo.Gateway().Snapshot().Instance(app.Instance).Compose.String()
	o := w.options
	o.Resolvers = []string{w.demo.Gateway().DNSAddr().String()}
	o.FreshApp = true
	for _, label := range []string{app.ID.String(), "0X" + strings.ToUpper(app.ID.String()) + "-8080", app.Instance.String(), compose, "gateway"} {
		t.Run(label, func(t *testing.T) {
			r := must(verify.URL(t.Context(), strings.Replace(app.URL, app.ID.String(), label, 1), o))(t)
			expect(t, r, "", "")
			replayed(t, r, o)
			if c := statusOf(t, r, ratls.LinkAppFresh); label != "gateway" && c.Status != ratls.Pass {
				t.Errorf("%+v", c)
			}
		})
	}
}
