//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"dstack.host/gateway"
	"dstack.host/gateway/config"
	"dstack.host/gateway/demo"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
)

// bench is a gateway for registrations, whose limits are off, and a demo with apps behind a proxy.
type bench struct {
	dir     string
	cancel  context.CancelFunc
	tasks   *errgroup.Group
	gateway *gateway.Gateway
	demo    *demo.Demo
	guests  []*guest // of the gateway
	churn   []*guest // of the demo
	machine *simtdx.Machine
}

// Sizes of the load.
const (
	clients     = 64
	churnGuests = 100
)

// guest is an instance with its certificate.
type guest struct {
	at          netip.AddrPort
	certificate tls.Certificate
	request     []byte
	conn        *tls.Conn
	in          *bufio.Reader
}

func start(ctx context.Context) (_ *bench, err error) {
	b := new(bench)
	if b.dir, err = os.MkdirTemp("", "enrollbench-"); err != nil {
		return nil, err
	}
	ctx, b.cancel = context.WithCancel(ctx)
	b.tasks, ctx = errgroup.WithContext(ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, b.stop())
		}
	}()
	authority, err := b.startGateway(ctx)
	if err != nil {
		return nil, err
	}
	if b.machine, err = authority.Machine(simtdx.MachineOptions{}); err != nil {
		return nil, err
	}
	if b.guests, err = boot(ctx, b.machine, b.gateway.EnrollAddr(), clients); err != nil {
		return nil, err
	}
	if b.demo, err = demo.Start(ctx, demo.Options{Base: demo.DefaultBase, DataDir: b.dir + "/demo"}); err != nil {
		return nil, err
	}
	return b, b.bootChurn(ctx)
}

func (b *bench) startGateway(ctx context.Context) (*simtdx.Authority, error) {
	loopback := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	c := config.Default()
	c.BaseDomains, c.Node, c.DataDir = []string{demo.DefaultBase}, "bench", b.dir+"/gateway"
	c.Attestation.Kind, c.Certs.Issuer, c.Tunnel.Device = string(ratls.KindSimulatedTDX), "internal", "netstack"
	c.Proxy.Listen, c.Enroll.Listen, c.Tunnel.Listen, c.DNS.Listen = loopback, loopback, loopback, []netip.AddrPort{loopback}
	c.DNS.Addresses = []netip.Addr{loopback.Addr()}
	c.Enroll.SourceInterval, c.Enroll.InstanceInterval = 0, 0
	authority, err := gateway.Authority(c.DataDir)
	if err != nil {
		return nil, err
	}
	if b.gateway, err = gateway.New(ctx, c, gateway.Parts{}); err != nil {
		return nil, err
	}
	b.tasks.Go(func() error { return b.gateway.Run(ctx) })
	select {
	case <-b.gateway.Ready():
		return authority, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// bootChurn boots the instances that register at the demo while its proxy is measured.
func (b *bench) bootChurn(ctx context.Context) error {
	authority, err := gateway.Authority(b.demo.Dir())
	if err != nil {
		return err
	}
	machine, err := authority.Machine(simtdx.MachineOptions{})
	if err != nil {
		return err
	}
	b.churn, err = boot(ctx, machine, b.demo.Gateway().EnrollAddr(), churnGuests)
	return err
}

func (b *bench) stop() error {
	for _, g := range slices.Concat(b.guests, b.churn) {
		g.close()
	}
	b.cancel()
	err := b.tasks.Wait()
	if b.demo != nil {
		b.demo.Stop()
		err = errors.Join(err, b.demo.Wait())
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

// boot makes instances of one app.
func boot(ctx context.Context, machine *simtdx.Machine, at netip.AddrPort, n int) ([]*guest, error) {
	guests := make([]*guest, n)
	for i := range guests {
		td, err := machine.Boot(simtdx.VM{AppCompose: `{"name":"bench"}`})
		if err != nil {
			return nil, err
		}
		guests[i] = &guest{at: at}
		if guests[i].certificate, err = ratls.NewCertificate(ctx, td, ratls.CertOptions{CommonName: "dstack-guest-agent"}); err != nil {
			return nil, err
		}
		guests[i].newKey()
	}
	return guests, nil
}

// newKey makes the guest's next registration one with another key.
func (g *guest) newKey() {
	body := fmt.Sprintf(`{"client_public_key":"%s","port_policy":{"ports":[],"restrict_mode":false}}`, tunnel.NewPrivateKey().PublicKey())
	g.request = fmt.Appendf(nil, "POST /prpc/RegisterCvm?json HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func (g *guest) close() {
	if g.conn != nil {
		_ = g.conn.Close()
		g.conn = nil
	}
}

// register registers once, on the connection that is open or a new one, and returns the answer.
func (g *guest) register() (string, error) {
	if g.conn == nil {
		conn, err := tls.Dial("tcp", g.at.String(), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{g.certificate}}) // only the load matters
		if err != nil {
			return "", err
		}
		g.conn, g.in = conn, bufio.NewReader(conn)
	}
	if err := g.conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	if _, err := g.conn.Write(g.request); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(g.in, nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	return string(text), err
}

// latencies collects durations of many goroutines.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *latencies) add(list []time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, list...)
}

// milliseconds is a quantile.
func (l *latencies) milliseconds(q float64) float64 {
	if len(l.all) == 0 {
		return 0
	}
	slices.Sort(l.all)
	return l.all[int(q*float64(len(l.all)-1))].Seconds() * 1e3
}
