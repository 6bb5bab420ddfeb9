package enroll

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"

	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"dstack.host/tunnel"
)

// Config is what a [Server] needs. Every field without "optional" has to be set.
type Config struct {
	// Listen is the TCP address; port 0 takes a free one.
	Listen netip.AddrPort
	// Certificate is what the server shows: an RA-TLS certificate, or one of the KMS.
	Certificate *tls.Certificate
	// KMSRoot identifies CVMs whose certificates chain to its key and name. Optional: without it every CVM has to bring a quote.
	KMSRoot *x509.Certificate
	// Verifier judges the quotes of CVMs.
	Verifier *ratls.Verifier
	// Appraise judges a CVM whose evidence verified, by the quote (nil when only a KMS vouches for it) and what it runs. An error
	// refuses the registration. Optional: everybody is taken.
	Appraise func(*ratls.Quote, ratls.AppInfo) error
	// Authorize is asked for every app that Appraise takes; ErrDenied is a no. Optional: see [Webhook].
	Authorize func(context.Context, ratls.AppInfo) error
	// Evidence says whether a CVM that only a KMS vouches for is asked for its quote. Optional: EvidenceOff.
	Evidence Evidence
	// Refused is told of a registered instance that Appraise or Authorize refuse now, with the reason. Optional.
	Refused func(ctx context.Context, inst *registry.Instance, reason string)
	// Register stores an instance and returns it with its address. The bool says whether that changed anything. Without
	// Evidence it keeps what it has for the same key and code.
	Register func(context.Context, registry.Instance) (registry.Instance, bool, error)
	// Current returns what is registered for an instance, or nil.
	Current func(registry.InstanceID) *registry.Instance
	// Servers are the tunnel endpoints that a CVM connects to. They are told in the order of their keys: a guest whose
	// answer is another than before takes its tunnel down.
	Servers []TunnelServer
	// Prefix6 gives guests that ask for it an address of IPv6, see registry.Instance.Addr6. Optional: they get none.
	Prefix6 netip.Prefix
	// Agent is what dstack guests are told of the front door.
	Agent AgentInfo
	// Nodes are the gateways of the cluster, this one first. Optional: none are told.
	Nodes func() []Node
	// AppID is that of the gateway's own app: its peers are told to whoever proves to be of the same. Optional: to nobody.
	AppID []byte
	// ACMEInfo returns the JSON of dstack's AcmeInfoResponse. Optional: all of it is empty.
	ACMEInfo func() ([]byte, error)
	// PerSource bounds the registrations of one network, PerInstance those of one instance. Optional: any number.
	PerSource, PerInstance Rate
	// Metrics takes the package's series. Optional.
	Metrics prometheus.Registerer
	// Version is sent with every answer as X-App-Version. Optional.
	Version string
	// Now is the clock. Optional: time.Now.
	Now func() time.Time
	// Logger takes registrations and refusals. Optional.
	Logger *slog.Logger
}

// Evidence says what is wanted of CVMs that a KMS vouches for.
type Evidence string

// Wants of evidence. A quote that is shown is verified with any of them.
const (
	// EvidenceOff: the KMS's word is enough.
	EvidenceOff Evidence = ""
	// EvidencePreferred: a CVM is asked for its quote once, and taken without if it has none.
	EvidencePreferred Evidence = "preferred"
	// EvidenceRequired: no quote, no registration.
	EvidenceRequired Evidence = "required"
)

// Node is one gateway of the cluster.
type Node struct {
	ID       uint32
	UUID     [16]byte
	URL      string // of its registration server
	LastSeen time.Time
	Server   TunnelServer
}

// TunnelServer is one gateway's end of the tunnel.
type TunnelServer struct {
	Key      tunnel.PublicKey
	Address  netip.Prefix // with the length of the tunnel network
	Address6 netip.Prefix // of IPv6, for guests that ask; optional
	Endpoint string       // address:port
}

// AgentInfo tells a guest where its apps are reached (dstack 0.6 gateway_rpc.proto, GuestAgentConfig).
type AgentInfo struct {
	ExternalPort       int
	InternalPort       int // of the guest agent inside the tunnel
	Domain             string
	AppAddressNSPrefix string
}

// Deadlines of one connection. A stock guest gives up after 60 s.
const (
	maxHeader      = 16 << 10
	headTimeout    = 10 * time.Second // TLS handshake, and then the request's head
	requestTimeout = 30 * time.Second // everything
	idleTimeout    = 15 * time.Second
	drainTimeout   = 10 * time.Second // for running registrations, when the server stops
)

// limits of what goes on at once: a registration is one small request on a connection of its own, and verifying it costs
// some milliseconds of one core.
type limits struct {
	connections, perSource int           // open
	identifying            int           // certificates being verified
	serving                int           // requests of known clients; each may take maxBody, and as much again when decoded
	body                   time.Duration // for a body to come
	work                   time.Duration // from the head to the answer
}

var standard = limits{connections: 1024, perSource: 256, identifying: 64, serving: 64, body: 10 * time.Second, work: 25 * time.Second}

// Server is the registration endpoint.
type Server struct {
	// set by New
	config      Config
	limits      limits
	listener    net.Listener
	warnings    *rate.Limiter
	identifying chan struct{} // one place for each certificate being verified
	serving     chan struct{} // one place for each request being read, verified and stored
	metrics     *metrics
	sources     *limiter[netip.Prefix]
	instances   *limiter[string]

	// they guard themselves
	verdicts verdicts
	asked    asked
}

// New checks the configuration and binds the address.
func New(c Config) (*Server, error) { return newServer(c, standard) }

func newServer(c Config, l limits) (*Server, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Servers = slices.SortedFunc(slices.Values(c.Servers), func(a, b TunnelServer) int { return cmp.Compare(a.Key.String(), b.Key.String()) })
	m, err := newMetrics(c.Metrics)
	if err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	listener, err := net.Listen("tcp", c.Listen.String())
	if err != nil {
		return nil, fmt.Errorf("registration address %s: %w", c.Listen, err)
	}
	return &Server{
		config: c, limits: l, listener: listener, warnings: rate.NewLimiter(1, 20),
		identifying: make(chan struct{}, l.identifying), serving: make(chan struct{}, l.serving),
		metrics: m, sources: newLimiter[netip.Prefix]("source", c.PerSource, c.Now), instances: newLimiter[string]("instance", c.PerInstance, c.Now),
	}, nil
}

// check reports all faults of a configuration.
func (c *Config) check() error {
	var faults []error
	for _, field := range []struct {
		name    string
		missing bool
	}{
		{"Listen", !c.Listen.IsValid()},
		{"Certificate", c.Certificate == nil || len(c.Certificate.Certificate) == 0},
		{"Verifier", c.Verifier == nil},
		{"Register", c.Register == nil},
		{"Current", c.Current == nil},
		{"Servers", len(c.Servers) == 0},
	} {
		if field.missing {
			faults = append(faults, fmt.Errorf("%s is missing", field.name))
		}
	}
	for i, server := range c.Servers {
		if server.Key == (tunnel.PublicKey{}) || !server.Address.IsValid() || server.Endpoint == "" {
			faults = append(faults, fmt.Errorf("server %d needs a key, an address and an endpoint", i))
		}
	}
	if c.Prefix6 != (netip.Prefix{}) && (!c.Prefix6.Addr().Is6() || c.Prefix6.Bits() > 96) {
		faults = append(faults, fmt.Errorf("prefix %v is not one of IPv6 with at most 96 bits", c.Prefix6))
	}
	switch c.Evidence {
	case EvidenceOff, EvidencePreferred, EvidenceRequired:
	default:
		faults = append(faults, fmt.Errorf("evidence %q is none of required, preferred and nothing", c.Evidence))
	}
	if err := errors.Join(append(faults, checkKMSRoot(c.KMSRoot))...); err != nil {
		return fmt.Errorf("enroll: %w", err)
	}
	return nil
}

// Addr is the address that the server listens at.
func (s *Server) Addr() netip.AddrPort { return s.listener.Addr().(*net.TCPAddr).AddrPort() }

// Close releases the address of a server that was never run.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends, lets running registrations finish for a while, and returns nil. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	server := s.server(base)
	failed := make(chan error, 1)
	listener := netutil.LimitListener(newPerSource(s.listener, s.limits.perSource), s.limits.connections)
	go func() { failed <- server.ServeTLS(listener, "", "") }()
	select {
	case err := <-failed:
		return errors.Join(fmt.Errorf("registration server: %w", err), s.end(server, cancel))
	case <-ctx.Done():
	}
	drain, stop := context.WithTimeout(base, drainTimeout)
	defer stop()
	_ = server.Shutdown(drain) // what it does not see to its end is closed below
	err := s.end(server, cancel)
	<-failed
	return err
}

// end closes all connections and waits for the work of their requests, by taking all places for good.
func (s *Server) end(server *http.Server, cancel context.CancelFunc) error {
	err := server.Close()
	cancel()
	for _, places := range []chan struct{}{s.identifying, s.serving} {
		for range cap(places) {
			places <- struct{}{}
		}
	}
	if errors.Is(err, net.ErrClosed) { // Shutdown has closed the listener
		return nil
	}
	return err
}

func (s *Server) server(base context.Context) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // HTTP/2 has more to be exhausted, and no guest speaks it here
	return &http.Server{
		Handler:           s.Handler(),
		Protocols:         protocols,
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: headTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(logWriter{s.config.Logger}, "", 0),
		TLSConfig: &tls.Config{
			MinVersion:   tls.VersionTLS12,
			Certificates: []tls.Certificate{*s.config.Certificate},
			// Any certificate may be shown; what it proves is judged with the request, so that a refusal has a reason.
			ClientAuth: tls.RequestClientCert,
			// Every connection shows that its client has the key of its certificate now, not when a ticket was made.
			SessionTicketsDisabled: true,
		},
	}
}

// logWriter sends net/http's complaints about single connections, which strangers cause at will, to the debug log; but
// what strangers must never cause, a panic, is an error.
type logWriter struct{ logger *slog.Logger }

func (w logWriter) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("panic serving")) {
		w.logger.Error("registration request panicked", "error", string(line))
	} else {
		w.logger.Debug("registration connection", "error", string(bytes.TrimSpace(line)))
	}
	return len(line), nil
}
