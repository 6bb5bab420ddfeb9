// Package demo runs a whole gateway with two apps in one process, without privileges: embedded etcd, DNS, WireGuard on a
// network stack inside the process, and a software TDX platform. The CVMs register over loopback sockets as remote ones
// would.
package demo

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"dstack.host/gateway"
	"dstack.host/gateway/config"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// Where a demo listens unless told otherwise.
const (
	DefaultBase             = "dstack.localhost" // browsers and curl resolve it to loopback (RFC 6761 section 6.3)
	DefaultHTTPS     uint16 = 8443
	DefaultDNS       uint16 = 5353
	DefaultEnroll    uint16 = 8000
	DefaultWireGuard uint16 = 51820
)

// readyTimeout is how long a demo may take to start; it takes seconds.
const readyTimeout = 90 * time.Second

// Options are what a demo can be told. Ports of 0 take free ones.
type Options struct {
	// Program is how the program was called, for the lines that it prints.
	Program string
	// DataDir keeps state; "" is a temporary folder that is removed at the end.
	DataDir                       string
	Base                          string
	HTTPS, DNS, Enroll, WireGuard uint16
	Out                           io.Writer
	// Logger takes the gateway's and the CVMs' log; nil discards it.
	Logger *slog.Logger
}

// Demo is a running demo.
type Demo struct {
	options   Options
	dir       string
	temporary bool
	gateway   *gateway.Gateway
	app       string // id of the gateway
	cvms      []*cvm
	took      time.Duration // from Start to ready
	tasks     *errgroup.Group
	stop      context.CancelFunc
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// Start starts everything and returns when every app answers. It runs until ctx ends; then Wait has to be called.
func Start(ctx context.Context, o Options) (_ *Demo, err error) {
	began := time.Now()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := portsFree(o); err != nil {
		return nil, err
	}
	d := &Demo{options: o, dir: o.DataDir}
	if d.dir == "" {
		d.temporary = true
		if d.dir, err = os.MkdirTemp("", "dstack-demo-"); err != nil {
			return nil, err
		}
	}
	ctx, d.stop = context.WithCancel(ctx)
	d.tasks, ctx = errgroup.WithContext(ctx)
	defer func() {
		if err != nil {
			d.stop()
			if failed := d.Wait(); failed != nil {
				err = failed
			}
		}
	}()
	if err := d.launch(ctx); err != nil {
		return nil, err
	}
	d.took = time.Since(began)
	return d, nil
}

// launch makes the platform, the gateway and the CVMs, and waits until they serve.
func (d *Demo) launch(ctx context.Context) error {
	authority, err := gateway.Authority(d.dir)
	if err != nil {
		return err
	}
	c := d.config()
	trust, err := gateway.Simulated(authority, gateway.Policy(c))
	if err != nil {
		return err
	}
	info, err := trust.Platform.(*simtdx.TD).Info()
	if err != nil {
		return err
	}
	d.app = hex.EncodeToString(info.AppID)
	if d.gateway, err = gateway.New(ctx, c, gateway.Parts{Trust: &trust, Logger: d.options.Logger}); err != nil {
		return err
	}
	d.tasks.Go(func() error { return d.gateway.Run(ctx) })
	joined, err := d.bootCVMs(ctx, authority)
	if err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	return d.settled(patience, joined)
}

func (d *Demo) bootCVMs(ctx context.Context, authority *simtdx.Authority) (joined []chan struct{}, err error) {
	url := fmt.Sprintf("https://%s", d.gateway.EnrollAddr())
	for _, a := range apps() {
		verifier, err := ratls.NewVerifier(ratls.VerifierConfig{Root: authority.Root(), Getter: authority.Getter()})
		if err != nil {
			return nil, err
		}
		vm, err := boot(a, authority, verifier, d.options.Logger)
		if err != nil {
			return nil, fmt.Errorf("app %s: %w", a.name, err)
		}
		in := make(chan struct{}, 1)
		d.cvms, joined = append(d.cvms, vm), append(joined, in)
		d.tasks.Go(func() error {
			if err := vm.run(ctx, url, in); err != nil && ctx.Err() == nil {
				return fmt.Errorf("app %s: %w", vm.name, err)
			}
			return nil
		})
	}
	return joined, nil
}

// settled waits until names resolve, certificates serve, and every CVM has joined with a tunnel that is up.
func (d *Demo) settled(ctx context.Context, joined []chan struct{}) error {
	for _, ready := range append([]<-chan struct{}{d.gateway.Ready()}, receivers(joined)...) {
		select {
		case <-ready:
		case <-ctx.Done():
			return d.late(ctx, "start")
		}
	}
	for _, c := range d.cvms {
		for !d.gateway.TunnelUp(c.instance) {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				return d.late(ctx, "tunnel of "+c.name)
			}
		}
	}
	return nil
}

func (d *Demo) late(ctx context.Context, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%s: not ready after %s; -v shows the log", what, readyTimeout)
	}
	return ctx.Err()
}

func receivers(channels []chan struct{}) []<-chan struct{} {
	var out []<-chan struct{}
	for _, c := range channels {
		out = append(out, c)
	}
	return out
}

// App is one of the demo's apps.
type App struct {
	Name     string
	ID       registry.AppID
	Instance registry.InstanceID
	URL      string // at the name of its app id
}

// Apps are the demo's apps.
func (d *Demo) Apps() []App {
	var all []App
	for _, c := range d.cvms {
		all = append(all, App{Name: c.name, ID: c.app, Instance: c.instance, URL: d.url(c)})
	}
	return all
}

// Gateway is the demo's gateway.
func (d *Demo) Gateway() *gateway.Gateway { return d.gateway }

// Stop ends the demo; Wait tells when it has ended.
func (d *Demo) Stop() { d.stop() }

// Wait returns when everything has ended, with what ended it; nil when that was ctx.
func (d *Demo) Wait() error {
	err := d.tasks.Wait()
	d.stop()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	if d.temporary {
		err = errors.Join(err, os.RemoveAll(d.dir))
	}
	return err
}

// config is that of the demo's gateway.
func (d *Demo) config() config.Config {
	c := config.Default()
	c.BaseDomains = []string{d.options.Base}
	c.Node = "demo"
	c.DataDir = d.dir
	c.Attestation.Kind = string(ratls.KindSimulatedTDX)
	c.Attestation.NonceInterval, c.Attestation.NonceBurst = time.Second, 100 // whoever tries the demo is one client
	c.Proxy.Listen = netip.AddrPortFrom(loopback, d.options.HTTPS)
	c.Proxy.DrainTimeout = 2 * time.Second
	c.Enroll.Listen = netip.AddrPortFrom(loopback, d.options.Enroll)
	c.Enroll.Names = []string{"127.0.0.1", "gateway." + d.options.Base}
	c.DNS.Listen = []netip.AddrPort{netip.AddrPortFrom(loopback, d.options.DNS)}
	c.DNS.Addresses = []netip.Addr{loopback}
	c.Tunnel.Device = "netstack"
	c.Tunnel.Listen = netip.AddrPortFrom(loopback, d.options.WireGuard)
	c.Tunnel.HandshakeInterval = 200 * time.Millisecond
	c.Certs.Issuer = "internal"
	return c
}

// CAFile holds the root of the demo's certificates.
func (d *Demo) CAFile() string { return d.gateway.CertificateRootFile() }

// Dir is where the demo keeps its state.
func (d *Demo) Dir() string { return d.dir }

// RootFile holds the root of the demo's simulated TDX machines.
func (d *Demo) RootFile() string { return gateway.SimulatedRootFile(d.dir) }

// portsFree names every port that is taken together with the flag that changes it.
func portsFree(o Options) error {
	type wanted struct {
		flag, network string
		port          uint16
	}
	var faults []error
	var before []wanted
	for _, p := range []wanted{
		{"--https", "tcp", o.HTTPS}, {"--dns", "tcp", o.DNS}, {"--dns", "udp", o.DNS}, {"--rpc", "tcp", o.Enroll}, {"--wireguard", "udp", o.WireGuard},
	} {
		i := slices.IndexFunc(before, func(b wanted) bool { return b.network == p.network && b.port == p.port && p.port != 0 })
		if i >= 0 {
			faults = append(faults, fmt.Errorf("%s and %s can't both have %s port %d: choose another for one of them", before[i].flag, p.flag, p.network, p.port))
			continue
		}
		before = append(before, p)
		switch err := free(p.network, netip.AddrPortFrom(loopback, p.port)); {
		case errors.Is(err, syscall.EACCES):
			faults = append(faults, fmt.Errorf("%s port %d is for privileged programs only; choose one above 1023: %s demo %s PORT (%w)", p.network, p.port, shell([]string{o.program()}), p.flag, err))
		case err != nil:
			faults = append(faults, fmt.Errorf("%s port %d is taken; choose another: %s demo %s PORT (%w)", p.network, p.port, shell([]string{o.program()}), p.flag, err))
		}
	}
	return errors.Join(faults...)
}

// program is how the person calls it.
func (o Options) program() string { return cmp.Or(o.Program, "./dstack-gateway") }

func free(network string, addr netip.AddrPort) error {
	if network == "tcp" {
		listener, err := net.Listen(network, addr.String())
		if err != nil {
			return err
		}
		return listener.Close()
	}
	socket, err := net.ListenPacket(network, addr.String())
	if err != nil {
		return err
	}
	return socket.Close()
}
