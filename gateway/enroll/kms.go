package enroll

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	"dstack.host/ratls"
)

const (
	// tempCA names the KMS's second, self-signed authority, whose private key it hands to anybody who wants to talk to it
	// (dstack 0.6 kms/src/onboard_service.rs).
	tempCA = "Dstack Client Temp CA"
	// usageApp is what the KMS writes into the certificates of apps, beside "app:ca" and "kms:rpc" in others.
	usageApp = "app:custom"
)

// checkKMSRoot tells why a certificate can't be what CVMs are identified by.
func checkKMSRoot(root *x509.Certificate) error {
	switch {
	case root == nil:
		return nil
	case !root.BasicConstraintsValid || !root.IsCA:
		return fmt.Errorf("KMS root %q is no certificate authority", root.Subject)
	case root.Subject.CommonName == tempCA:
		return fmt.Errorf("KMS root is the %q, whose private key the KMS hands to anybody: configure the root of the KMS instead", tempCA)
	}
	return nil
}

// underKMS tells why the app info of a certificate does not count. It counts when the chain ends in the configured root,
// and everything in the chain that names an app names this one. The texts contain what makes a guest come back with its
// quote, which needs no KMS.
func (s *Server) underKMS(chain []*x509.Certificate, carried *ratls.CertEvidence) error {
	if s.config.KMSRoot == nil {
		return errors.New("the client certificate carries app info but no quote, and this gateway trusts no KMS (enroll.kms_root): no attestation provided")
	}
	options := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		CurrentTime:   s.config.Now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	options.Roots.AddCert(s.config.KMSRoot)
	for _, c := range chain[1:] {
		if reissued(c, s.config.KMSRoot) {
			options.Roots.AddCert(c)
		} else {
			options.Intermediates.AddCert(c)
		}
	}
	verified, err := chain[0].Verify(options)
	if err != nil {
		return fmt.Errorf("the client certificate does not chain to the KMS root of this gateway, and has no quote (no attestation provided): %w", err)
	}
	if carried.Usage != "" && carried.Usage != usageApp {
		return fmt.Errorf("the client certificate is for %.16q, not for an app", carried.Usage)
	}
	for _, path := range verified {
		if err := oneApp(path, carried.AppInfo.AppID); err != nil {
			return err
		}
	}
	return nil
}

// reissued reports whether c is the root once more: the same name and key, signed with it. A KMS that is set up anew from
// its key has such a root, with other dates.
func reissued(c, root *x509.Certificate) bool {
	return bytes.Equal(c.RawSubjectPublicKeyInfo, root.RawSubjectPublicKeyInfo) &&
		bytes.Equal(c.RawSubject, root.RawSubject) && c.CheckSignatureFrom(root) == nil
}

// oneApp refuses a chain in which a certificate is for another app than the leaf's app info says: the authority of one app
// can't make certificates for another.
func oneApp(path []*x509.Certificate, app []byte) error {
	for _, c := range path {
		carried, err := ratls.ReadCertificate(c)
		if err != nil {
			return fmt.Errorf("certificate chain, %q: %w", c.Subject, err)
		}
		if carried.AppID != nil && !bytes.Equal(carried.AppID, app) {
			return fmt.Errorf("app info is of app %x, certificate %q of its chain is for app %x", app, c.Subject, carried.AppID)
		}
	}
	return nil
}

// isGateway tells why a caller is none of this gateway's own app.
func (s *Server) isGateway(r *http.Request) error {
	id, err := s.identified(r.Context(), chainOf(r))
	if err != nil {
		return err
	}
	if len(s.config.AppID) == 0 || !bytes.Equal(id.info.AppID, s.config.AppID) {
		return refuse(reasonIdentity, errors.New("the peers of this gateway are told to gateways of its own app"))
	}
	return nil
}
