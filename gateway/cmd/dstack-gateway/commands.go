package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"dstack.host/gateway"
	"dstack.host/gateway/config"
	"dstack.host/gateway/demo"
)

// version is what the build knows of its source.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

func root(out, errs *os.File) *cobra.Command {
	c := &cobra.Command{
		Use:   "dstack-gateway",
		Short: "The front door of confidential VMs",
		Long: `dstack-gateway terminates TLS for *.<base domain> inside a TEE, routes each name to the confidential VM that it
addresses by content, and proves at /.well-known/attestation what runs on both sides.`,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	c.SetOut(out)
	c.SetErr(errs)
	c.CompletionOptions.HiddenDefaultCmd = true
	c.AddCommand(serveCommand(), checkConfigCommand(), dsCommand(), demoCommand(), joinCommand(), verifyCommand(), explorerCommand())
	return c
}

func serveCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "serve -c FILE",
		Short: "Run a gateway",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load(cmd, file)
			if err != nil {
				return err
			}
			log, err := logger(c.Log, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			g, err := gateway.New(cmd.Context(), c, gateway.Parts{Logger: log, Version: version()})
			if err != nil {
				return uninterrupted(cmd.Context(), err)
			}
			return uninterrupted(cmd.Context(), g.Run(cmd.Context()))
		},
	}
	configFlag(c, &file)
	return c
}

// uninterrupted leaves out an error that only says that the program was told to end.
func uninterrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func checkConfigCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "check-config -c FILE",
		Short: "Tell everything that is wrong with a configuration; exit 0 when nothing is, else 1",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := load(cmd, file); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: no faults\n", file)
			return err
		},
	}
	configFlag(c, &file)
	return c
}

func dsCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "ds -c FILE",
		Short: "Print the DS records that the zones above need, as the gateway running here says, and whether they have them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load(cmd, file)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 20*time.Second)
			defer cancel()
			return gateway.PrintDS(ctx, c, cmd.OutOrStdout())
		},
	}
	configFlag(c, &file)
	return c
}

func configFlag(c *cobra.Command, file *string) {
	c.Flags().StringVarP(file, "config", "c", "/etc/dstack-gateway/gateway.toml", "configuration `FILE`; configs/README.md lists its keys")
}

// load reads a configuration; its faults go to standard error, a line each, and the program ends with 1.
func load(cmd *cobra.Command, file string) (config.Config, error) {
	c, err := config.Load(file)
	if faults, ok := errors.AsType[config.Faults](err); ok {
		fmt.Fprintln(cmd.ErrOrStderr(), faults)
		return c, exit(exitFailed)
	}
	return c, err
}

func logger(c config.Log, to io.Writer) (*slog.Logger, error) {
	var options slog.HandlerOptions
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, err
	}
	options.Level = level
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(to, &options)), nil
	}
	return slog.New(slog.NewTextHandler(to, &options)), nil
}

func demoCommand() *cobra.Command {
	o := demo.Options{Program: os.Args[0]}
	var check, verbose bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a whole gateway with two apps on this machine, in one process, without privileges",
		Long: `demo runs everything in one process: an embedded etcd, the gateway, its DNS server, WireGuard on a network stack inside
the process, a software TDX platform, and two confidential VMs that register over loopback as remote ones would.
The TEE is simulated, so what is attested proves nothing about hardware; everything else is the real code.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = cmd.OutOrStdout()
			level := "error"
			if verbose {
				level = "debug"
			}
			var err error
			if o.Logger, err = logger(config.Log{Level: level}, cmd.ErrOrStderr()); err != nil {
				return err
			}
			if !check {
				return uninterrupted(cmd.Context(), demo.Run(cmd.Context(), o))
			}
			ok, err := demo.Check(cmd.Context(), o)
			if err == nil && !ok {
				err = exit(exitFailed)
			}
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&check, "check", false, "run the printed commands against itself, print each with its outcome; exit 0 when all work, 1 when one does not, 2 when there was nothing to try")
	f.BoolVarP(&verbose, "verbose", "v", false, "log everything to standard error")
	f.StringVar(&o.DataDir, "data", "", "keep state, keys and apps in `DIR`; default: a temporary folder that is removed at the end")
	f.StringVar(&o.Base, "base", demo.DefaultBase, "base `DOMAIN`")
	f.Uint16Var(&o.HTTPS, "https", demo.DefaultHTTPS, "TCP `PORT` of the HTTPS front")
	f.Uint16Var(&o.DNS, "dns", demo.DefaultDNS, "UDP and TCP `PORT` of the DNS server")
	f.Uint16Var(&o.Enroll, "rpc", demo.DefaultEnroll, "TCP `PORT` of registration")
	f.Uint16Var(&o.WireGuard, "wireguard", demo.DefaultWireGuard, "UDP `PORT` of WireGuard")
	return c
}
