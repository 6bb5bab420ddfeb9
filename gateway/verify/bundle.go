package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"dstack.host/ratls"
)

// BundleFormat names the form of a bundle. One of another form is refused.
const BundleFormat = "https://dstack.host/verify-bundle/v1"

// Bounds of a bundle.
const (
	maxBundle       = 32 << 20
	maxCertificates = 16
	maxCertificate  = 64 << 10
	maxSCTs         = 64
	maxAnswers      = 64 // of DNS
	maxMessage      = 64 << 10
	maxExtra        = 256 // pieces of collateral
)

// Bundle is everything that a verification saw.
type Bundle struct {
	// Format is BundleFormat.
	Format string `json:"format"`
	// URL is what was verified, at Time.
	URL  string    `json:"url"`
	Time time.Time `json:"time"`
	// TLS is the connection on which the document came.
	TLS Session `json:"tls"`
	// Nonce was sent with the request; Exporter is the connection's keying material for it, "" when it was not to be bound.
	// Unbound says why.
	Nonce    ratls.Hex `json:"nonce"`
	Exporter ratls.Hex `json:"exporter"`
	Unbound  string    `json:"unbound"`
	// FreshApp says that the instances were asked to answer the challenge too.
	FreshApp bool `json:"fresh_app"`
	// Document is the attestation document, with the collateral that the gateway staples; ACMEInfo the history of its keys.
	Document Answer `json:"document"`
	ACMEInfo Answer `json:"acme_info"`
	// Resolvers were to be asked, and DNS is what they answered; none when the name is this machine's.
	Resolvers []string    `json:"resolvers"`
	DNS       []DNSAnswer `json:"dns"`
	// Collateral is what was fetched beside the document's.
	Collateral []ratls.Collateral `json:"collateral"`
}

// Session is what a TLS connection showed: its version, the DER certificates beginning with the leaf, and the timestamps of
// the TLS extension (RFC 6962 section 3.3.1).
type Session struct {
	Version      string         `json:"version"`
	Certificates []ratls.Base64 `json:"certificates"`
	SCTs         []ratls.Base64 `json:"scts"`
}

// Answer is an HTTP response, or why there is none.
type Answer struct {
	Status int          `json:"status"`
	Body   ratls.Base64 `json:"body"`
	Error  string       `json:"error"`
}

// DNSAnswer is the response of a resolver as a DNS message, or why there is none.
type DNSAnswer struct {
	Name     string       `json:"name"`
	Type     string       `json:"type"`
	Resolver string       `json:"resolver"`
	Message  ratls.Base64 `json:"message"`
	Error    string       `json:"error"`
}

// Encode writes the bundle as JSON.
func (b *Bundle) Encode() ([]byte, error) {
	c := *b
	c.TLS.Certificates = append([]ratls.Base64{}, b.TLS.Certificates...)
	c.TLS.SCTs = append([]ratls.Base64{}, b.TLS.SCTs...)
	c.Resolvers = append([]string{}, b.Resolvers...)
	c.DNS = append([]DNSAnswer{}, b.DNS...)
	c.Collateral = append([]ratls.Collateral{}, b.Collateral...)
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(c); err != nil {
		return nil, err
	}
	if out.Len() > maxBundle {
		return nil, fmt.Errorf("the bundle has %d bytes, at most %d could be read again", out.Len(), maxBundle)
	}
	return out.Bytes(), nil
}

// ParseBundle reads what Encode wrote: strictly, at most 32 MiB, its parts within their bounds. Nothing is verified.
func ParseBundle(data []byte) (*Bundle, error) {
	b := new(Bundle)
	if err := ratls.DecodeStrict(data, maxBundle, false, b); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if err := b.check(); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	return b, nil
}

// check reports all faults of the bundle's form.
func (b *Bundle) check() error {
	var errs []error
	wrong := func(is bool, format string, args ...any) {
		if is {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	wrong(b.Format != BundleFormat, "format is %q, want %q", printable(b.Format), BundleFormat)
	_, err := parseTarget(b.URL)
	wrong(err != nil, "url: %v", err)
	wrong(b.Time.IsZero(), "it has no time")
	wrong(len(b.Nonce) != ratls.NonceSize, "nonce has %d bytes, want %d", len(b.Nonce), ratls.NonceSize)
	wrong(len(b.Exporter) != 0 && len(b.Exporter) != ratls.ExporterSize, "exporter has %d bytes, want %d or none", len(b.Exporter), ratls.ExporterSize)
	wrong(len(b.Document.Body) > maxDocument, "the document has %d bytes, at most %d are read", len(b.Document.Body), maxDocument)
	wrong(len(b.ACMEInfo.Body) > maxACMEInfo, "the key history has %d bytes, at most %d are read", len(b.ACMEInfo.Body), maxACMEInfo)
	wrong(len(b.Resolvers) > maxAnswers || len(b.DNS) > maxAnswers, "%d answers of %d resolvers, at most %d are read", len(b.DNS), len(b.Resolvers), maxAnswers)
	for _, a := range b.DNS {
		wrong(len(a.Message) > maxMessage, "a DNS answer has %d bytes, at most %d are possible", len(a.Message), maxMessage)
	}
	wrong(len(b.Collateral) > maxExtra, "%d pieces of collateral, at most %d are read", len(b.Collateral), maxExtra)
	wrong(len(b.TLS.SCTs) > maxSCTs, "%d timestamps, at most %d are read", len(b.TLS.SCTs), maxSCTs)
	_, err = b.TLS.chain()
	return errors.Join(append(errs, err)...)
}

// chain parses the certificates.
func (s Session) chain() ([]*x509.Certificate, error) {
	if n := len(s.Certificates); n == 0 || n > maxCertificates {
		return nil, fmt.Errorf("%d certificates, want 1 to %d", n, maxCertificates)
	}
	chain := make([]*x509.Certificate, len(s.Certificates))
	for i, der := range s.Certificates {
		if len(der) > maxCertificate {
			return nil, fmt.Errorf("certificate %d has %d bytes, at most %d are read", i, len(der), maxCertificate)
		}
		var err error
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i, err)
		}
	}
	return chain, nil
}

// subject is what the chain is told of the connection.
func (b *Bundle) subject(t target, leaf *x509.Certificate) ratls.Subject {
	s := ratls.Subject{Host: t.canonical, ID: t.id, SPKI: leaf.RawSubjectPublicKeyInfo, Nonce: b.Nonce, Unbound: b.Unbound, FreshApp: b.FreshApp}
	if len(b.Exporter) > 0 {
		s.Exporter = b.Exporter
	}
	return s
}

// document is the attestation document, or why there is none.
func (b *Bundle) document() (text []byte, refusal string) {
	if b.Document.Status == http.StatusOK && b.Document.Error == "" {
		return b.Document.Body, ""
	}
	return nil, b.Document.refusal()
}
