package ratls

import (
	"errors"
	"fmt"

	"github.com/google/go-tdx-guest/abi"
	pb "github.com/google/go-tdx-guest/proto/tdx"
)

// maxQuoteSize bounds a quote: Linux's configfs-tsm hands out at most 32 KiB, and a usual quote has about 5.
const maxQuoteSize = 32 << 10

// quoteBody is what the TD reports of versions 4 and 5 have in common.
type quoteBody interface {
	GetTeeTcbSvn() []byte
	GetMrSeam() []byte
	GetMrSignerSeam() []byte
	GetSeamAttributes() []byte
	GetTdAttributes() []byte
	GetXfam() []byte
	GetMrTd() []byte
	GetMrConfigId() []byte
	GetMrOwner() []byte
	GetMrOwnerConfig() []byte
	GetRtmrs() [][]byte
	GetReportData() []byte
}

// wireQuote is a quote as go-tdx-guest parses it. go-tdx-guest writes to its values while it verifies, so each is used for one
// call only.
type wireQuote struct {
	proto  any
	header *pb.Header
	body   quoteBody
	signed *pb.Ecdsa256BitQuoteV4AuthData
	// serviceTD is nil unless the body is of TDX 1.5.
	serviceTD []byte
}

// qeReport is the report of the quoting enclave.
func (w *wireQuote) qeReport() *pb.EnclaveReport {
	return w.signed.GetCertificationData().GetQeReportCertificationData().GetQeReport()
}

// ParseQuote reads a raw TDX quote of version 4, or of version 5 with a TDX 1.0 or 1.5 body (Intel TDX DCAP Quoting Library
// API, appendix A). Nothing is verified: the result is what someone claims. Zero bytes may follow the quote, for Intel's quote
// generation service pads to the size of its buffer; anything else is refused. A quote's hash is no identity: padding and ECDSA
// signatures are malleable. Errors are a [*Refusal] of [CheckQuoteParse].
func ParseQuote(raw []byte) (*Quote, error) {
	w, err := parseWire(raw)
	if err != nil {
		return nil, err
	}
	return w.quote(), nil
}

// parseWire reads raw into fresh values.
func parseWire(raw []byte) (*wireQuote, error) {
	if len(raw) > maxQuoteSize {
		return nil, refuse(CheckQuoteParse, "quote has %d bytes, at most %d are read", len(raw), maxQuoteSize)
	}
	var proto any
	if err := guard(func() (err error) { proto, err = abi.QuoteToProto(raw); return err }); err != nil {
		return nil, &Refusal{Check: CheckQuoteParse, Err: err}
	}
	var w *wireQuote
	var trailing []byte
	switch q := proto.(type) {
	case *pb.QuoteV4:
		w = &wireQuote{proto: q, header: q.GetHeader(), body: q.GetTdQuoteBody(), signed: q.GetSignedData()}
		trailing = q.GetExtraBytes()
	case *pb.QuoteV5:
		body := q.GetTdQuoteBodyDescriptor().GetTdQuoteBodyV5()
		w = &wireQuote{proto: q, header: q.GetHeader(), body: body, signed: q.GetSignedData(), serviceTD: body.GetMrServiceTd()}
		trailing = q.GetExtraBytes()
	default:
		return nil, refuse(CheckQuoteParse, "quote of an unknown form %T", proto)
	}
	if !zero(trailing) {
		return nil, refuse(CheckQuoteParse, "%d bytes follow the quote that are not padding", len(trailing))
	}
	return w, nil
}

// quote copies the fields out; go-tdx-guest has checked all lengths.
func (w *wireQuote) quote() *Quote {
	q := &Quote{Version: int(w.header.GetVersion())}
	copy(q.TEETCBSVN[:], w.body.GetTeeTcbSvn())
	copy(q.MRSeam[:], w.body.GetMrSeam())
	copy(q.MRSignerSeam[:], w.body.GetMrSignerSeam())
	copy(q.SeamAttributes[:], w.body.GetSeamAttributes())
	copy(q.TDAttributes[:], w.body.GetTdAttributes())
	copy(q.XFAM[:], w.body.GetXfam())
	copy(q.MRTD[:], w.body.GetMrTd())
	copy(q.MRConfigID[:], w.body.GetMrConfigId())
	copy(q.MROwner[:], w.body.GetMrOwner())
	copy(q.MROwnerConfig[:], w.body.GetMrOwnerConfig())
	for i, rtmr := range w.body.GetRtmrs() {
		copy(q.RTMR[i][:], rtmr)
	}
	copy(q.ReportData[:], w.body.GetReportData())
	if w.serviceTD != nil {
		q.MRServiceTD = new(Measurement)
		copy(q.MRServiceTD[:], w.serviceTD)
	}
	return q
}

// guard runs f, which hands hostile bytes to go-tdx-guest, and turns a panic into an error. At the pinned version its parser
// slices without looking (version 4 with signed data of size 0, QE authentication data of size 0xffff, version 5 with signed
// data of size −1). Errors are cut short, for they quote the input.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = clip(fmt.Errorf("malformed: %v", p))
		}
	}()
	return clip(f())
}

// clip cuts the text of an error that may repeat hostile input.
func clip(err error) error {
	const limit = 400
	if err == nil || len(err.Error()) <= limit {
		return err
	}
	return errors.New(err.Error()[:limit] + "…")
}
