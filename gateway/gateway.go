package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"dstack.host/dnsserver"
	"dstack.host/gateway/attest"
	"dstack.host/gateway/certs"
	"dstack.host/gateway/config"
	"dstack.host/gateway/enroll"
	"dstack.host/gateway/explorer"
	"dstack.host/gateway/proxy"
	"dstack.host/gateway/registry"
	"dstack.host/gateway/store"
	"dstack.host/ratls"
	"dstack.host/tunnel"
)

// Parts are what a gateway can be given instead of making it from its configuration. The zero value gives nothing.
type Parts struct {
	// Trust is the TEE and the root it chains to.
	Trust *Trust
	// Logger takes the log; nil discards it.
	Logger *slog.Logger
	// Version is told to guests and in the log.
	Version string
	// Metrics takes the series of all parts. Optional.
	Metrics prometheus.Registerer
}

// Gateway is one node.
type Gateway struct {
	// set by New
	config   config.Config
	log      *slog.Logger
	trust    Trust
	store    *store.Store
	registry *registry.Registry
	tunnel   *tunnel.Tunnel
	dns      *dnsserver.Server
	queries  *os.File // the query log; nil without
	certs    *certs.Certs
	secrets  *certs.Secrets
	enroll   *enroll.Server
	review   *enroll.Review
	ports    *enroll.Ports
	proxy    *proxy.Proxy
	attester *attest.Attester
	static   []dnsserver.ZoneConfig // of each base domain, as configured
	signing  signing
	names    names // used by New, then by follow
	metrics  metrics
	applied  atomic.Pointer[chan struct{}] // closed when follow has applied a state
	ready    chan struct{}                 // closed by Run when names resolve and certificates serve
	started  time.Time
}

// New checks the configuration, opens everything and starts nothing. A gateway that is not run has to be closed.
func New(ctx context.Context, c config.Config, parts Parts) (_ *Gateway, err error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if c.Node == "" {
		if c.Node, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("node is not set, and the host has no name: %w", err)
		}
	}
	g := &Gateway{config: c, log: parts.Logger, started: time.Now(), ready: make(chan struct{})}
	g.applied.Store(new(make(chan struct{})))
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	if err := g.openTrust(parts.Trust); err != nil {
		return nil, err
	}
	if err := g.openMetrics(&parts); err != nil {
		return nil, err
	}
	openDNS := func(ctx context.Context) error { return g.openDNS(ctx, parts.Metrics) }
	for _, open := range []func(context.Context) error{g.openStore, g.openRegistry, g.openTunnel, openDNS, g.openCerts, g.openAttester} {
		if err := open(ctx); err != nil {
			return nil, err
		}
	}
	if err := g.openProxy(); err != nil {
		return nil, err
	}
	return g, g.openEnroll(ctx, parts)
}

func (g *Gateway) openStore(ctx context.Context) error {
	if err := os.MkdirAll(g.config.DataDir, 0o700); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	file := g.config.Store.ClusterKeyFile
	if file == "" {
		file = filepath.Join(g.config.DataDir, "cluster.key")
	}
	key, err := store.LoadKey(file)
	if err != nil {
		return fmt.Errorf("store.cluster_key_file: %w", err)
	}
	settings, err := storeConfig(g.config, key)
	if err != nil {
		return err
	}
	settings.Logger = g.log
	g.store, err = store.Open(ctx, settings)
	return err
}

func (g *Gateway) openRegistry(context.Context) error {
	t := g.config.Tunnel
	pool, err := tunnel.NewPool(t.Clients, append(slices.Clone(t.Reserved), netip.PrefixFrom(t.Address.Addr(), t.Address.Addr().BitLen()))...)
	if err != nil {
		return fmt.Errorf("tunnel.clients: %w", err)
	}
	g.registry, err = registry.New(registry.Config{Store: g.store, Pool: pool, Logger: g.log})
	return err
}

func (g *Gateway) openTunnel(ctx context.Context) error {
	key, err := g.tunnelKey(ctx)
	if err != nil {
		return fmt.Errorf("tunnel key: %w", err)
	}
	t := g.config.Tunnel
	g.tunnel, err = tunnel.Open(tunnel.Config{
		Device: t.Device, Name: t.Name, PrivateKey: key, Listen: t.Listen, Address: t.Address, Address6: t.Address6,
		MTU: t.MTU, HandshakeInterval: t.HandshakeInterval, Logger: g.log,
	})
	return err
}

// tunnelKey is the node's WireGuard key, made once and kept sealed in the store.
func (g *Gateway) tunnelKey(ctx context.Context) (tunnel.PrivateKey, error) {
	path := "node/" + g.store.Blind("node", []byte(g.config.Node)) + "/wireguard"
	for {
		entry, err := g.store.Get(ctx, path)
		switch {
		case err == nil && len(entry.Value) == len(tunnel.PrivateKey{}):
			return tunnel.PrivateKey(entry.Value), nil
		case err == nil:
			return tunnel.PrivateKey{}, fmt.Errorf("%s holds %d bytes, no key", path, len(entry.Value))
		case !errors.Is(err, store.ErrNotFound):
			return tunnel.PrivateKey{}, err
		}
		key := tunnel.NewPrivateKey()
		_, err = g.store.Commit(ctx, []store.Cond{{Path: path}}, []store.Op{store.Put(path, key[:])})
		if err != nil && !errors.Is(err, store.ErrConflict) {
			return tunnel.PrivateKey{}, err
		}
	}
}

func (g *Gateway) openCerts(context.Context) error {
	c := g.config.Certs
	roots, err := optionalPool(c.CAFile)
	if err != nil {
		return fmt.Errorf("certs.ca_file: %w", err)
	}
	g.certs, err = certs.New(certs.Config{
		Domains: g.config.BaseDomains, Issuer: c.Issuer, Directory: c.Directory, CARoots: roots, Email: c.Email,
		CAAIdentity: c.CAAIdentity, Storage: g.store, Challenges: challenges{g}, Logger: g.log,
		Attestor: attestor{g}, Lead: g.config.Attestation.Validity,
	})
	if err != nil {
		return err
	}
	g.secrets, err = certs.NewSecrets(certs.SecretsConfig{Domains: g.config.BaseDomains, Storage: g.store, Logger: g.log})
	return err
}

func (g *Gateway) openAttester(context.Context) (err error) {
	a := g.config.Attestation
	g.attester, err = attest.New(attest.Config{
		Bases: g.config.BaseDomains, Node: g.config.Node, Validity: a.Validity, NonceInterval: a.NonceInterval, NonceBurst: a.NonceBurst,
		Platform: g.trust.Platform, Verifier: g.trust.Verifier, Root: g.trust.Root, Certs: g.certs, Registry: g.registry, Dial: g.dial, Store: g.store, Logger: g.log,
		Port:     g.publicPort,
		Explorer: explorer.New(explorer.Config{Roots: g.trust.roots(), MaxInput: proxy.MaxOwnBody - 8<<10}),
	})
	return err
}

func (g *Gateway) openProxy() (err error) {
	kind := string(g.trust.Platform.Kind())
	handshakes := new(tls.Config)
	g.secrets.Configure(handshakes)
	g.proxy, err = proxy.New(proxy.Config{
		Listen: g.config.Proxy.Listen.String(), Bases: g.config.BaseDomains, Certificate: g.certs.GetCertificate, TLS: handshakes,
		Registry: g.registry.Snapshot, Dial: g.dial, TunnelUp: g.tunnelUp, Handshake: g.handshake, Own: proxy.Failing(g.config.Node, kind, g.log, g.serveOwn),
		Node: g.config.Node, TEE: kind, DrainTimeout: g.config.Proxy.DrainTimeout, Logger: g.log,
	})
	return err
}

// Close releases what New opened. Run does it by itself.
func (g *Gateway) Close() error {
	var errs []error
	release := func(open bool, part interface{ Close() error }) {
		if !open {
			return
		}
		if err := part.Close(); !errors.Is(err, net.ErrClosed) { // those that ran have closed what they listened at
			errs = append(errs, err)
		}
	}
	release(g.proxy != nil, g.proxy)
	release(g.enroll != nil, g.enroll)
	release(g.dns != nil, g.dns)
	release(g.queries != nil, g.queries)
	release(g.tunnel != nil, g.tunnel)
	release(g.store != nil, g.store)
	return errors.Join(append(errs, g.metrics.close())...)
}

// Run serves until ctx ends, then lets what runs finish, releases everything and returns nil.
func (g *Gateway) Run(ctx context.Context) error {
	if g.trust.Verifier.Kind() != ratls.KindTDX {
		g.log.Warn("the TEE is simulated: nothing that this gateway attests proves anything about hardware", "kind", g.trust.Verifier.Kind())
	}
	// What the proxy's running requests need outlives the proxy.
	below, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	support, below := errgroup.WithContext(below)
	front, ctx := errgroup.WithContext(ctx)
	for _, run := range []func(context.Context) error{g.registry.Run, g.tunnel.Run, g.dns.Run, g.certs.Run, g.secrets.Run, g.attester.Run, g.review.Run, g.ports.Run, g.metrics.run, g.follow, g.followKeys, g.expire} {
		support.Go(func() error { return run(below) })
	}
	for _, run := range []func(context.Context) error{g.enroll.Run, g.proxy.Run, g.announce} {
		front.Go(func() error { return run(ctx) })
	}
	front.Go(func() error { // a support task that fails ends the front too
		select {
		case <-below.Done():
			return context.Cause(below)
		case <-ctx.Done():
			return nil
		}
	})
	err := front.Wait()
	stop()
	if failed := support.Wait(); failed != nil {
		err = failed
	}
	return errors.Join(err, g.Close())
}

// Ready is closed when the names resolve, the certificates serve and their keys are attested.
func (g *Gateway) Ready() <-chan struct{} { return g.ready }

// announce closes ready.
func (g *Gateway) announce(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-g.certs.Ready():
	}
	select {
	case <-ctx.Done():
		return nil
	case <-g.secrets.Ready():
	}
	for g.dns.Zones() == nil || !g.attester.Recorded() {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err := g.writeRoot(); err != nil {
		return err
	}
	g.log.Info("ready", "node", g.config.Node, "https", g.HTTPSAddr(), "dns", g.DNSAddr(), "registration", g.EnrollAddr(), "wireguard", g.tunnel.ListenAddr(), "device", g.tunnel.Device())
	close(g.ready)
	return nil
}

// writeRoot puts the internal CA, if that is the issuer, where clients can be given it.
func (g *Gateway) writeRoot() error {
	root := g.certs.Root()
	if root == nil {
		return nil
	}
	g.log.Info("certificates are issued by the internal CA; clients have to trust its root", "file", g.CertificateRootFile())
	return os.WriteFile(g.CertificateRootFile(), root, 0o644)
}

// CertificateRootFile holds the root of the internal CA in PEM when the gateway is ready and that is the issuer.
func (g *Gateway) CertificateRootFile() string { return filepath.Join(g.config.DataDir, "ca.pem") }

// HTTPSAddr is where the proxy listens.
func (g *Gateway) HTTPSAddr() netip.AddrPort { return g.proxy.Addr().(*net.TCPAddr).AddrPort() }

// EnrollAddr is where CVMs register.
func (g *Gateway) EnrollAddr() netip.AddrPort { return g.enroll.Addr() }

// DNSAddr is the first address of the DNS server.
func (g *Gateway) DNSAddr() netip.AddrPort { return g.dns.Addrs()[0] }

// Snapshot is what is registered now.
func (g *Gateway) Snapshot() *registry.Snapshot { return g.registry.Snapshot() }

// Peers are the peers of the tunnel now.
func (g *Gateway) Peers() []tunnel.Peer { return g.tunnel.Peers() }

// TunnelUp reports whether requests can be sent to an instance now.
func (g *Gateway) TunnelUp(id registry.InstanceID) bool {
	inst := g.Snapshot().Instance(id)
	return inst != nil && g.tunnelUp(inst)
}

// publicPort is the port that clients use.
func (g *Gateway) publicPort() int {
	if g.config.Proxy.PublicPort != 0 {
		return g.config.Proxy.PublicPort
	}
	return int(g.HTTPSAddr().Port())
}
