package ratls

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
)

// Bits of TD_ATTRIBUTES (Intel TDX Module Base Architecture Specification, "TD attributes"). Whatever is not named here is
// reserved, or weakens the domain: bit 29 makes it migratable.
const (
	attrDebug         = 1 << 0
	attrSEPTVEDisable = 1 << 28
	attrPKS           = 1 << 30
	attrKeyLocker     = 1 << 31
	attrPerfmon       = 1 << 63
)

// intelQEVendorID is the vendor of the quoting enclave, 939a7233-f79c-4ca9-940a-0db3957f0607, of every quote whose collateral
// this package can judge.
var intelQEVendorID = []byte{0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07}

// validate judges what a signed quote says of its domain, without collateral. go-tdx-guest's own validation refuses version
// 5, lets debuggable domains pass, and looks neither at service domains nor at the signer of the TDX module.
func (p Policy) validate(w *wireQuote) error {
	if !bytes.Equal(w.header.GetQeVendorId(), intelQEVendorID) {
		return refuse(CheckQEIdentity, "vendor of the quoting enclave is %s, want Intel's %s",
			hex.EncodeToString(w.header.GetQeVendorId()), hex.EncodeToString(intelQEVendorID))
	}
	if err := p.validateAttributes(binary.LittleEndian.Uint64(w.body.GetTdAttributes())); err != nil {
		return err
	}
	if !zero(w.body.GetMrSignerSeam()) || !zero(w.body.GetSeamAttributes()) {
		return refuse(CheckTDAttributes, "the TDX module is not a production module of Intel")
	}
	if !zero(w.serviceTD) {
		return refuse(CheckTDAttributes, "a service domain is bound to the domain")
	}
	return nil
}

// validateAttributes judges TD_ATTRIBUTES. With #VE on violations of the secure EPT (bit 28 clear) the host can interrupt
// the domain at any of its pages. Which bits must be set and clear is as in dstack's verifier, dcap-qvl.
func (p Policy) validateAttributes(attributes uint64) error {
	allowed := uint64(attrSEPTVEDisable | attrPKS | attrKeyLocker | attrPerfmon)
	if p.AllowDebug {
		allowed |= attrDebug
	}
	switch {
	case attributes&attrDebug != 0 && !p.AllowDebug:
		return refuse(CheckTDAttributes, "the domain can be debugged by its host")
	case attributes&^allowed != 0:
		return refuse(CheckTDAttributes, "attributes %#x have bits %#x that must be clear", attributes, attributes&^allowed)
	case attributes&attrSEPTVEDisable == 0 && !p.AllowSEPTVE:
		return refuse(CheckTDAttributes, "SEPT_VE_DISABLE is not set in attributes %#x", attributes)
	}
	return nil
}

// zero reports whether b has no bit set.
func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
