package join

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"dstack.host/ratls"
)

// Trust says which gateways this VM registers with. Everything that is set has to hold; it has to name a gateway by at least one of
// CAs, KMS, Apps and Measurements, for without that any program in a TDX guest could be it.
type Trust struct {
	// CAs are roots that vouch for the gateway's certificate and host name. A certificate of a dstack KMS, which gives any app
	// any host name, counts only with Apps.
	CAs *x509.CertPool
	// KMS adds the root of this VM's own certificate to them, as dstack's guests do.
	KMS bool
	// Apps are the app ids that the gateway may have.
	Apps []ratls.Hex
	// Quote demands the gateway's own TDX quote, which Policy and Measurements judge. It is implied where there are no CAs.
	Quote        bool
	Policy       ratls.Policy
	Measurements ratls.Pins
	// PCCS is where collateral is fetched from; "" is Intel's service.
	PCCS string
}

// byQuote reports whether the gateway's quote decides.
func (t *Trust) byQuote() bool { return t.Quote || !t.byCA() }

func (t *Trust) byCA() bool { return t.CAs != nil || t.KMS }

// errNobody is about a gateway that nothing names.
var errNobody = errors.New("no gateway is trusted: name it by its app id (--gateway-app ID, which `dstack-gateway verify https://gateway.<base>` prints), by its measurements (--policy FILE), or by the CA of its certificate (--ca FILE, or --kms inside dstack)")

func (t *Trust) check() error {
	if !t.byCA() && len(t.Apps) == 0 && t.Measurements.Empty() {
		return errNobody
	}
	return nil
}

// judge decides on gateways.
type judge struct {
	Trust
	verifier *ratls.Verifier // nil where quotes don't decide
	cas      *x509.CertPool  // nil where they don't
}

// judge makes the trust ready for the guest: its simulated gateways, and the root of its KMS.
func (t Trust) judge(g *guest, root *x509.Certificate) (*judge, error) {
	j := &judge{Trust: t, cas: t.CAs}
	if t.KMS {
		if root == nil {
			return nil, errors.New("--kms: this VM's certificate is not below a KMS; that needs the guest agent of dstack")
		}
		if j.cas = x509.NewCertPool(); t.CAs != nil {
			j.cas = t.CAs.Clone()
		}
		j.cas.AddCert(root)
	}
	if !t.byQuote() {
		return j, nil
	}
	c := ratls.VerifierConfig{Policy: t.Policy}
	if g.authority != nil {
		c.Root, c.Getter = g.authority.Root(), g.authority.Getter()
	} else {
		c.Getter = ratls.NewCache(ratls.CacheConfig{Getter: ratls.ThroughPCCS(ratls.NewHTTPGetter(nil), t.PCCS)})
	}
	var err error
	j.verifier, err = ratls.NewVerifier(c)
	return j, err
}

// config is the TLS configuration for connections to gateways, without this VM's certificate.
func (j *judge) config() *tls.Config {
	// Without a CA the name and the issuer say nothing: trust judges the quote before anything is sent.
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: j.cas, InsecureSkipVerify: j.cas == nil}
}

// trust judges the gateway of a connection whose handshake is complete.
func (j *judge) trust(ctx context.Context, state tls.ConnectionState) error {
	leaf := state.PeerCertificates[0] // clients always see one
	if j.cas != nil {
		if err := j.certified(leaf); err != nil {
			return err
		}
	}
	if j.verifier == nil {
		return nil
	}
	q, info, err := ratls.VerifyCertificate(ctx, j.verifier, leaf)
	if err != nil {
		return fmt.Errorf("quote of the gateway: %w", err)
	}
	if err := j.expected(info.AppID); err != nil {
		return err
	}
	return j.Measurements.Judge(q, info)
}

// certified judges a certificate that TLS has accepted: whose it is, by dstack's extension.
func (j *judge) certified(leaf *x509.Certificate) error {
	e, err := ratls.ReadCertificate(leaf)
	if err != nil {
		return err
	}
	switch {
	case e.AppID != nil:
		return j.expected(e.AppID)
	case len(j.Apps) > 0 && j.verifier == nil:
		return errors.New("the gateway's certificate names no app id: drop --gateway-app to go by its host name alone")
	}
	return nil
}

// expected judges the app id of a gateway that is proven to have it.
func (j *judge) expected(id []byte) error {
	if len(j.Apps) == 0 && (j.verifier == nil || j.Measurements.Empty()) {
		return fmt.Errorf("the gateway is app %x, and nothing says that it is the one: if it is, add --gateway-app %x", id, id)
	}
	if len(j.Apps) > 0 && !slices.ContainsFunc(j.Apps, func(want ratls.Hex) bool { return bytes.Equal(want, id) }) {
		return fmt.Errorf("the gateway is app %x, not the expected %s", id, list(j.Apps))
	}
	return nil
}

func list(ids []ratls.Hex) string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = hex.EncodeToString(id)
	}
	return strings.Join(texts, " or ")
}
