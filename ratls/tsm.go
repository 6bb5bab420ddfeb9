package ratls

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"
)

// TDXOptions say where a TDX guest finds what is not in its quotes.
type TDXOptions struct {
	// EventLog is dstack's runtime event log: a JSON object a line (dstack 0.6 cc-eventlog/src/runtime_events.rs). A guest that
	// has none must have measured nothing into RTMR[3].
	EventLog string
	// AppCompose and VMConfig are files with the texts of app-compose.json and of vm_config; "" and files that do not exist are
	// unknown texts.
	AppCompose, VMConfig string
}

// tdxProvider is what Linux calls TDX guests in configfs-tsm.
const tdxProvider = "tdx_guest"

const errNoHardware = "this machine offers no TDX quotes through configfs-tsm (%w): run inside a TDX guest with Linux 6.7 or newer and configfs mounted"

// OpenTDX opens the TDX guest that this process runs in, through the kernel's configfs-tsm.
func OpenTDX(o TDXOptions) (Platform, error) {
	client, err := linuxtsm.MakeClient()
	if err != nil {
		return nil, fmt.Errorf(errNoHardware, err)
	}
	return openTDX(client, o)
}

func openTDX(client configfsi.Client, o TDXOptions) (Platform, error) {
	t := &tdxGuest{client: client, eventLog: o.EventLog}
	var faults []error
	for _, text := range []struct {
		to   *string
		file string
	}{{&t.appCompose, o.AppCompose}, {&t.vmConfig, o.VMConfig}} {
		var err error
		if *text.to, err = optionalText(text.file); err != nil {
			faults = append(faults, err)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if _, err := t.Quote(context.Background(), ReportData{}); err != nil {
		return nil, fmt.Errorf(errNoHardware, err)
	}
	return t, nil
}

// optionalText reads a file that may not exist.
func optionalText(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxAppCompose+1))
	if err != nil {
		return "", err
	}
	if len(text) > maxAppCompose {
		return "", fmt.Errorf("%s is longer than %d bytes", file, maxAppCompose)
	}
	return string(text), nil
}

// tdxGuest is a TDX guest of Intel's hardware.
type tdxGuest struct {
	// set by openTDX
	client               configfsi.Client
	eventLog             string
	appCompose, vmConfig string

	mu sync.Mutex // serialises quotes, as the module does anyway
}

// Kind is KindTDX. Whether the quotes really chain to Intel's root is for verifiers to say.
func (t *tdxGuest) Kind() Kind { return KindTDX }

// Quote asks the kernel for a quote. The kernel can't be interrupted: ctx is looked at before.
func (t *tdxGuest) Quote(ctx context.Context, data ReportData) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	answer, err := report.Get(t.client, &report.Request{InBlob: data[:]})
	if err != nil {
		return nil, fmt.Errorf("configfs-tsm: %w", err)
	}
	if provider := strings.TrimSpace(answer.Provider); provider != tdxProvider {
		return nil, fmt.Errorf("configfs-tsm: the provider is %q, not %q: this is no TDX guest", shorten(provider), tdxProvider)
	}
	return answer.OutBlob, nil
}

// EventLog reads the log as it is now.
func (t *tdxGuest) EventLog(context.Context) ([]Event, error) {
	if t.eventLog == "" {
		return nil, nil
	}
	f, err := os.Open(t.eventLog)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	events, err := parseRuntimeLog(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.eventLog, err)
	}
	return events, nil
}

// parseRuntimeLog reads the lines of dstack's runtime log: event, base64 payload, and a version when it is not 1.
func parseRuntimeLog(r io.Reader) ([]Event, error) {
	var events []Event
	lines := bufio.NewScanner(io.LimitReader(r, maxEventLog))
	lines.Buffer(nil, 2*maxEventBytes)
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		if len(events) == maxEvents {
			return nil, fmt.Errorf("event log has more than %d events", maxEvents)
		}
		var entry struct {
			Event   string `json:"event"`
			Payload []byte `json:"payload"`
			Version int    `json:"version"`
		}
		if err := json.Unmarshal(line, &entry); err != nil {
			return nil, fmt.Errorf("event %d: %w", len(events), err)
		}
		e := Event{IMR: rtmr3, Type: RuntimeEventType, Name: entry.Event, Payload: entry.Payload, Version: entry.Version}
		digest, err := e.RuntimeDigest()
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", len(events), err)
		}
		e.Digest = digest[:]
		events = append(events, e)
	}
	return events, lines.Err()
}

// VMConfig is the text that OpenTDX read.
func (t *tdxGuest) VMConfig() string { return t.vmConfig }

// AppCompose is the text that OpenTDX read.
func (t *tdxGuest) AppCompose() string { return t.appCompose }
