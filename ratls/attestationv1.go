package ratls

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/vmihailenco/msgpack/v5"
)

// unsupportedKinds are the platforms of version 1 other than TDX, by what dstack calls them.
var unsupportedKinds = map[string]string{
	"gcp-tdx":       "TDX of Google Cloud with a TPM quote",
	"nitro-enclave": "AWS Nitro Enclave",
	"sev-snp":       "AMD SEV-SNP",
	"aws-nitro-tpm": "AWS NitroTPM",
}

// Stacks of version 1. A pod's report data is made of a payload that it carries.
const (
	stackDstack = "dstack"
	stackPod    = "dstack-pod"
)

// tagPod is the tag of a pod's report data.
const tagPod = "app-data"

// attestationV1 reads version 1: a MessagePack map of maps with named members, byte strings as bin or as arrays of integers.
type attestationV1 struct {
	dec *msgpack.Decoder
	out Attestation

	version        int
	platform       string
	stack          string
	payload        Hex
	reportData     Hex
	hasQuote       bool
	hasReportData  bool
	hasPodsPayload bool
}

func parseAttestationV1(data []byte) (*Attestation, error) {
	r := bytes.NewReader(data)
	a := &attestationV1{dec: msgpack.NewDecoder(r)}
	if err := a.top(); err != nil {
		return nil, fmt.Errorf("attestation: %w", noEOF(err))
	}
	if r.Len() > 0 {
		return nil, fmt.Errorf("attestation: followed by %d more bytes", r.Len())
	}
	if err := a.complete(); err != nil {
		return nil, fmt.Errorf("attestation: %w", err)
	}
	return &a.out, nil
}

// complete holds the parts against each other.
func (a *attestationV1) complete() error {
	switch {
	case a.version != 1:
		return fmt.Errorf("version %d in the form of version 1", a.version)
	case !a.hasQuote:
		return errors.New("no quote")
	case !a.hasReportData || len(a.reportData) != len(a.out.ReportData):
		return fmt.Errorf("report data has %d bytes, want %d", len(a.reportData), len(a.out.ReportData))
	case (a.stack == stackPod) != a.hasPodsPayload:
		return fmt.Errorf("stack %q with a payload: %t", a.stack, a.hasPodsPayload)
	}
	copy(a.out.ReportData[:], a.reportData)
	if a.stack == stackPod && a.out.ReportData != TaggedReportData(tagPod, a.payload) {
		return errors.New("the report data is not that of the pod's payload")
	}
	return checkEvents(slices.Concat(a.out.Events, a.out.RuntimeEvents))
}

// top reads the outermost map.
func (a *attestationV1) top() error {
	return a.members(map[string]func() error{
		"version":  func() (err error) { a.version, err = a.dec.DecodeInt(); return err },
		"platform": func() error { return a.tagged(&a.platform, a.platformData) },
		"stack":    func() error { return a.tagged(&a.stack, a.stackData) },
	})
}

// tagged reads a map of kind and data, in this order, as serde writes it.
func (a *attestationV1) tagged(kind *string, data func() error) error {
	return a.members(map[string]func() error{
		"kind": func() (err error) { *kind, err = decodeText(a.dec, 64); return err },
		"data": func() error {
			if *kind == "" {
				return errors.New("data before its kind")
			}
			return data()
		},
	})
}

func (a *attestationV1) platformData() error {
	if what, known := unsupportedKinds[a.platform]; known {
		return fmt.Errorf("%w: %s", ErrUnsupported, what)
	}
	if a.platform != "tdx" {
		return fmt.Errorf("platform %q is unknown", shorten(a.platform))
	}
	return a.members(map[string]func() error{
		"quote": func() (err error) {
			a.hasQuote = true
			a.out.Quote, err = decodeBytes(a.dec, maxQuoteSize)
			return err
		},
		"event_log": func() (err error) { a.out.Events, err = a.events(a.logEvent); return err },
	})
}

func (a *attestationV1) stackData() error {
	if a.stack != stackDstack && a.stack != stackPod {
		return fmt.Errorf("stack %q is unknown", shorten(a.stack))
	}
	return a.members(map[string]func() error{
		"report_data": func() (err error) {
			a.hasReportData = true
			a.reportData, err = decodeBytes(a.dec, len(ReportData{}))
			return err
		},
		"runtime_events": func() (err error) { a.out.RuntimeEvents, err = a.events(a.runtimeEvent); return err },
		"config":         func() (err error) { a.out.Config, err = decodeText(a.dec, maxVMConfig); return err },
		"report_data_payload": func() (err error) {
			a.hasPodsPayload = true
			a.payload, err = decodeBytes(a.dec, maxVMConfig)
			return err
		},
	})
}

// events reads a list.
func (a *attestationV1) events(read func() (Event, error)) ([]Event, error) {
	n, err := a.dec.DecodeArrayLen()
	if err != nil {
		return nil, err
	}
	if n < 0 || n > maxEvents {
		return nil, fmt.Errorf("%d events, at most %d are read", n, maxEvents)
	}
	events := []Event{}
	for i := range n {
		e, err := read()
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
		events = append(events, e)
	}
	return events, nil
}

// logEvent reads an event of the log.
func (a *attestationV1) logEvent() (Event, error) {
	e := Event{Version: 1}
	return e, a.members(map[string]func() error{
		"imr":           func() (err error) { e.IMR, err = a.dec.DecodeUint32(); return err },
		"event_type":    func() (err error) { e.Type, err = a.dec.DecodeUint32(); return err },
		"digest":        func() (err error) { e.Digest, err = decodeBytes(a.dec, longestDigest); return err },
		"event":         func() (err error) { e.Name, err = decodeText(a.dec, maxEventName); return err },
		"event_payload": func() (err error) { e.Payload, err = decodeBytes(a.dec, maxEventBytes); return err },
		"version":       func() (err error) { e.Version, err = a.dec.DecodeInt(); return err },
		"preimage":      func() (err error) { e.Preimage, err = decodeBytes(a.dec, maxEventBytes); return err },
	})
}

// runtimeEvent reads an event of RTMR[3].
func (a *attestationV1) runtimeEvent() (Event, error) {
	e := Event{IMR: rtmr3, Type: RuntimeEventType, Version: 1}
	return e, a.members(map[string]func() error{
		"event":   func() (err error) { e.Name, err = decodeText(a.dec, maxEventName); return err },
		"payload": func() (err error) { e.Payload, err = decodeBytes(a.dec, maxEventBytes); return err },
		"version": func() (err error) { e.Version, err = a.dec.DecodeInt(); return err },
	})
}

// members reads a map whose members are all known and occur once. Unknown ones are refused and not skipped: nothing that a
// stranger nests makes this recurse.
func (a *attestationV1) members(read map[string]func() error) error {
	n, err := a.dec.DecodeMapLen()
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for range n {
		name, err := decodeText(a.dec, 64)
		if err != nil {
			return err
		}
		value, known := read[name]
		if !known || seen[name] {
			return fmt.Errorf("member %q is unknown or occurs twice", shorten(name))
		}
		seen[name] = true
		if err := value(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
