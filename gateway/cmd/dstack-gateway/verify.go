package main

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dstack.host/gateway/config"
	"dstack.host/gateway/verify"
	"dstack.host/ratls"
)

// maxBundleFile is more than any bundle that is read has, in bytes.
const maxBundleFile = 64 << 20

// verifyFlags are what verify can be told.
type verifyFlags struct {
	ca, simulated, policy, bundle, at string
	nonce, exporter                   string
	resolvers                         []string
	asJSON, freshApp, skipDNS, dnssec bool
}

func verifyCommand() *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use:   "verify URL|FILE",
		Short: "Verify what runs behind a URL: exit 0 when no check fails, 1 when one does, 2 when it could not be tried",
		Long: `verify connects to the URL, asks for the attestation document with a fresh nonce that is bound to this very TLS
session, and walks the chain: Intel's root, the gateway's quote, its statement, the key of this connection, the app's
quote, its event log, the app's id in the name, and the WireGuard key of the tunnel. Beside it, it asks who else could
have a certificate of the name: certificate transparency, CAA records, DNSSEC, the history of the gateway's keys. Each
link is one line. What the relying party did not ask for is skipped and says so; evidence that is missing fails.

With --bundle everything that was seen is kept in a file, and "verify FILE" judges it again without a network.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			result, err := f.verify(cmd, args[0])
			if err != nil {
				return err
			}
			if err := f.keep(result); err != nil {
				return err
			}
			if err := f.print(cmd.OutOrStdout(), result); err != nil {
				return err
			}
			if !result.OK() {
				return exit(exitFailed)
			}
			return nil
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.ca, "ca", "", "accept TLS certificates below the roots in this PEM `FILE` instead of the system's")
	flags.StringVar(&f.simulated, "simulated-root", "", "also accept simulated TDX evidence below the root in this PEM `FILE`; it proves nothing about hardware")
	flags.StringVar(&f.policy, "policy", "", "accept only what this TOML `FILE` says; configs/policy.toml has every key")
	flags.StringSliceVar(&f.resolvers, "resolver", nil, "ask this `ADDRESS[:PORT]` for CAA and DNSSEC records instead of the system's resolvers; may be repeated")
	flags.BoolVar(&f.skipDNS, "skip-dns", false, "ask no resolver, instead of failing when none can be reached")
	flags.BoolVar(&f.dnssec, "dnssec", false, "validate the CAA records from the root zone's keys down")
	flags.StringVar(&f.exporter, "exporter", string(verify.ExporterRequire), "binding of the answer to this TLS session: `MODE` require fails without, auto takes what the gateway can, off does not ask")
	flags.StringVar(&f.nonce, "nonce", "", "have this `HEX` of 32 bytes quoted, instead of random ones")
	flags.BoolVar(&f.freshApp, "fresh-app", false, "have the instances quote the nonce too, not only the gateway")
	flags.StringVar(&f.bundle, "bundle", "", "keep everything that was seen in this `FILE`")
	flags.StringVar(&f.at, "at", "", "judge a bundle as of this `TIME`, as 2026-11-24T05:00:00Z or now, instead of its own")
	flags.BoolVar(&f.asJSON, "json", false, "print the result as JSON")
	return c
}

// verify asks a URL, or judges a bundle.
func (f *verifyFlags) verify(cmd *cobra.Command, what string) (*verify.Result, error) {
	o, err := f.options(cmd)
	if err != nil {
		return nil, err
	}
	if !isFile(what) {
		if f.at != "" {
			return nil, errors.New("--at judges a bundle; a URL is judged as of now")
		}
		return verify.URL(cmd.Context(), what, o)
	}
	if f.bundle != "" || len(f.resolvers) > 0 || f.nonce != "" {
		return nil, errors.New("--bundle, --resolver and --nonce need a URL: a bundle is judged without a network")
	}
	return f.replay(cmd.Context(), what, o)
}

// isFile tells a bundle from a URL, which may lack its scheme.
func isFile(what string) bool {
	info, err := os.Stat(what)
	return err == nil && info.Mode().IsRegular() && !strings.Contains(what, "://")
}

func (f *verifyFlags) replay(ctx context.Context, file string, o verify.Options) (*verify.Result, error) {
	in, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = in.Close() }()
	text, err := io.ReadAll(io.LimitReader(in, maxBundleFile))
	if err != nil {
		return nil, err
	}
	b, err := verify.ParseBundle(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if f.at != "" {
		at, err := parseTime(f.at)
		if err != nil {
			return nil, err
		}
		o.Chain.Now = func() time.Time { return at }
	}
	return b.Verify(ctx, o)
}

func parseTime(text string) (time.Time, error) {
	if text == "now" {
		return time.Now(), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("--at %q is no time, as 2026-11-24T05:00:00Z or now", text)
	}
	return at, nil
}

// keep writes the bundle, whatever the verdict.
func (f *verifyFlags) keep(r *verify.Result) error {
	if f.bundle == "" {
		return nil
	}
	text, err := r.Bundle.Encode()
	if err != nil {
		return err
	}
	return os.WriteFile(f.bundle, text, 0o644)
}

func (f *verifyFlags) print(w io.Writer, r *verify.Result) error {
	switch {
	case f.asJSON:
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(r)
	case coloured(w):
		return r.PrintColour(w)
	}
	return r.Print(w)
}

// coloured reports whether w is a terminal whose user did not object (https://no-color.org).
func coloured(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// options are what is accepted.
func (f *verifyFlags) options(cmd *cobra.Command) (verify.Options, error) {
	o := verify.Options{FreshApp: f.freshApp, SkipDNS: f.skipDNS, DNSSEC: f.dnssec, Exporter: verify.Exporter(f.exporter)}
	switch o.Exporter {
	case verify.ExporterRequire, verify.ExporterAuto, verify.ExporterOff:
	default:
		return o, fmt.Errorf("--exporter %q: want require, auto or off", f.exporter)
	}
	if o.SkipDNS && (o.DNSSEC || len(f.resolvers) > 0) {
		return o, errors.New("--skip-dns asks nobody, --dnssec and --resolver need answers: choose")
	}
	if f.nonce != "" {
		var err error
		if o.Nonce, err = hex.DecodeString(f.nonce); err != nil || len(o.Nonce) != ratls.NonceSize {
			return o, fmt.Errorf("--nonce %q: want %d hex digits", f.nonce, 2*ratls.NonceSize)
		}
	}
	for _, text := range f.resolvers {
		resolver, err := verify.Resolver(text)
		if err != nil {
			return o, fmt.Errorf("--resolver: %w", err)
		}
		o.Resolvers = append(o.Resolvers, resolver)
	}
	if f.ca != "" {
		var err error
		if o.CAs, err = readCAs(f.ca); err != nil {
			return o, err
		}
	}
	if f.simulated != "" {
		root, err := readRoot(f.simulated)
		if err != nil {
			return o, err
		}
		if _, err := ratls.NewVerifier(ratls.VerifierConfig{Root: root, Getter: ratls.Stapled(nil)}); err != nil {
			return o, fmt.Errorf("--simulated-root %s: %w", f.simulated, err)
		}
		o.Chain.Roots = []ratls.VerifierConfig{{}, {Root: root}}
	}
	if f.policy == "" {
		return o, nil
	}
	policy, err := readPolicy(cmd, f.policy)
	o.Chain = policy.Chain(o.Chain)
	return o, err
}

// readPolicy reads the file of --policy. Its faults go to standard error, a line each.
func readPolicy(cmd *cobra.Command, file string) (config.Policy, error) {
	policy, err := config.LoadPolicy(file)
	if faults, ok := errors.AsType[config.Faults](err); ok {
		fmt.Fprintln(cmd.ErrOrStderr(), faults)
		return policy, exit(exitError)
	}
	return policy, err
}

// readCAs reads the file of --ca.
func readCAs(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("--ca %s: holds no certificate in PEM", file)
	}
	return pool, nil
}

func readRoot(file string) (*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("--simulated-root %s: holds no certificate in PEM", file)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("--simulated-root %s: %w", file, err)
	}
	return root, nil
}
