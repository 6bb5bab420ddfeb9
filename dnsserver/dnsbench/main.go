//go:build linux

// Command dnsbench compares this DNS server with others, on one machine, in one
// run: `make bench-dns`.
//
// Every server serves the same zone from one CPU; the load comes from another,
// over the loopback interface of a network namespace of its own. A round asks
// one server for a second or so and measures the CPU time that it took for each
// answer, kernel included: that is the steadiest figure. Rounds of all servers
// alternate, and one in which other processes used more than a tenth of a CPU
// does not count and is done again. Before anything is measured, the answers of
// all servers are compared.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dstack.host/dnsserver"
)

// options are what the command line says.
type options struct {
	apps, rounds int
	duration     time.Duration
	disturbed    bool
	out          string
	serve        string
	coredns      string
	signed       bool
}

func main() {
	var o options
	flag.IntVar(&o.apps, "apps", 10_000, "apps in the zone")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each case and server that count")
	flag.DurationVar(&o.duration, "duration", time.Second, "length of a round")
	flag.BoolVar(&o.disturbed, "accept-disturbed", false, "count rounds although other processes run beside them; the output says so")
	flag.StringVar(&o.out, "out", "bench-dns.json", "file for the rows")
	flag.StringVar(&o.serve, "serve", "", "be our server at this address (used by the program itself)")
	flag.BoolVar(&o.signed, "signed", false, "sign the zone (with -serve)")
	flag.StringVar(&o.coredns, "coredns", "", "CoreDNS (used by the program itself)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	do := run
	switch {
	case o.serve != "":
		do = serve
	case os.Getenv(inNamespace) == "":
		do = enterNamespace
	}
	if err := do(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "dnsbench:", err)
		stop()
		os.Exit(1)
	}
}

// inNamespace is set for the part of the program that measures.
const inNamespace = "DNSBENCH_IN_NAMESPACE"

// enterNamespace installs what is missing, while there is a network, and runs
// the program again on one CPU, where there is only a loopback interface.
func enterNamespace(ctx context.Context, o options) error {
	if runtime.NumCPU() < 2 {
		return errors.New("two CPUs are needed: one for the server, one for the load")
	}
	progress := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	bring(ctx, progress)
	program, err := buildCoreDNS(ctx, progress)
	if err != nil {
		progress("without CoreDNS: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, append(os.Args[1:], "-coredns", program)...)
	cmd.Env = append(os.Environ(), inNamespace+"=yes")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	return errors.Join(startOn(loadCPU, cmd), cmd.Wait())
}

// The CPUs of the load and of the servers.
const (
	serverCPU = 0
	loadCPU   = 1
)

// raiseLoopback makes 127.0.0.1 work in a new namespace.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// run measures and reports.
func run(ctx context.Context, o options) error {
	if err := raiseLoopback(); err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	dir, err := os.MkdirTemp("", "dnsbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{options: o, launcher: launcher{dir: dir, apps: o.apps, coredns: o.coredns, nextPort: 5300}}
	defer b.launcher.stop()
	if err := b.start(); err != nil {
		return err
	}
	rows, err := b.measure(ctx)
	writeTable(os.Stdout, rows)
	return errors.Join(err, writeJSON(o.out, rows))
}

// serve is our server, run as the others are: without limits of rates.
func serve(ctx context.Context, o options) error {
	s, err := dnsserver.New(dnsserver.Config{Listen: []string{o.serve}, MaxConnsPerClient: 1000, MaxConns: 1000})
	if err != nil {
		return err
	}
	config := zoneConfig(o.apps)
	if o.signed {
		if err := sign(&config, o.apps); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	zone, err := dnsserver.NewZone(config)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	s.SetZones(zone)
	return s.Run(ctx)
}
