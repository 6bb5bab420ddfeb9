package dnsserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Limits of the server's own making. Those of TCP are RFC 7766 section 6.2.
const (
	defaultMaxConns          = 512
	defaultMaxConnsPerClient = 32
	defaultIdleTimeout       = 10 * time.Second

	maxNSID      = 128
	minCookieKey = 16

	// A listen address with port 0 needs one port that is free for UDP and TCP.
	portAttempts = 32
	// A socket that fails (no descriptors, no memory) is tried again after a
	// pause that doubles between these.
	minPause, maxPause = 5 * time.Millisecond, time.Second
)

// Config configures a [Server].
type Config struct {
	// Listen are addresses "host:port" to serve over both UDP and TCP, at least
	// one. The host is an IP address or empty for all of the machine; port 0
	// takes one that is free (see Server.Addrs).
	Listen []string
	// ListenTLS are addresses for DNS over TLS (RFC 7858), as those of Listen.
	ListenTLS []string
	// TLS has the certificate for ListenTLS; needed with that. Its NextProtos
	// are replaced.
	TLS *tls.Config
	// Workers answer the packets of one UDP address, on Linux each with a socket
	// of its own. Zero: as many as CPUs.
	Workers int
	// MaxConns and MaxConnsPerClient bound the open TCP connections; one more
	// is closed at once. Zero: 512 and 32.
	MaxConns, MaxConnsPerClient int
	// NSID is what identifies this server to those who ask (RFC 5001). Empty: nothing.
	NSID string
	// CookieKey is the secret that servers of one address have in common, so that
	// each takes the others' cookies (RFC 9018); at least 16 octets. Nil: one
	// that nobody else has.
	CookieKey []byte
	// RateLimit bounds answers over UDP.
	RateLimit RateLimit
	// IdleTimeout is how long a TCP client may take for its next query, and
	// for reading an answer. Zero: 10 s.
	IdleTimeout time.Duration
	// Metrics takes the server's series. Nil: they are not shown.
	Metrics prometheus.Registerer
	// QueryLog is told of queries, one by one: of every one, or of one of
	// QueryLogSample. What it is too slow for is lost. Nil: there is no such log.
	QueryLog       *slog.Logger
	QueryLogSample int
	// Transfer is who may have whole zones.
	Transfer TransferConfig
	// Dnstap tells a collector of queries.
	Dnstap DnstapConfig
	// Logger is told of sockets that fail, never of queries. Nil: no logs.
	Logger *slog.Logger
}

// Server answers DNS queries over UDP, TCP and TLS, and over HTTPS as a handler
// (RFC 8484).
type Server struct {
	// set by New
	config  Config
	log     *slog.Logger
	udp     []*net.UDPConn
	tcp     []net.Listener // one for each address
	tls     []net.Listener
	shared  shared
	packets []*counters // one for each of udp
	streams map[Transport]*counters

	notifiers []*notifier          // one for each secondary
	view      atomic.Pointer[view] // replaced by SetZones
	started   atomic.Bool
	conns     connTable
}

// New checks the configuration, reporting all faults together, and binds the
// sockets. Packets queue until Run; Run or Close releases the sockets.
func New(c Config) (*Server, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	s := &Server{config: c, log: c.Logger, shared: c.shared()}
	var err error
	if s.shared.transfers, err = newTransfers(c.Transfer); err != nil {
		return nil, err
	}
	for _, address := range c.Transfer.Secondaries {
		s.notifiers = append(s.notifiers, &notifier{address: address, changed: make(chan struct{}, 1), told: map[string]uint32{}})
	}
	s.view.Store(&view{})
	s.conns.init(c.MaxConns, c.MaxConnsPerClient)
	var faults []error
	for _, address := range c.Listen {
		if err := s.bind(address); err != nil {
			faults = append(faults, err)
		}
	}
	for _, address := range c.ListenTLS {
		l, err := net.Listen("tcp", address)
		if err != nil {
			faults = append(faults, fmt.Errorf("dns: %w", err))
			continue
		}
		s.tls = append(s.tls, l)
	}
	if err := s.count(); err != nil {
		faults = append(faults, err)
	}
	if len(faults) > 0 {
		return nil, errors.Join(append(faults, s.Close())...)
	}
	return s, nil
}

// count makes the counters of all workers, and shows them.
func (s *Server) count() error {
	s.streams = map[Transport]*counters{}
	for range s.udp {
		s.packets = append(s.packets, &counters{transport: UDP})
	}
	all := slices.Clone(s.packets)
	for _, transport := range []Transport{TCP, TLS, HTTPS} {
		s.streams[transport] = &counters{transport: transport}
		all = append(all, s.streams[transport])
	}
	if s.config.Metrics == nil {
		return nil
	}
	return s.config.Metrics.Register(newMetrics(all, s.shared.sinks))
}

// sinks are who is told of queries one by one.
func (c *Config) sinks() (sinks []*sink) {
	if c.QueryLog != nil {
		sinks = append(sinks, newSink("log", c.QueryLogSample, logQueries(c.QueryLog)))
	}
	if c.Dnstap.Socket != "" {
		sinks = append(sinks, newSink("dnstap", c.Dnstap.Sample, c.Dnstap.tap(c.Logger)))
	}
	return sinks
}

// shared makes what a complete configuration says of answers.
func (c *Config) shared() shared {
	return shared{
		cache:     newCache(),
		cookies:   newCookies(c.CookieKey),
		limiter:   newLimiter(c.RateLimit),
		slip:      max(c.RateLimit.Slip, 1),
		nsid:      []byte(c.NSID),
		keepalive: uint16(min(c.IdleTimeout/(100*time.Millisecond), math.MaxUint16)),
		sinks:     c.sinks(),
	}
}

// complete checks the configuration and fills in the defaults.
func (c *Config) complete() error {
	var faults []error
	if len(c.Listen) == 0 {
		faults = append(faults, errors.New("dns: Listen: at least one address is needed"))
	}
	for field, addresses := range map[string][]string{"Listen": c.Listen, "ListenTLS": c.ListenTLS} {
		for _, address := range addresses {
			if err := checkListen(address); err != nil {
				faults = append(faults, fmt.Errorf("dns: %s %q: %w", field, address, err))
			}
		}
	}
	if len(c.ListenTLS) > 0 && c.TLS == nil {
		faults = append(faults, errors.New("dns: ListenTLS: TLS is needed"))
	}
	if len(c.NSID) > maxNSID || len(c.CookieKey) > 0 && len(c.CookieKey) < minCookieKey {
		faults = append(faults, fmt.Errorf("dns: NSID has at most %d octets, CookieKey at least %d", maxNSID, minCookieKey))
	}
	if c.Dnstap.Socket != "" {
		_, _, err := c.Dnstap.address()
		faults = append(faults, err)
	}
	if c.QueryLogSample < 0 || c.Dnstap.Sample < 0 || c.Transfer.Max < 0 || c.RateLimit.PerSecond < 0 || c.RateLimit.Slip < 0 || c.Workers < 0 || c.MaxConns < 0 || c.MaxConnsPerClient < 0 || c.IdleTimeout < 0 {
		faults = append(faults, errors.New("dns: a limit is negative"))
	}
	if c.Workers == 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	if c.MaxConns == 0 {
		c.MaxConns = defaultMaxConns
	}
	if c.MaxConnsPerClient == 0 {
		c.MaxConnsPerClient = defaultMaxConnsPerClient
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = defaultIdleTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(faults...)
}

func checkListen(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("not host:port")
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" {
		return errors.New("host is not an IP address")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return errors.New("port is not a number up to 65535")
	}
	return nil
}

// bind opens the UDP sockets and the TCP socket of one address on the same port.
func (s *Server) bind(address string) error {
	host, port, _ := net.SplitHostPort(address)
	var last error
	for range portAttempts {
		sockets, err := listenUDP(address, min(s.config.Workers, maxSockets))
		if err != nil {
			return fmt.Errorf("dns: %w", err)
		}
		bound := sockets[0].LocalAddr().(*net.UDPAddr).Port
		listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(bound)))
		if err == nil {
			s.udp, s.tcp = append(s.udp, sockets...), append(s.tcp, listener)
			return nil
		}
		last = fmt.Errorf("dns: %w", err)
		for _, socket := range sockets {
			last = errors.Join(last, socket.Close())
		}
		if n, _ := strconv.Atoi(port); n != 0 {
			break
		}
	}
	return last
}

// Addrs returns the bound addresses in the order of Config.Listen. Each is
// served over UDP and TCP.
func (s *Server) Addrs() []netip.AddrPort {
	addrs := make([]netip.AddrPort, 0, len(s.tcp))
	for _, l := range s.tcp {
		addrs = append(addrs, plain(l.Addr().(*net.TCPAddr).AddrPort()))
	}
	return addrs
}

// AddrsTLS returns the bound addresses in the order of Config.ListenTLS.
func (s *Server) AddrsTLS() []netip.AddrPort {
	addrs := make([]netip.AddrPort, 0, len(s.tls))
	for _, l := range s.tls {
		addrs = append(addrs, plain(l.Addr().(*net.TCPAddr).AddrPort()))
	}
	return addrs
}

// plain makes an address one that can be compared: IPv4 as such, and no zone.
func plain(addr netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(addr.Addr().Unmap().WithZone(""), addr.Port())
}

// SetZones replaces all zones at once. Before the first call queries are
// answered SERVFAIL with the extended error Not Ready. When it returns, every
// query that arrives is answered from the new zones.
func (s *Server) SetZones(zones ...*Zone) {
	set := NewZones(zones...)
	for {
		old := s.view.Load()
		if s.view.CompareAndSwap(old, &view{zones: set, generation: old.generation + 1}) {
			break
		}
	}
	for _, n := range s.notifiers {
		select {
		case n.changed <- struct{}{}:
		default: // it is going to look anyway
		}
	}
}

// Zones returns the zones that are served, nil before the first SetZones.
func (s *Server) Zones() *Zones { return s.view.Load().zones }

// Run serves until ctx ends, then lets answers under way leave, closes all
// sockets and returns nil with no goroutine left. It can run once.
func (s *Server) Run(ctx context.Context) error {
	if !s.started.CompareAndSwap(false, true) {
		return errors.New("dns: server has run already")
	}
	var running sync.WaitGroup
	for i, socket := range s.udp {
		running.Go(func() { s.serveUDP(ctx, socket, s.packets[i]) })
	}
	for _, l := range s.tcp {
		running.Go(func() { s.accept(ctx, l, s.serveTCP) })
	}
	for _, l := range s.tls {
		running.Go(func() { s.accept(ctx, l, s.serveTLS()) })
	}
	s.runNotifiers(ctx, &running)
	looking, stop := context.WithCancel(context.WithoutCancel(ctx))
	var lookers sync.WaitGroup
	for _, sink := range s.shared.sinks {
		lookers.Go(func() { sink.run(looking, sink.queue) })
	}
	<-ctx.Done()
	s.interrupt()
	running.Wait()
	stop()
	lookers.Wait()
	return s.closeSockets()
}

// interrupt makes every blocked read, write and accept return, and nothing else.
func (s *Server) interrupt() {
	for _, socket := range s.udp {
		_ = socket.SetDeadline(time.Unix(1, 0)) // fails only when closed, which is as good
	}
	for _, l := range slices.Concat(s.tcp, s.tls) {
		_ = l.Close() // closeSockets reports errors of the last close only
	}
	s.conns.interrupt()
}

// Close releases the sockets of a server that is not run. When Run runs or has
// run, it does nothing: end Run by its context.
func (s *Server) Close() error {
	if !s.started.CompareAndSwap(false, true) {
		return nil
	}
	return s.closeSockets()
}

func (s *Server) closeSockets() error {
	var faults []error
	for _, socket := range s.udp {
		faults = append(faults, ignoreClosed(socket.Close()))
	}
	for _, l := range slices.Concat(s.tcp, s.tls) {
		faults = append(faults, ignoreClosed(l.Close()))
	}
	return errors.Join(faults...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// pause waits before a failed socket is tried again: d, or until ctx ends. It
// returns how long to wait the next time.
func pause(ctx context.Context, d time.Duration) time.Duration {
	d = max(d, minPause)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	return min(2*d, maxPause)
}
