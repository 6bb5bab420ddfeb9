package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"dstack.host/gateway/explorer"
	"dstack.host/ratls"
)

func explorerCommand() *cobra.Command {
	var listen, simulated, ca string
	c := &cobra.Command{
		Use:   "explorer",
		Short: "Show quotes, event logs, documents and bundles, decoded and checked, in a browser",
		Long: `explorer serves a page on this machine: paste or upload a TDX quote, an event log, an attestation document, a bundle of
verify, an RA-TLS certificate or an attestation of dstack, and see everything decoded, with the same checks as verify.
Nothing leaves the process, and nothing is fetched.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config := explorer.Config{}
			if simulated != "" {
				root, err := readRoot(simulated)
				if err != nil {
					return err
				}
				config.Roots = []ratls.VerifierConfig{{}, {Root: root}}
			}
			if ca != "" {
				pool, err := readCAs(ca)
				if err != nil {
					return err
				}
				config.CAs = pool
			}
			listener, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("%w; choose another address with --listen", err)
			}
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "The explorer is at http://%s/\nCtrl-C ends it.\n", listener.Addr()); err != nil {
				return err
			}
			return serveUntil(cmd.Context(), listener, explorer.New(config))
		},
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:8888", "`ADDRESS:PORT` to serve at")
	c.Flags().StringVar(&ca, "ca", "", "accept TLS certificates in bundles below the roots in this PEM `FILE` instead of the system's")
	c.Flags().StringVar(&simulated, "simulated-root", "", "also accept simulated TDX evidence below the root in this PEM `FILE`; it proves nothing about hardware")
	return c
}

// serveUntil serves plain HTTP until ctx ends.
func serveUntil(ctx context.Context, listener net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
