package guestagent_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"dstack.host/ratls"
	"dstack.host/ratls/guestagent"
	"dstack.host/ratls/guestagent/guestagenttest"
	"dstack.host/ratls/simtdx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// boot starts a domain of the software platform, and a verifier for its evidence.
func boot(t *testing.T, vm simtdx.VM) (*simtdx.TD, *ratls.Verifier) {
	t.Helper()
	authority, err := simtdx.New(simtdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	machine, err := authority.Machine(simtdx.MachineOptions{})
	if err != nil {
		t.Fatal(err)
	}
	td, err := machine.Boot(vm)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := ratls.NewVerifier(ratls.VerifierConfig{Root: authority.Root(), Getter: authority.Getter()})
	if err != nil {
		t.Fatal(err)
	}
	return td, verifier
}

const compose = `{"manifest_version":2,"name":"app"}`

func TestEvidenceThroughTheAgentVerifies(t *testing.T) {
	td, verifier := boot(t, simtdx.VM{AppCompose: compose})
	kms := guestagenttest.NewKMS(t)
	agent := guestagenttest.Start(t, td, kms)
	g, err := guestagent.Open(t.Context(), "unix:"+agent.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if g.Kind() != ratls.KindSimulatedTDX || g.AppCompose() != compose || g.VMConfig() != td.VMConfig() {
		t.Errorf("kind %q, app-compose %q, vm_config %q", g.Kind(), g.AppCompose(), g.VMConfig())
	}
	info, err := td.Info()
	if err != nil {
		t.Fatal(err)
	}
	td.Extend("after boot", []byte("more")) // the log has to be that of the quote, not of the start

	certificate, root, err := g.ClientCertificate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, got, err := ratls.VerifyCertificate(t.Context(), verifier, certificate.Leaf); err != nil || !bytes.Equal(got.InstanceID, info.InstanceID) {
		t.Errorf("certificate of instance %x, %v; want %x", got.InstanceID, err, info.InstanceID)
	}
	if !root.Equal(kms.Root()) || len(certificate.Certificate) != 3 {
		t.Errorf("a chain of %d below %v", len(certificate.Certificate), root.Subject)
	}

	e, err := ratls.NewAppEvidence(t.Context(), g, ratls.AppStatement{
		AppID: texts(info.AppID), InstanceID: texts(info.InstanceID), WGPublicKey: strings.Repeat("A", 43) + "=", Challenge: strings.Repeat("00", 32),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Verify(t.Context(), verifier); err != nil {
		t.Error(err)
	}
}

func texts(h ratls.Hex) string {
	b, _ := h.MarshalText()
	return string(b)
}

// script is an agent that answers with what the test says.
func script(t *testing.T, answers map[string]http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if answer := answers[strings.TrimPrefix(r.URL.Path, "/")]; answer != nil {
			answer(w, r)
			return
		}
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, "{\n  \"error\": \"Service not found: "+strings.TrimPrefix(r.URL.Path, "/")+"\"\n}")
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

func TestAgentsThatCannotBeUsedAreToldApart(t *testing.T) {
	sev := `{"quote":"","event_log":"[]","report_data":"","vm_config":"","attestation":"000300"}` // SCALE, platform 3
	for name, row := range map[string]struct {
		answers map[string]http.HandlerFunc
		want    string
	}{
		"no methods":        {nil, "Info: 400 Bad Request: Service not found: Info"},
		"not JSON":          {map[string]http.HandlerFunc{"Info": says("<html>")}, "Info: invalid character"},
		"no quote":          {map[string]http.HandlerFunc{"Info": says("{}"), "GetQuote": says("{}")}, "no TDX quote"},
		"null":              {map[string]http.HandlerFunc{"Info": says("null"), "GetQuote": says("null")}, "no TDX quote"},
		"AMD's processors":  {map[string]http.HandlerFunc{"Info": says("{}"), "GetQuote": says(sev)}, "not supported yet: AMD SEV-SNP"},
		"quote of noise":    {map[string]http.HandlerFunc{"Info": says("{}"), "GetQuote": says(`{"quote":"00","event_log":"[]"}`)}, "quote-parse"},
		"quote not hex":     {map[string]http.HandlerFunc{"Info": says("{}"), "GetQuote": says(`{"quote":"xx"}`)}, "GetQuote: "},
		"log of noise":      {map[string]http.HandlerFunc{"Info": says("{}"), "GetQuote": says(`{"quote":"00","event_log":"x"}`)}, "event log"},
		"an endless answer": {map[string]http.HandlerFunc{"Info": endless}, "more than 16777216 bytes"},
		"a status of 2xx":   {map[string]http.HandlerFunc{"Info": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }}, "202"},
		"control in errors": {map[string]http.HandlerFunc{"Info": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, "\x1b[2J"+strings.Repeat("x", 1<<20))
		}}, "400 Bad Request:  [2Jxxx"},
	} {
		_, err := guestagent.Open(t.Context(), script(t, row.answers))
		if err == nil || !strings.Contains(err.Error(), row.want) || len(err.Error()) > 2000 {
			t.Errorf("%s: %.2000v; want %q", name, err, row.want)
		}
	}
}

func endless(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.Copy(w, io.LimitReader(zeros{}, 17<<20))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestAddresses(t *testing.T) {
	for _, address := range []string{"", "unix:", "unix://", "https://127.0.0.1", "http://", "http://h?x", "vsock://2:8000", filepath.Join(t.TempDir(), "none.sock")} {
		if g, err := guestagent.Open(t.Context(), address); err == nil {
			t.Errorf("%q: %v", address, g)
		}
	}
	t.Setenv(guestagent.AddressEnv, "unix:/somewhere/else.sock")
	if got := guestagent.Find(); got != "unix:/somewhere/else.sock" {
		t.Errorf("found %q", got)
	}
}

func TestACallEndsWithItsContext(t *testing.T) {
	dir, err := os.MkdirTemp("", "agent-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	listener, err := net.Listen("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		c, err := listener.Accept()
		cancel()
		if err == nil {
			_ = c.Close()
		}
	}()
	if _, err := guestagent.Open(ctx, dir+"/s"); err == nil {
		t.Error("opened")
	}
}
