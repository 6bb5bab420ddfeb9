package ratls

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// ErrUnsupported marks evidence that is well known, and that this version cannot verify.
var ErrUnsupported = errors.New("not supported yet")

// maxAttestation bounds an encoded attestation, as dstack does.
const maxAttestation = 10 << 20

// Attestation is dstack's VersionedAttestation of a TDX guest: what its RA-TLS certificates carry (dstack 0.6
// dstack-attest/src/attestation.rs, v1.rs). Version 0 is SCALE; version 1, MessagePack, is written when an event has version 2.
type Attestation struct {
	// Quote is the raw TDX quote.
	Quote []byte
	// Events is the log, stripped as by [StripEvents] in a certificate.
	Events []Event
	// RuntimeEvents are the events that RTMR[3] replays from. Only their names and payloads are encoded.
	RuntimeEvents []Event
	// ReportData is what the quote is said to be over.
	ReportData ReportData
	// Config is the guest's VmConfig or SysConfig as JSON text.
	Config string
}

// Platforms of an encoded attestation, by their SCALE index.
const (
	platformTDX = iota
	platformGCP
	platformNitro
	platformSNP
	platformNitroTPM
)

// ParseAttestation reads an encoded attestation of at most 10 MiB. Lengths have to be encoded canonically, and nothing may
// follow. Other platforms are recognised and refused with [ErrUnsupported].
func ParseAttestation(data []byte) (*Attestation, error) {
	if len(data) > maxAttestation {
		return nil, fmt.Errorf("attestation of %d bytes is longer than the limit of %d", len(data), maxAttestation)
	}
	d := scaleReader{rest: data}
	version := d.byte()
	switch {
	case d.err == nil && isMap(version):
		return parseAttestationV1(data)
	case d.err == nil && version != 0:
		return nil, fmt.Errorf("attestation begins with %#x, which is no known version", version)
	}
	if err := knownPlatform(&d); err != nil {
		return nil, fmt.Errorf("attestation: %w", err)
	}
	a := &Attestation{Quote: d.bytes()}
	a.Events = decodeEvents(&d, tdxEvent)
	a.RuntimeEvents = decodeEvents(&d, runtimeEvent)
	copy(a.ReportData[:], d.take(len(a.ReportData)))
	a.Config = d.string()
	if d.err == nil && len(d.rest) > 0 {
		d.err = fmt.Errorf("followed by %d more bytes", len(d.rest))
	}
	if d.err != nil {
		return nil, fmt.Errorf("attestation: %w", d.err)
	}
	return a, nil
}

// isMap reports whether a MessagePack map begins with b.
func isMap(b byte) bool { return b&0xf0 == 0x80 || b == 0xde || b == 0xdf }

func knownPlatform(d *scaleReader) error {
	platform := d.byte()
	if d.err != nil {
		return d.err
	}
	switch platform {
	case platformTDX:
		return nil
	case platformGCP:
		return fmt.Errorf("%w: TDX of Google Cloud with a TPM quote", ErrUnsupported)
	case platformNitro:
		return fmt.Errorf("%w: AWS Nitro Enclave", ErrUnsupported)
	case platformSNP:
		return fmt.Errorf("%w: AMD SEV-SNP", ErrUnsupported)
	case platformNitroTPM:
		return fmt.Errorf("%w: AWS NitroTPM", ErrUnsupported)
	default:
		return fmt.Errorf("platform %d is unknown", platform)
	}
}

// decodeEvents reads a vector of events.
func decodeEvents(d *scaleReader, read func(*scaleReader) Event) []Event {
	n := d.compact()
	if d.err == nil && n > maxEvents {
		d.err = fmt.Errorf("%d events, at most %d are read", n, maxEvents)
	}
	events := []Event{}
	for range n {
		if d.err != nil {
			break
		}
		e := read(d)
		if d.err == nil {
			d.err = e.check()
		}
		events = append(events, e)
	}
	return events
}

// tdxEvent reads an event of the log; version and preimage are not encoded.
func tdxEvent(d *scaleReader) Event {
	return Event{IMR: d.uint32(), Type: d.uint32(), Digest: d.bytes(), Name: d.string(), Payload: d.bytes(), Version: 1}
}

// runtimeEvent reads an event of which only the name and the payload are encoded.
func runtimeEvent(d *scaleReader) Event {
	return Event{IMR: rtmr3, Type: RuntimeEventType, Name: d.string(), Payload: d.bytes(), Version: 1}
}

// MarshalBinary encodes the attestation as version 0, which cannot carry runtime events of version 2.
func (a *Attestation) MarshalBinary() ([]byte, error) {
	out := []byte{0, platformTDX}
	out = appendBytes(out, a.Quote)
	out = appendCompact(out, len(a.Events))
	for _, e := range a.Events {
		out = binary.LittleEndian.AppendUint32(out, e.IMR)
		out = binary.LittleEndian.AppendUint32(out, e.Type)
		out = appendBytes(out, e.Digest)
		out = appendBytes(out, []byte(e.Name))
		out = appendBytes(out, e.Payload)
	}
	out = appendCompact(out, len(a.RuntimeEvents))
	for i, e := range a.RuntimeEvents {
		if !e.runtime() || e.Version > 1 {
			return nil, fmt.Errorf("event %d, %q, is not a runtime event of version 1, and no other has a form here", i, shorten(e.Name))
		}
		out = appendBytes(out, []byte(e.Name))
		out = appendBytes(out, e.Payload)
	}
	out = append(out, a.ReportData[:]...)
	out = appendBytes(out, []byte(a.Config))
	if len(out) > maxAttestation {
		return nil, fmt.Errorf("attestation of %d bytes is longer than the limit of %d", len(out), maxAttestation)
	}
	return out, nil
}

// scaleReader reads the SCALE codec. After an error it yields zero values.
type scaleReader struct {
	rest []byte
	err  error
}

// take returns the next n bytes, which share the input's memory.
func (d *scaleReader) take(n int) []byte {
	if d.err == nil && n > len(d.rest) {
		d.err = fmt.Errorf("ends %d bytes early", n-len(d.rest))
	}
	if d.err != nil {
		return nil
	}
	taken := d.rest[:n]
	d.rest = d.rest[n:]
	return taken
}

func (d *scaleReader) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *scaleReader) uint32() uint32 {
	if b := d.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// compact reads a length: the low two bits of the first byte say whether it has one, two, four or five bytes. The shortest form
// is the only one accepted.
func (d *scaleReader) compact() int {
	head := d.byte()
	var n, least uint32
	switch head & 3 {
	case 0:
		n = uint32(head) >> 2
	case 1:
		n, least = uint32(head)>>2|uint32(d.byte())<<6, 1<<6
	case 2:
		b := d.take(3)
		if b == nil {
			return 0
		}
		n, least = uint32(head)>>2|uint32(b[0])<<6|uint32(b[1])<<14|uint32(b[2])<<22, 1<<14
	default:
		d.fail("length needs more than 30 bits")
		return 0
	}
	if n < least {
		d.fail("length %d is not in its shortest form", n)
		return 0
	}
	return int(n)
}

func (d *scaleReader) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
}

// bytes reads a length and that many bytes, in memory of their own.
func (d *scaleReader) bytes() []byte {
	return append([]byte{}, d.take(d.compact())...)
}

func (d *scaleReader) string() string {
	s := string(d.take(d.compact()))
	if !utf8.ValidString(s) {
		d.fail("text is not valid UTF-8")
		return ""
	}
	return s
}

// appendCompact appends a length in its shortest form; it has less than 30 bits, for the whole has.
func appendCompact(out []byte, n int) []byte {
	switch {
	case n < 1<<6:
		return append(out, byte(n)<<2)
	case n < 1<<14:
		return binary.LittleEndian.AppendUint16(out, uint16(n)<<2|1)
	default:
		return binary.LittleEndian.AppendUint32(out, uint32(n)<<2|2)
	}
}

func appendBytes(out, b []byte) []byte {
	return append(appendCompact(out, len(b)), b...)
}
