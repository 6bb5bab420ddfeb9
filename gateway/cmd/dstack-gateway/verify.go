package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"dstack.host/gateway/verify"
	"dstack.host/ratls"
)

func verifyCommand() *cobra.Command {
	var ca, simulated string
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify URL",
		Short: "Verify what runs behind a URL: exit 0 when every check passes, 1 when one fails, 2 when it could not be tried",
		Long: `verify connects to the URL, asks for the attestation document with a fresh nonce that is bound to this very TLS
session, and walks the chain: Intel's root, the gateway's quote, its statement, the key of this connection, the app's
quote, its event log, the app's id in the name, and the WireGuard key of the tunnel. Each link is one line.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := options(ca, simulated)
			if err != nil {
				return err
			}
			result, err := verify.URL(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				err = encoder.Encode(result)
			} else {
				err = result.Print(cmd.OutOrStdout())
			}
			if err == nil && !result.OK() {
				err = exit(exitFailed)
			}
			return err
		},
	}
	c.Flags().StringVar(&ca, "ca", "", "accept TLS certificates below the roots in this PEM `FILE` instead of the system's")
	c.Flags().StringVar(&simulated, "simulated-root", "", "also accept simulated TDX evidence below the root in this PEM `FILE`; it proves nothing about hardware")
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return c
}

func options(ca, simulated string) (verify.Options, error) {
	var o verify.Options
	if ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			return o, err
		}
		o.CAs = x509.NewCertPool()
		if !o.CAs.AppendCertsFromPEM(text) {
			return o, fmt.Errorf("--ca %s: holds no certificate in PEM", ca)
		}
	}
	if simulated != "" {
		text, err := os.ReadFile(simulated)
		if err != nil {
			return o, err
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return o, fmt.Errorf("--simulated-root %s: holds no certificate in PEM", simulated)
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return o, fmt.Errorf("--simulated-root %s: %w", simulated, err)
		}
		o.Chain.Roots = []ratls.VerifierConfig{{}, {Root: root}}
	}
	return o, nil
}
