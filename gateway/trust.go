package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"dstack.host/gateway/config"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// Trust is the TEE that a gateway runs in, and the judge of its own and of others' quotes.
type Trust struct {
	// Platform makes the gateway's own quotes.
	Platform ratls.Platform
	// Verifier judges quotes. Its kind is that of the platform: a simulated gateway takes simulated CVMs, a real one real ones.
	Verifier *ratls.Verifier
	// Root is that of a simulated platform; nil for Intel's.
	Root *x509.Certificate
}

// roots are those that evidence shown to this gateway may descend from.
func (t Trust) roots() []ratls.VerifierConfig {
	roots := []ratls.VerifierConfig{{}}
	if t.Root != nil {
		roots = append(roots, ratls.VerifierConfig{Root: t.Root})
	}
	return roots
}

// openTrust takes what was given, or opens what the configuration names.
func (g *Gateway) openTrust(given *Trust) (err error) {
	if given != nil {
		g.trust = *given
	} else if g.trust, err = openTrust(g.config); err != nil {
		return fmt.Errorf("attestation.kind = %q: %w", g.config.Attestation.Kind, err)
	}
	if platform, verifier := g.trust.Platform.Kind(), g.trust.Verifier.Kind(); platform != verifier {
		return fmt.Errorf("the platform is %s and the verifier's root is that of %s", platform, verifier)
	}
	return nil
}

func openTrust(c config.Config) (Trust, error) {
	if c.Attestation.Kind == string(ratls.KindSimulatedTDX) {
		return openSimulated(c)
	}
	a := c.Attestation
	platform, err := ratls.OpenTDX(ratls.TDXOptions{EventLog: a.EventLog, AppCompose: a.AppCompose, VMConfig: a.VMConfig})
	if err != nil {
		return Trust{}, fmt.Errorf(`%w, or set attestation.kind = "simulated-tdx", which proves nothing about hardware and says so everywhere`, err)
	}
	getter := ratls.NewCache(ratls.CacheConfig{Getter: ratls.ThroughPCCS(ratls.NewHTTPGetter(nil), a.PCCS)})
	verifier, err := ratls.NewVerifier(ratls.VerifierConfig{Getter: getter, Policy: Policy(c)})
	return Trust{Platform: platform, Verifier: verifier}, err
}

// Policy is the appraisal policy of the configuration.
func Policy(c config.Config) ratls.Policy {
	a := c.Attestation
	return ratls.Policy{
		AcceptedTCB: a.AcceptedTCB, MinEvaluationDataNumber: uint32(a.MinEvaluationDataNumber),
		MaxCollateralAge: a.MaxCollateralAge, AllowDebug: a.AllowDebug,
	}
}

// simulatedCompose is what a simulated gateway measures as its own app-compose.json.
const simulatedCompose = `{"manifest_version":2,"name":"dstack-gateway","runner":"docker-compose","kms_enabled":false,"gateway_enabled":false}`

// openSimulated is the software platform of this data folder, kept there so that its root stays the same. CVMs join it
// with the same folder's authority.
func openSimulated(c config.Config) (Trust, error) {
	authority, err := Authority(c.DataDir)
	if err != nil {
		return Trust{}, err
	}
	return Simulated(authority, Policy(c))
}

// Authority is the vendor of simulated machines of a data folder, made when it is not there yet. Its root certificate
// lies beside it, in simulated-tdx-root.pem.
func Authority(dataDir string) (*simtdx.Authority, error) {
	file := SimulatedAuthorityFile(dataDir)
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(file)
	if err == nil {
		return simtdx.Load(text, simtdx.Options{})
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	authority, err := simtdx.New(simtdx.Options{})
	if err != nil {
		return nil, err
	}
	if text, err = authority.Save(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	return authority, os.WriteFile(SimulatedRootFile(dataDir), encodeCertificate(authority.Root()), 0o644)
}

// SimulatedAuthorityFile is where a data folder's vendor of simulated machines lies, with its private keys.
func SimulatedAuthorityFile(dataDir string) string {
	return filepath.Join(dataDir, "simulated-tdx.pem")
}

// SimulatedRootFile is where the root of a data folder's simulated machines lies.
func SimulatedRootFile(dataDir string) string {
	return filepath.Join(dataDir, "simulated-tdx-root.pem")
}

// Simulated boots a simulated gateway TD on a machine of the authority.
func Simulated(authority *simtdx.Authority, policy ratls.Policy) (Trust, error) {
	machine, err := authority.Machine(simtdx.MachineOptions{})
	if err != nil {
		return Trust{}, err
	}
	td, err := machine.Boot(simtdx.VM{AppCompose: simulatedCompose})
	if err != nil {
		return Trust{}, err
	}
	getter := ratls.NewCache(ratls.CacheConfig{Getter: authority.Getter(), Hosts: append(ratls.IntelHosts(), simtdx.Host)})
	verifier, err := ratls.NewVerifier(ratls.VerifierConfig{Root: authority.Root(), Getter: getter, Policy: policy})
	return Trust{Platform: td, Verifier: verifier, Root: authority.Root()}, err
}

// attestor has keys and accounts quoted by the attester, which is made after the certificates.
type attestor struct{ g *Gateway }

// AttestKey has a TLS key quoted.
func (a attestor) AttestKey(ctx context.Context, spki []byte) error {
	return a.g.attester.AttestKey(ctx, spki)
}

// AttestAccount has an ACME account quoted.
func (a attestor) AttestAccount(ctx context.Context, uri string) error {
	return a.g.attester.AttestAccount(ctx, uri)
}
