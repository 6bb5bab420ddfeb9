package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"dstack.host/gateway/config"
	"dstack.host/gateway/join"
	"dstack.host/ratls"
	"dstack.host/ratls/guestagent"
	"dstack.host/tunnel"
)

// none is how a flag says that something is not wanted which is the default.
const none = "none"

// joinFlags are what join can be told.
type joinFlags struct {
	to, ports             []string
	gatewayApps           []string
	allPorts, kms, health bool
	ca, policy, pccs      string
	simulated, agent      string
	tdx                   ratls.TDXOptions
	device, name, listen  string
	mtu                   int
	state, socket         string
	logs                  config.Log
}

func joinCommand() *cobra.Command {
	var f joinFlags
	c := &cobra.Command{
		Use:   "join [flags] https://GATEWAY:8000 ...",
		Short: "Join this confidential VM to a gateway, so that its app is reached by name",
		Long: `join runs inside a confidential VM, beside any app. It proves to a gateway what this VM is, registers a WireGuard key, and
keeps a tunnel to every node of the gateway; connections to the names of the app then come through the tunnel. Several
URLs are tried in order. It runs until it is told to stop, and gives up on nothing that may get better by waiting.

What can be reached has to be said: --to forwards a port, without any privilege; --port opens a port of this host, for
which the tunnel has to be an interface of the host (NET_ADMIN, and /dev/net/tun where the kernel has no WireGuard).

Which gateway is trusted has to be said too: one or more of --gateway-app, --policy, --ca and --kms. Unless --ca or --kms
is given, the gateway has to prove itself by a TDX quote, as ` + "`dstack-gateway verify https://gateway.<base>`" + ` shows it.

Quotes come from dstack's guest agent where there is one, else from the kernel (configfs-tsm).

Exit status: 0 when it was told to stop; 1 when it can't go on; 2 when it was called wrongly. With --health: 0 or 1.`,
		Example: `  # beside an app that listens on port 3000, in a container of a dstack CVM
  dstack-gateway join --gateway-app 3327603e03f5bd1f830812ca4a789277fc31f577 --to app:3000 https://gateway.dstack.example.com:8000

  # against a demo on the same machine, without hardware
  dstack-gateway join --simulated DIR/simulated-tdx.pem --gateway-app ID --to 3000 https://127.0.0.1:8000`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.health {
				return f.ask(cmd, args)
			}
			return f.join(cmd, args)
		},
	}
	f.define(c)
	return c
}

func (f *joinFlags) define(c *cobra.Command) {
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringArrayVar(&f.to, "to", nil, "forward connections to PORT (80 unless given, which is what a name without a port means) to `[PORT=]HOST:PORT`; may be repeated")
	flags.StringSliceVar(&f.ports, "port", nil, "open this `PORT` of this host; may be repeated")
	flags.BoolVar(&f.allPorts, "all-ports", false, "open every port of this host")
	flags.StringSliceVar(&f.gatewayApps, "gateway-app", nil, "the gateway's app `ID`, 40 hex digits; may be repeated")
	flags.StringVar(&f.policy, "policy", "", "the gateway's quote has to be as the table gateway of this TOML `FILE` says; configs/policy.toml has every key")
	flags.StringVar(&f.ca, "ca", "", "trust gateways by a certificate below the roots in this PEM `FILE`")
	flags.BoolVar(&f.kms, "kms", false, "trust gateways by a certificate of the KMS that this dstack CVM has its own from")
	flags.StringVar(&f.pccs, "pccs", "", "fetch the collateral of the gateway's quote from the service at this `URL` instead of Intel's")
	flags.StringVar(&f.agent, "agent", "", "`ADDRESS` of dstack's guest agent, a socket's path or an http URL, or none; default: $"+guestagent.AddressEnv+", else its socket in /var/run")
	flags.StringVar(&f.tdx.EventLog, "event-log", "/run/log/dstack/runtime_events.log", "`FILE` of the runtime event log, without a guest agent")
	flags.StringVar(&f.tdx.AppCompose, "app-compose", "", "`FILE` of the measured app-compose.json, without a guest agent")
	flags.StringVar(&f.tdx.VMConfig, "vm-config", "", "`FILE` of the VM's configuration, without a guest agent")
	flags.StringVar(&f.simulated, "simulated", "", "SIMULATE the TEE, which proves nothing, and trust simulated gateways only: below the authority in this `FILE`, which a demo or a simulated gateway keeps as simulated-tdx.pem")
	flags.StringVar(&f.device, "device", "auto", "the tunnel's `KIND`: kernel, tun (userspace), netstack (in the process, for --to alone), or auto, the first of these that works")
	flags.StringVar(&f.name, "interface", tunnel.DefaultName, "`NAME` of the tunnel's interface")
	flags.StringVar(&f.listen, "listen", "", "UDP `ADDRESS:PORT` of the tunnel; default: every address, and a port that the system chooses")
	flags.IntVar(&f.mtu, "mtu", tunnel.DefaultMTU, "`BYTES` of the largest packet inside the tunnel")
	flags.StringVar(&f.state, "state", "", "keep the WireGuard key in this `DIR`, so that a restart changes nothing; default: in memory")
	flags.StringVar(&f.socket, "socket", join.DefaultSocket(), "tell health at this unix socket `PATH`, or none")
	flags.BoolVar(&f.health, "health", false, "ask the join that runs here whether its app can be reached, and exit 0 or 1: for health checks")
	flags.StringVar(&f.logs.Level, "log-level", "info", "`LEVEL` of the log on standard error: debug, info, warn or error")
	flags.StringVar(&f.logs.Format, "log-format", "text", "`FORM` of the log: text or json")
}

// ask asks a running join for its health.
func (f *joinFlags) ask(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return errors.New("--health takes no URL: it asks the join that runs here")
	}
	h, err := join.AskHealth(cmd.Context(), f.socket)
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "dstack-gateway: %v\n", err)
		return exit(exitFailed) // container runtimes know 0 and 1 only
	}
	if _, err := fmt.Fprintln(cmd.OutOrStdout(), h); err != nil {
		return err
	}
	if !h.OK {
		return exit(exitFailed)
	}
	return nil
}

func (f *joinFlags) join(cmd *cobra.Command, urls []string) error {
	c, err := f.config(cmd, urls)
	if err := errors.Join(err, c.Check()); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	c.Joined = func(j join.Joined) { announce(out, j) }
	if err := join.Run(cmd.Context(), c); err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "dstack-gateway: %v\n", err)
		return exit(exitFailed)
	}
	return nil
}

// announce tells a person where the app can be reached. A program reads the log, or asks for health.
func announce(w io.Writer, j join.Joined) {
	fmt.Fprintf(w, "Joined as instance %s of app %s, at %s.\n", j.InstanceID, j.AppID, j.Address)
	for _, url := range j.URLs {
		fmt.Fprintf(w, "  %s\n", url)
	}
	if j.Simulated {
		fmt.Fprintln(w, "The TEE is SIMULATED: this proves nothing.")
	}
	fmt.Fprintln(w, "Ctrl-C leaves.")
}

// config turns the flags into what join takes, and reports everything that is wrong with them.
func (f *joinFlags) config(cmd *cobra.Command, urls []string) (c join.Config, err error) {
	var faults []error
	fault := func(flag string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("--%s: %w", flag, err))
		}
	}
	c = join.Config{URLs: urls, State: f.state, Tunnel: tunnel.Config{Device: f.device, Name: f.name, MTU: f.mtu}}
	c.Source = join.Source{Simulated: f.simulated, Agent: f.agent, TDX: f.tdx}
	switch {
	case f.agent == none:
		c.Source.Agent = ""
	case f.agent == "" && f.simulated == "":
		c.Source.Agent = guestagent.Find()
	}
	if c.Socket = f.socket; f.socket == none {
		c.Socket = ""
	}
	if f.listen != "" {
		c.Tunnel.Listen, err = netip.ParseAddrPort(f.listen)
		fault("listen", err)
	}
	faults = append(faults, f.reachable(&c.Ports))
	fault("gateway-app", f.named(&c.Trust))
	if c.Logger, err = logger(f.logs, cmd.ErrOrStderr()); err != nil {
		fault("log-level", err)
	}
	if f.ca != "" {
		c.Trust.CAs, err = readCAs(f.ca)
		faults = append(faults, err)
	}
	c.Trust.KMS, c.Trust.PCCS = f.kms, f.pccs
	if f.policy != "" {
		policy, err := readPolicy(cmd, f.policy)
		faults = append(faults, err)
		c.Trust.Quote, c.Trust.Policy, c.Trust.Measurements = true, policy.Quotes(), policy.Gateway.Pins()
	}
	return c, errors.Join(faults...)
}

func (f *joinFlags) reachable(p *join.Ports) error {
	p.All = f.allPorts
	var faults []error
	for _, text := range f.to {
		forward, err := join.ParseForward(text)
		if err != nil {
			faults = append(faults, fmt.Errorf("--to: %w", err))
		}
		p.Forwards = append(p.Forwards, forward)
	}
	for _, text := range f.ports {
		port, err := join.ParsePort(text)
		if err != nil {
			faults = append(faults, fmt.Errorf("--port: %w", err))
		}
		p.Open = append(p.Open, port)
	}
	return errors.Join(faults...)
}

func (f *joinFlags) named(t *join.Trust) error {
	for _, text := range f.gatewayApps {
		id, err := hex.DecodeString(strings.TrimPrefix(text, "0x"))
		if err != nil || len(id) != 20 {
			return fmt.Errorf("%q is not an app id of 40 hex digits", text)
		}
		t.Apps = append(t.Apps, id)
	}
	return nil
}
