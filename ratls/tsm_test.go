package ratls_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// configfs is the kernel's report folder as a TDX guest sees it, with quotes made by a software TD: write inblob, which counts a generation up, read outblob
// and provider (Linux Documentation/ABI/testing/configfs-tsm).
type configfs struct {
	td       ratls.Platform
	provider string

	mu      sync.Mutex
	entries map[string]*tsmReport
}

// tsmReport is one folder below report: what was written, and how often.
type tsmReport struct {
	data       ratls.ReportData
	generation int
}

func (c *configfs) MkdirTemp(dir, _ string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = map[string]*tsmReport{}
	}
	entry := path.Join(dir, "entry")
	c.entries[entry] = new(tsmReport)
	return entry, nil
}

func (c *configfs) ReadFile(name string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	entry, ok := c.entries[path.Dir(name)]
	if !ok {
		return nil, fs.ErrNotExist
	}
	switch path.Base(name) {
	case "generation":
		return fmt.Appendln(nil, entry.generation), nil
	case "provider":
		return []byte(c.provider + "\n"), nil
	case "outblob":
		quote, err := c.td.Quote(context.Background(), entry.data)
		return append(quote, make([]byte, 64)...), err // the kernel hands out its whole buffer
	}
	return nil, fs.ErrNotExist
}

func (c *configfs) WriteFile(name string, contents []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if path.Base(name) != "inblob" || len(contents) != len(ratls.ReportData{}) {
		return errors.New("invalid argument")
	}
	entry := c.entries[path.Dir(name)]
	entry.data = ratls.ReportData(contents)
	entry.generation++
	return nil
}

func (c *configfs) ReadDir(string) ([]os.DirEntry, error) { return nil, fs.ErrNotExist }

func (c *configfs) RemoveAll(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, name)
	return nil
}

// guestFiles writes what a dstack guest has on disk.
func guestFiles(t *testing.T, td *simtdx.TD) ratls.TDXOptions {
	t.Helper()
	dir := t.TempDir()
	o := ratls.TDXOptions{EventLog: filepath.Join(dir, "events.log"), AppCompose: filepath.Join(dir, "compose.json"), VMConfig: filepath.Join(dir, "vm_config.json")}
	events, err := td.EventLog(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	for _, e := range events {
		if e.Type != ratls.RuntimeEventType {
			continue
		}
		line, err := json.Marshal(map[string]any{"event": e.Name, "payload": base64.StdEncoding.EncodeToString(e.Payload)})
		if err != nil {
			t.Fatal(err)
		}
		log.WriteString(string(line) + "\n")
	}
	for file, text := range map[string]string{o.EventLog: log.String(), o.AppCompose: td.AppCompose(), o.VMConfig: td.VMConfig()} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func softwareTD(t *testing.T) (*simtdx.Authority, *simtdx.TD) {
	t.Helper()
	authority, err := simtdx.New(simtdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	machine, err := authority.Machine(simtdx.MachineOptions{})
	if err != nil {
		t.Fatal(err)
	}
	td, err := machine.Boot(simtdx.VM{AppCompose: `{"name":"gateway"}`})
	if err != nil {
		t.Fatal(err)
	}
	return authority, td
}

func TestAGuestWithConfigfsMakesEvidenceThatVerifies(t *testing.T) {
	authority, td := softwareTD(t)
	guest, err := ratls.OpenTDXWith(&configfs{td: td, provider: "tdx_guest"}, guestFiles(t, td))
	if err != nil {
		t.Fatal(err)
	}
	if guest.Kind() != ratls.KindTDX || guest.AppCompose() != td.AppCompose() || guest.VMConfig() != td.VMConfig() {
		t.Errorf("kind %s, compose %q, configuration %q", guest.Kind(), guest.AppCompose(), guest.VMConfig())
	}
	verifier, err := ratls.NewVerifier(ratls.VerifierConfig{Root: authority.Root(), Getter: authority.Getter()})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ratls.NewCertificate(context.Background(), guest, ratls.CertOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, info, err := ratls.VerifyCertificate(context.Background(), verifier, cert.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	want, err := td.Info()
	if err != nil {
		t.Fatal(err)
	}
	if string(info.AppID) != string(want.AppID) || string(info.InstanceID) != string(want.InstanceID) {
		t.Errorf("app %x instance %x, want %x and %x", info.AppID, info.InstanceID, want.AppID, want.InstanceID)
	}
}

func TestOpenTDXTellsWhatToDoWithoutHardware(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/config/tsm/report"); err == nil {
		t.Skip("this machine has configfs-tsm")
	}
	if _, err := ratls.OpenTDX(ratls.TDXOptions{}); err == nil || !strings.Contains(err.Error(), "Linux 6.7 or newer") {
		t.Errorf("got %v, want it to say what is needed", err)
	}
}

func TestOpenTDXRefusesWhatIsNoTDXGuest(t *testing.T) {
	_, td := softwareTD(t)
	for _, provider := range []string{"sev_guest", ""} {
		if _, err := ratls.OpenTDXWith(&configfs{td: td, provider: provider}, ratls.TDXOptions{}); err == nil || !strings.Contains(err.Error(), "no TDX guest") {
			t.Errorf("provider %q: %v", provider, err)
		}
	}
}

func TestEventLogThatDoesNotReplayIsNotPublished(t *testing.T) {
	_, td := softwareTD(t)
	files := guestFiles(t, td)
	if err := os.WriteFile(files.EventLog, []byte(`{"event":"app-id","payload":"3q2+7w=="}`), 0o600); err != nil {
		t.Fatal(err)
	}
	guest, err := ratls.OpenTDXWith(&configfs{td: td, provider: "tdx_guest"}, files)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ratls.NewCertificate(context.Background(), guest, ratls.CertOptions{}); err == nil || !strings.Contains(err.Error(), "replay") {
		t.Errorf("got %v, want a log that does not replay to be refused", err)
	}
}

func TestRuntimeLogIsReadStrictly(t *testing.T) {
	for _, row := range []struct {
		name, text string
		events     int
		fault      string
	}{
		{"empty", "", 0, ""},
		{"lines", "{\"event\":\"a\",\"payload\":\"\"}\n\n{\"event\":\"b\",\"payload\":\"AQ==\",\"version\":2}\n", 2, ""},
		{"not JSON", "x", 0, "event 0"},
		{"payload not base64", `{"event":"a","payload":"zz"}`, 0, "event 0"},
		{"unknown version", `{"event":"a","payload":"","version":3}`, 0, "version"},
		{"too many", strings.Repeat("{\"event\":\"a\",\"payload\":\"\"}\n", 5000), 0, "more than 4096"},
	} {
		events, err := ratls.ParseRuntimeLog(strings.NewReader(row.text))
		if row.fault == "" && (err != nil || len(events) != row.events) || row.fault != "" && (err == nil || !strings.Contains(err.Error(), row.fault)) {
			t.Errorf("%s: %d events, %v; want %d, %q", row.name, len(events), err, row.events, row.fault)
		}
	}
}
