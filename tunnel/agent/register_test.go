package agent_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 20 * time.Second

// gateway is a registration server; it answers with whatever handler writes.
func gateway(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.EnableHTTP2 = true // the agent must not take it
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func says(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

// trusting returns the TLS configuration of a client that trusts the servers of httptest.
func trusting(t *testing.T, s *httptest.Server) *tls.Config {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return &tls.Config{RootCAs: roots}
}

func certificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func newAgent(t *testing.T, cfg agent.Config) *agent.Agent {
	t.Helper()
	if cfg.PrivateKey == (tunnel.PrivateKey{}) {
		cfg.PrivateKey = tunnel.NewPrivateKey()
	}
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func register(t *testing.T, cfg agent.Config) (agent.Answer, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return newAgent(t, cfg).Register(ctx)
}

func TestTheRequestIsThatOfDstack(t *testing.T) {
	key := tunnel.NewPrivateKey()
	var got *http.Request
	var body []byte
	gw := gateway(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
		io.WriteString(w, answer("10.0.0.2"))
	})
	tlsConfig := trusting(t, gw)
	tlsConfig.Certificates = []tls.Certificate{certificate(t, "cvm")}
	if _, err := register(t, agent.Config{URLs: []string{gw.URL + "//"}, TLS: tlsConfig, PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	if got.Method != "POST" || got.RequestURI != "/prpc/RegisterCvm?json" || got.Proto != "HTTP/1.1" {
		t.Errorf("%s %s %s", got.Method, got.RequestURI, got.Proto)
	}
	if v, ok := got.Header["Content-Type"]; ok {
		t.Errorf("Content-Type %q, want none", v)
	}
	if len(got.TLS.PeerCertificates) != 1 || got.TLS.PeerCertificates[0].Subject.CommonName != "cvm" {
		t.Errorf("client certificates %v", got.TLS.PeerCertificates)
	}
	want := fmt.Sprintf(`{"client_public_key":%q,"port_policy":{"ports":[],"restrict_mode":false}}`, key.PublicKey())
	if string(body) != want {
		t.Errorf("body %s\nwant %s", body, want)
	}
}

func TestEvidenceIsMadeForTheConnection(t *testing.T) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			var want []byte
			var body struct{ Evidence struct{ Exporter []byte } }
			gw := gateway(t, func(w http.ResponseWriter, r *http.Request) {
				want, _ = r.TLS.ExportKeyingMaterial(agent.ExporterLabel, nil, agent.ExporterSize)
				if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
					t.Error(err)
				}
				io.WriteString(w, answer("10.0.0.2"))
			})
			cfg := trusting(t, gw)
			cfg.MaxVersion = version
			key := tunnel.NewPrivateKey()
			_, err := register(t, agent.Config{
				URLs: []string{gw.URL}, TLS: cfg, PrivateKey: key,
				Evidence: func(_ context.Context, exporter []byte, k tunnel.PublicKey) (json.RawMessage, error) {
					if k != key.PublicKey() {
						t.Errorf("evidence asked for key %v", k)
					}
					return json.Marshal(map[string][]byte{"exporter": exporter})
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(want) != agent.ExporterSize || !bytes.Equal(body.Evidence.Exporter, want) {
				t.Errorf("evidence for %x, the connection's is %x", body.Evidence.Exporter, want)
			}
		})
	}
}

func TestEvidenceThatFailsSendsNothing(t *testing.T) {
	gw := gateway(t, func(http.ResponseWriter, *http.Request) { t.Error("a request arrived") })
	for name, evidence := range map[string]func() (json.RawMessage, error){
		"no quote": func() (json.RawMessage, error) { return nil, errors.New("no quote") },
		"not JSON": func() (json.RawMessage, error) { return json.RawMessage("{"), nil },
	} {
		_, err := register(t, agent.Config{
			URLs: []string{gw.URL}, TLS: trusting(t, gw),
			Evidence: func(context.Context, []byte, tunnel.PublicKey) (json.RawMessage, error) { return evidence() },
		})
		if err == nil {
			t.Errorf("%s: registered", name)
		}
	}
}

func TestGatewaysAreTriedInOrder(t *testing.T) {
	var mu sync.Mutex
	var calls []string
	node := func(name string, status int, body string) *httptest.Server {
		return gateway(t, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			calls = append(calls, name)
			mu.Unlock()
			says(status, body)(w, r)
		})
	}
	down := node("down", 400, "{\n  \"error\": \"node is marked as down\"\n}")
	broken := node("broken", 200, `{"agent":null}`)
	good := node("good", 200, answer("10.0.0.2"))
	roots := trusting(t, down) // httptest has one certificate for all

	for _, tc := range []struct {
		name  string
		urls  []string
		calls []string
		err   string
	}{
		{"first works", []string{good.URL, down.URL}, []string{"good"}, ""},
		{"third works", []string{down.URL, broken.URL, good.URL}, []string{"down", "broken", "good"}, ""},
		{"none works: the error of the first", []string{down.URL, broken.URL}, []string{"down", "broken"},
			`Failed to register CVM, all dstack-gateway urls are down: register at ` + down.Listener.Addr().String() +
				`: Request failed with status=400 Bad Request, error={   "error": "node is marked as down" }`},
		{"no tunnel in the answer", []string{broken.URL, down.URL}, []string{"broken", "down"},
			"Failed to register CVM, all dstack-gateway urls are down: Missing wg info"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			calls = nil
			_, err := register(t, agent.Config{URLs: tc.urls, TLS: roots})
			if diff := cmp.Diff(tc.calls, calls); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			if got := fmt.Sprint(err); tc.err != "" && got != tc.err || tc.err == "" && err != nil {
				t.Errorf("error %q\nwant  %q", got, tc.err)
			}
		})
	}
}

func TestTheCertificateWithAQuoteIsSentWhenAskedFor(t *testing.T) {
	for _, tc := range []struct {
		name, refusal string
		want          []string
		fails         bool
	}{
		{"asked for", "no attestation provided", []string{"plain", "quote"}, false},
		{"asked for within a text", "cert: no attestation provided: x", []string{"plain", "quote"}, false},
		{"not asked for", "neither app-info nor attestation provided", []string{"plain"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			gw := gateway(t, func(w http.ResponseWriter, r *http.Request) {
				name := r.TLS.PeerCertificates[0].Subject.CommonName
				if got = append(got, name); name == "quote" {
					says(200, answer("10.0.0.2"))(w, r)
				} else {
					says(400, `{"error":"`+tc.refusal+`"}`)(w, r)
				}
			})
			cfg := trusting(t, gw)
			cfg.Certificates = []tls.Certificate{certificate(t, "plain")}
			quote := certificate(t, "quote")
			_, err := register(t, agent.Config{URLs: []string{gw.URL}, TLS: cfg,
				Fallback: func(context.Context) (*tls.Certificate, error) { return &quote, nil }})
			if diff := cmp.Diff(tc.want, got); diff != "" || (err != nil) != tc.fails {
				t.Errorf("error %v, certificates (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestHostileAnswersAreErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"huge body":     {says(200, answer("10.0.0.2")+strings.Repeat(" ", 2<<20)), "longer than"},
		"huge error":    {says(500, strings.Repeat("x", 2<<20)), "status=500"},
		"control bytes": {says(400, "a\x1b[31m\x00\xffb"), "error=a [31m ?b"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", 307) },
			"status=307"},
		"empty": {says(200, ""), "EOF"},
		"null":  {says(200, "null"), "Missing wg info"},
		"huge head": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Large", strings.Repeat("x", 2<<20))
			io.WriteString(w, answer("10.0.0.2"))
		}, "EOF"},
		"cut short": {raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), "EOF"},
		"not HTTP":  {raw("SSH-2.0-x\r\n\r\n"), "malformed"},
		"silence":   {raw(""), "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			gw := gateway(t, tc.handler)
			got, err := register(t, agent.Config{URLs: []string{gw.URL}, TLS: trusting(t, gw)})
			if err == nil {
				t.Fatalf("accepted as %+v", got)
			}
			if !strings.Contains(err.Error(), tc.want) || len(err.Error()) > 2000 {
				t.Errorf("%.2000v; want it to say %q", err, tc.want)
			}
		})
	}
}

// raw takes the connection over, writes s and closes.
func raw(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		io.WriteString(c, s)
		c.Close()
	}
}

func TestAGatewayThatIsNotTrustedGetsNoRequest(t *testing.T) {
	gw := gateway(t, func(http.ResponseWriter, *http.Request) { t.Error("a request arrived") })
	for name, cfg := range map[string]*tls.Config{
		"unknown root": {RootCAs: x509.NewCertPool()},
		"other name":   {RootCAs: trusting(t, gw).RootCAs, ServerName: "gw.invalid"},
		"verification injected": {RootCAs: trusting(t, gw).RootCAs, VerifyConnection: func(tls.ConnectionState) error {
			return errors.New("Invalid dstack-gateway app id: 00")
		}},
	} {
		if _, err := register(t, agent.Config{URLs: []string{gw.URL}, TLS: cfg}); err == nil {
			t.Errorf("%s: registered", name)
		}
	}
}

func TestRegisterEndsWithItsContext(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	gw := gateway(t, func(http.ResponseWriter, *http.Request) {
		close(arrived)
		<-release
	})
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	a := newAgent(t, agent.Config{URLs: []string{gw.URL, gw.URL}, TLS: trusting(t, gw)})
	if _, err := a.Register(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestNormalURL(t *testing.T) {
	for _, tc := range []struct{ in, addr, url string }{
		{"https://gw.example:8000", "gw.example:8000", "https://gw.example:8000/prpc/RegisterCvm?json"},
		{"https://gw.example:8000/", "gw.example:8000", "https://gw.example:8000/prpc/RegisterCvm?json"},
		{"https://gw.example///", "gw.example:443", "https://gw.example/prpc/RegisterCvm?json"},
		{"https://gw.example/prpc", "gw.example:443", "https://gw.example/prpc/RegisterCvm?json"},
		{"https://gw.example/prpc/", "gw.example:443", "https://gw.example/prpc/RegisterCvm?json"},
		{"https://gw.example/a", "gw.example:443", "https://gw.example/a/prpc/RegisterCvm?json"},
		{"https://192.0.2.1:8000", "192.0.2.1:8000", "https://192.0.2.1:8000/prpc/RegisterCvm?json"},
		{"https://[2001:db8::1]:8000", "[2001:db8::1]:8000", "https://[2001:db8::1]:8000/prpc/RegisterCvm?json"},
	} {
		addr, url, err := agent.NormalURL(tc.in)
		if err != nil || addr != tc.addr || url != tc.url {
			t.Errorf("%s: %s %s %v; want %s %s", tc.in, addr, url, err, tc.addr, tc.url)
		}
	}
	for _, in := range []string{
		"", "gw.example", "http://gw.example", "https://", "https://:8000", "https://gw.example?x", "https://gw.example#x",
		"https://user:secret@gw.example", "ftp://gw.example", "https://gw.example:99999999999/\x7f", "https://[::1",
	} {
		if _, url, err := agent.NormalURL(in); err == nil {
			t.Errorf("%q: accepted as %s", in, url)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error tells the password", in)
		}
	}
}

func TestNewReportsAllFaults(t *testing.T) {
	_, err := agent.New(agent.Config{
		Timing: agent.Timing{Poll: -1}, Ports: &agent.PortPolicy{Ports: []agent.Port{{Port: 0}}},
	})
	for _, want := range []string{"Missing gateway urls", "tls", "private key", "timing", "port must be"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v: does not speak of %q", err, want)
		}
	}
}

func TestNothingIsSentToAGatewayThatIsNotTrusted(t *testing.T) {
	asked := false
	gw := gateway(t, func(w http.ResponseWriter, _ *http.Request) {
		asked = true
		io.WriteString(w, answer("10.0.0.2"))
	})
	for _, verdict := range []error{errors.New("it is another app"), nil} {
		got, err := register(t, agent.Config{
			URLs: []string{gw.URL}, TLS: &tls.Config{InsecureSkipVerify: true},
			Trust: func(_ context.Context, state tls.ConnectionState) error {
				if len(state.PeerCertificates) != 1 || !state.HandshakeComplete {
					t.Errorf("judged %d certificates, handshake complete: %t", len(state.PeerCertificates), state.HandshakeComplete)
				}
				return verdict
			},
		})
		if !errors.Is(err, verdict) || asked != (verdict == nil) || got.Address.IsValid() != (verdict == nil) {
			t.Errorf("verdict %v: asked %t, %+v, %v", verdict, asked, got, err)
		}
	}
}
