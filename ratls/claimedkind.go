package ratls

import tdx "github.com/google/go-tdx-guest/verify"

// ClaimedKind says which root of trust the certificates in a raw quote name. Nothing is verified: it is for a guest that has to
// say of which kind its own evidence is.
func ClaimedKind(raw []byte) (kind Kind, err error) {
	w, err := parseWire(raw)
	if err != nil {
		return "", err
	}
	err = guard(func() error {
		chain, err := tdx.ExtractChainFromQuote(w.proto)
		if err == nil {
			kind = kindOf(chain.RootCertificate)
		}
		return err
	})
	if err != nil {
		return "", &Refusal{Check: CheckQuoteRoot, Err: err}
	}
	return kind, nil
}
