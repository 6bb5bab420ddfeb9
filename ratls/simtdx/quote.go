package simtdx

import (
	"encoding/binary"
	"fmt"

	"dstack.host/ratls"
)

// Sizes in a quote.
const (
	headerSize = 48
	bodySize10 = 584
	bodySize15 = 648
)

// qeVendorID is Intel's, which verifiers demand.
var qeVendorID = []byte{0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07}

// report is what a trust domain has measured.
type report struct {
	mrSignerSeam                             ratls.Measurement
	attributes                               uint64
	mrtd, mrConfigID, mrOwner, mrOwnerConfig ratls.Measurement
	rtmr                                     [4]ratls.Measurement
	data                                     ratls.ReportData
	serviceTD                                ratls.Measurement
}

// quote makes and signs a quote over r.
func (m *Machine) quote(r report) ([]byte, error) {
	raw := m.header()
	body := m.body(r)
	if m.version == 5 {
		body = append(append(body, m.tcbSVN[:]...), r.serviceTD[:]...)
		raw = binary.LittleEndian.AppendUint16(raw, 3) // a TDX 1.5 body
		raw = binary.LittleEndian.AppendUint32(raw, uint32(len(body)))
	}
	raw = append(raw, body...)
	signature, err := sign(m.attestationKey, raw)
	if err != nil {
		return nil, err
	}
	key, err := m.publicKey()
	if err != nil {
		return nil, err
	}
	raw = binary.LittleEndian.AppendUint32(raw, uint32(len(signature)+len(key)+len(m.certification)))
	raw = append(append(raw, signature...), key...)
	return append(raw, m.certification...), nil
}

// header is the same for all quotes of a machine.
func (m *Machine) header() []byte {
	raw := binary.LittleEndian.AppendUint16(nil, uint16(m.version))
	raw = binary.LittleEndian.AppendUint16(raw, 2)    // ECDSA-256 with P-256
	raw = binary.LittleEndian.AppendUint32(raw, 0x81) // TDX
	raw = append(raw, 0, 0, 0, 0)                     // reserved: once QE and PCE versions
	raw = append(raw, qeVendorID...)
	return append(raw, make([]byte, 20)...)
}

// body is the TD report of TDX 1.0.
func (m *Machine) body(r report) []byte {
	mrSeam := named("seam")
	raw := append([]byte(nil), m.tcbSVN[:]...)
	raw = append(raw, mrSeam[:]...)
	raw = append(raw, r.mrSignerSeam[:]...)
	raw = append(raw, make([]byte, 8)...) // SEAM attributes
	raw = binary.LittleEndian.AppendUint64(raw, r.attributes)
	raw = binary.LittleEndian.AppendUint64(raw, 0xe7) // XFAM: x87, SSE, AVX, AVX-512
	for _, m := range []ratls.Measurement{r.mrtd, r.mrConfigID, r.mrOwner, r.mrOwnerConfig, r.rtmr[0], r.rtmr[1], r.rtmr[2], r.rtmr[3]} {
		raw = append(raw, m[:]...)
	}
	return append(raw, r.data[:]...)
}

// Tamper is damage done to a quote after it was signed.
type Tamper int

const (
	// Untampered leaves the quote as it is.
	Untampered Tamper = iota
	// TamperBody flips a bit of the report data.
	TamperBody
	// TamperSignature flips a bit of the signature over header and body.
	TamperSignature
	// TamperKey flips a bit of the attestation key.
	TamperKey
	// TamperQEReport flips a bit of the quoting enclave's report.
	TamperQEReport
	// TamperQESignature flips a bit of the PCK's signature over that report.
	TamperQESignature
	// TamperAuthData flips a bit of the authentication data, which that report binds.
	TamperAuthData
	// TamperVendor changes the vendor of the quoting enclave.
	TamperVendor
	// TrailingByte puts a byte behind the quote.
	TrailingByte
)

// String names the damage.
func (t Tamper) String() string {
	names := []string{"untampered", "body", "signature", "attestation key", "QE report", "QE signature", "auth data", "vendor", "trailing byte"}
	if t < 0 || int(t) >= len(names) {
		return fmt.Sprintf("Tamper(%d)", int(t))
	}
	return names[t]
}

// apply damages raw, which is a quote of version.
func (t Tamper) apply(raw []byte, version int) []byte {
	body, signed := headerSize, headerSize+bodySize10+4
	if version == 5 {
		body, signed = headerSize+6, headerSize+6+bodySize15+4
	}
	const certification = 64 + 64 + 6
	at := map[Tamper]int{
		TamperBody:        body + bodySize10 - 1,
		TamperSignature:   signed + 5,
		TamperKey:         signed + 64 + 5,
		TamperQEReport:    signed + certification + 0x50, // MRENCLAVE
		TamperQESignature: signed + certification + 384 + 5,
		TamperAuthData:    signed + certification + 384 + 64 + 2,
		TamperVendor:      12,
	}
	if i, ok := at[t]; ok {
		raw[i] ^= 1
	}
	if t == TrailingByte {
		raw = append(raw, '*')
	}
	return raw
}
