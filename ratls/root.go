package ratls

import (
	"bytes"
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"errors"
)

// intelRootPEM is the "Intel SGX Root CA", from which all attestation keys of Intel's processors descend. Its SHA-256
// fingerprint, 44a0196b…cfab674d3, is held by a test. Source: Intel's PCS certificate distribution,
// https://certificates.trustedservices.intel.com/IntelSGXRootCA.der.
//
//go:embed intel_root.pem
var intelRootPEM []byte

// IntelRoot returns Intel's SGX Root CA, the root of hardware evidence, as a fresh value.
func IntelRoot() *x509.Certificate {
	block, _ := pem.Decode(intelRootPEM)
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		panic("ratls: the embedded Intel root does not parse: " + err.Error())
	}
	return root
}

// kindOf is the kind of evidence below root. It goes by the key, not by the certificate: a certificate that another issuer
// made of Intel's key must not turn hardware into a simulation or the reverse.
func kindOf(root *x509.Certificate) Kind {
	if bytes.Equal(root.RawSubjectPublicKeyInfo, IntelRoot().RawSubjectPublicKeyInfo) {
		return KindTDX
	}
	return KindSimulatedTDX
}

// checkRoot reports why root cannot be a root of evidence.
func checkRoot(root *x509.Certificate) error {
	switch {
	case !root.IsCA:
		return errors.New("root certificate is not a certificate authority")
	case len(root.CRLDistributionPoints) == 0:
		return errors.New("root certificate names no place of its revocation list")
	case root.CheckSignatureFrom(root) != nil:
		return errors.New("root certificate is not signed by itself")
	}
	return nil
}
