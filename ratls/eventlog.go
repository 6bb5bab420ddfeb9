package ratls

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// RuntimeEventType marks the events that dstack measures while it boots a guest, and that applications add later
// (dstack 0.6 cc-eventlog/src/runtime_events.rs). All of them extend RTMR[3].
const RuntimeEventType = 0x08000001

// acpiEventType is the TCG type of the firmware's ACPI events, EV_PLATFORM_CONFIG_FLAGS.
const acpiEventType = 10

// rtmr3 is the index of the register that runtime events extend.
const rtmr3 = 3

// Bounds of an event log. A real one has about a hundred events and some tens of kilobytes.
const (
	maxEventLog   = 4 << 20
	maxEvents     = 4096
	maxEventName  = 1 << 10
	maxEventBytes = 1 << 20
	longestDigest = sha512.Size
)

// Event is one entry of dstack's event log. Its JSON is that of dstack 0.6 cc-eventlog/src/tdx.rs.
type Event struct {
	// IMR is the index of the RTMR that was extended, counted from 0; Type the kind of event.
	IMR, Type uint32
	// Digest is what the log claims was measured; empty in the logs of certificates. For runtime events it is never used:
	// see [Event.RuntimeDigest].
	Digest Hex
	// Name and Payload are what happened.
	Name    string
	Payload Hex
	// Version selects how the digest of a runtime event is made, 1 or 2; 0 means 1.
	Version int
	// Preimage is the measured text of version 2 as the log claims it, for people to read.
	Preimage Hex
}

// eventJSON is the wire form of an Event.
type eventJSON struct {
	IMR      uint32 `json:"imr"`
	Type     uint32 `json:"event_type"`
	Digest   Hex    `json:"digest"`
	Name     string `json:"event"`
	Payload  Hex    `json:"event_payload"`
	Version  int    `json:"version,omitempty"`
	Preimage Hex    `json:"preimage,omitempty"`
}

// MarshalJSON writes dstack's form: the version only when it is not 1, the preimage only when there is one.
func (e Event) MarshalJSON() ([]byte, error) {
	j := eventJSON(e)
	if j.Version == 1 {
		j.Version = 0
	}
	return marshal(j)
}

// UnmarshalJSON reads dstack's form. An unknown member is refused, because it could change what the event means, as the version
// did when it was added.
func (e *Event) UnmarshalJSON(data []byte) error {
	var j eventJSON
	if err := DecodeStrict(data, maxEventLog, false, &j); err != nil {
		return err
	}
	parsed := Event(j)
	if parsed.Version == 0 {
		parsed.Version = 1
	}
	if err := parsed.check(); err != nil {
		return err
	}
	*e = parsed
	return nil
}

// check holds an event against the bounds.
func (e Event) check() error {
	switch {
	case e.IMR > rtmr3:
		return fmt.Errorf("event extends RTMR %d, and there is none after %d", e.IMR, rtmr3)
	case len(e.Digest) > longestDigest:
		return fmt.Errorf("event digest has %d bytes, at most %d are possible", len(e.Digest), longestDigest)
	case len(e.Name) > maxEventName:
		return fmt.Errorf("event name has %d bytes, at most %d are read", len(e.Name), maxEventName)
	case !utf8.ValidString(e.Name):
		return errors.New("event name is not valid UTF-8")
	case len(e.Payload) > maxEventBytes:
		return fmt.Errorf("event payload has %d bytes, at most %d are read", len(e.Payload), maxEventBytes)
	case e.Version < 0 || e.Version > 2:
		return fmt.Errorf("event version %d is unknown", e.Version)
	}
	return nil
}

// ParseEventLog reads dstack's event log, a JSON array of at most 4 MiB and 4096 events.
func ParseEventLog(data []byte) ([]Event, error) {
	var events []Event
	if err := DecodeStrict(data, maxEventLog, false, &events); err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	if err := checkEvents(events); err != nil {
		return nil, err
	}
	return events, nil
}

// checkEvents holds a log against the bounds.
func checkEvents(events []Event) error {
	if len(events) > maxEvents {
		return fmt.Errorf("event log has %d events, at most %d are read", len(events), maxEvents)
	}
	for i, e := range events {
		if err := e.check(); err != nil {
			return fmt.Errorf("event log: event %d: %w", i, err)
		}
	}
	return nil
}

// runtime reports whether the event is one of those that RTMR[3] is made of.
func (e Event) runtime() bool { return e.Type == RuntimeEventType && e.IMR == rtmr3 }

// RuntimeDigest computes what a runtime event extends RTMR[3] by, from its name and payload; the digest that the log claims is
// not looked at.
//
// Version 1 is SHA-384(u32le(type) ":" name ":" payload). Version 2 is SHA-384 of the canonical JSON (RFC 8785) of
// {"name", "payload", "type"} with the payload in lower-case hex.
func (e Event) RuntimeDigest() (Measurement, error) {
	if e.Type != RuntimeEventType {
		return Measurement{}, fmt.Errorf("event %q has type %#x and is not a runtime event", shorten(e.Name), e.Type)
	}
	preimage, err := e.preimage()
	if err != nil {
		return Measurement{}, err
	}
	return sha512.Sum384(preimage), nil
}

// preimage returns the bytes that the digest of a runtime event is taken over.
func (e Event) preimage() ([]byte, error) {
	switch e.Version {
	case 0, 1:
		b := binary.LittleEndian.AppendUint32(nil, RuntimeEventType)
		b = append(b, ':')
		b = append(b, e.Name...)
		b = append(b, ':')
		return append(b, e.Payload...), nil
	case 2:
		b := append([]byte(`{"name":`), canonicalString(e.Name)...)
		b = append(b, `,"payload":"`...)
		b = hex.AppendEncode(b, e.Payload)
		return append(b, `","type":134217729}`...), nil
	default:
		return nil, fmt.Errorf("event %q has version %d, which is unknown", shorten(e.Name), e.Version)
	}
}

// canonicalString quotes s as RFC 8785 section 3.2.2.2 does.
func canonicalString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch r {
		case '"', '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case '\b':
			b.WriteString(`\b`)
		case '\t':
			b.WriteString(`\t`)
		case '\n':
			b.WriteString(`\n`)
		case '\f':
			b.WriteString(`\f`)
		case '\r':
			b.WriteString(`\r`)
		default:
			if r < ' ' {
				fmt.Fprintf(&b, `\u%04x`, r)
			} else {
				b.WriteRune(r)
			}
		}
	}
	b.WriteByte('"')
	return b.String()
}

// ReplayRTMR3 computes the value that RTMR[3] has after the runtime events of a log, from 48 zero bytes, each extending it by
// its recomputed digest. Events of another type or register are passed over. A runtime event whose stated digest or preimage
// contradicts the recomputed one is an error, so that nobody is shown a value that was not measured.
func ReplayRTMR3(events []Event) (Measurement, error) {
	var mr Measurement
	for i, e := range events {
		if !e.runtime() {
			continue
		}
		digest, err := e.RuntimeDigest()
		if err != nil {
			return Measurement{}, fmt.Errorf("event %d: %w", i, err)
		}
		if len(e.Digest) > 0 && !bytes.Equal(e.Digest, digest[:]) {
			return Measurement{}, fmt.Errorf("event %d, %q: the log states digest %x, its contents have %s", i, shorten(e.Name), []byte(e.Digest), digest)
		}
		if err := e.checkPreimage(); err != nil {
			return Measurement{}, fmt.Errorf("event %d: %w", i, err)
		}
		mr = extend(mr, digest)
	}
	return mr, nil
}

// checkPreimage refuses a stated preimage that is not the one that was measured.
func (e Event) checkPreimage() error {
	if len(e.Preimage) == 0 {
		return nil
	}
	want, err := e.preimage()
	if err != nil {
		return err
	}
	if !bytes.Equal(e.Preimage, want) {
		return fmt.Errorf("%q: the preimage that the log states is not that of its contents", shorten(e.Name))
	}
	return nil
}

// extend returns what a register holds after it was extended by digest.
func extend(mr, digest Measurement) Measurement {
	return sha512.Sum384(append(mr[:], digest[:]...))
}

// StripEvents returns what a certificate carries of a log, as dstack 0.6 dstack-attest/src/v1.rs has it: the events of RTMR[3],
// and the ACPI events of RTMR[0], which name the tables that the host chose. Runtime events lose their digest, which can be
// recomputed; the others lose their payload, except for the marker of the ACPI events.
func StripEvents(events []Event) []Event {
	const marker = "ACPI DATA"
	stripped := []Event{}
	for _, e := range events {
		switch {
		case e.runtime():
			e.Digest = nil
		case e.IMR == rtmr3:
			e.Payload = nil
		case e.IMR == 0 && e.Type == acpiEventType && string(e.Payload) == marker:
		default:
			continue
		}
		stripped = append(stripped, e)
	}
	return stripped
}

// RuntimeEvents returns the events of a log that RTMR[3] is made of.
func RuntimeEvents(events []Event) []Event {
	runtime := []Event{}
	for _, e := range events {
		if e.runtime() {
			runtime = append(runtime, e)
		}
	}
	return runtime
}
