// Package store keeps what must outlive a process and be known to all nodes, in etcd: an embedded one by default, or
// a cluster, both through the same client.
//
// Nobody outside a node can read or forge a value. Every value is sealed under the cluster key, bound to the cluster,
// its path and a version that only grows, so that neither the disk of an embedded etcd nor the operators of a cluster
// can read it, alter it, move it to another path, or bring back an old one where a node has seen a newer. What they
// still can do is delete values, withhold news, and serve old state to a node that has just started; see DESIGN.md.
package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Errors that callers branch on.
var (
	// ErrNotFound says that nothing is stored at a path.
	ErrNotFound = errors.New("store: not found")
	// ErrConflict says that a condition of a commit did not hold, and that nothing was written.
	ErrConflict = errors.New("store: changed meanwhile")
	// ErrUnavailable says that etcd did not answer, or answered that it cannot serve. A commit that fails with it may
	// have happened all the same.
	ErrUnavailable = errors.New("store: etcd is unavailable")
	// ErrTampered says that a value is not the one that a node of this cluster last stored at its path.
	ErrTampered = errors.New("store: value is not authentic")
)

// Limits of what is stored.
const (
	// MaxValue is the largest size of a value in bytes. One commit must stay below it in total.
	MaxValue = 1 << 20
	// MaxOps is the largest number of conditions, and of operations, in one commit.
	MaxOps = 32

	maxPath = 1024
)

const (
	defaultPrefix  = "/dstack-gateway/"
	defaultTimeout = 5 * time.Second
)

// Config says where etcd is and what protects the values in it.
type Config struct {
	// Endpoints are the client URLs of an etcd cluster. Without any, etcd runs inside this process.
	Endpoints []string
	// TLS is for https endpoints; nil uses the roots of the system.
	TLS *tls.Config
	// Username and Password are for a cluster that asks for them.
	Username, Password string

	// DataDir holds the embedded etcd, in a subdirectory with mode 0700 that is made when absent. One process at a
	// time may use it.
	DataDir string
	// Name is the member name of the embedded etcd; "" means "gateway".
	Name string

	// Prefix is in front of all keys; "" means "/dstack-gateway/".
	Prefix string
	// Key is the cluster key, the same on all nodes.
	Key Key
	// ClusterID is bound into every value, so that two clusters that share a key by mistake cannot read each other's.
	ClusterID string

	// Timeout bounds every call; 0 means 5 s.
	Timeout time.Duration
	// Alarm, when set, is called for every value that is not authentic, in addition to the log. It must not block.
	Alarm func(path string, err error)
	// Logger gets what etcd says, one level quieter than etcd finds it. nil discards.
	Logger *slog.Logger
}

func (c Config) check() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf("store: "+format, args...)) }
	if c.Key == (Key{}) {
		fault("the cluster key is all zero")
	}
	if len(c.Endpoints) == 0 && c.DataDir == "" {
		fault("no data directory for the embedded etcd, and no endpoints of a cluster")
	}
	if len(c.Endpoints) > 0 && c.DataDir != "" {
		fault("endpoints and a data directory exclude each other")
	}
	if c.Prefix != "" && (!strings.HasPrefix(c.Prefix, "/") || !strings.HasSuffix(c.Prefix, "/")) {
		fault("prefix %q must begin and end with a slash", c.Prefix)
	}
	if len(c.Name) > 128 || strings.ContainsFunc(c.Name, notInName) {
		fault("member name %q may have up to 128 letters, digits, dots, hyphens and underscores", c.Name)
	}
	if (c.Username == "") != (c.Password == "") {
		fault("username and password belong together")
	}
	for _, e := range c.Endpoints {
		if err := checkEndpoint(e, c.Password != ""); err != nil {
			fault("endpoint %q: %w", e, err)
		}
	}
	return errors.Join(faults...)
}

// notInName tells what would break the list of members that etcd wants at its start.
func notInName(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("._-", r))
}

func checkEndpoint(endpoint string, password bool) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	switch u.Scheme {
	case "https", "unixs", "unix":
		return nil
	case "http":
	default:
		return errors.New("must be a URL with https, http, unix or unixs")
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil {
		return errors.New("names no port")
	}
	if ip, err := netip.ParseAddr(u.Hostname()); password && (err != nil || !ip.IsLoopback()) {
		return errors.New("a password needs https, or a loopback address")
	}
	return nil
}

// Store is an open store. All methods may be called at the same time.
type Store struct {
	// Set by Open.
	client   *clientv3.Client
	embedded *embedded // nil with a cluster
	sealer   sealer
	prefix   string
	timeout  time.Duration
	alarmFn  func(path string, err error)
	log      *slog.Logger
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc

	versions versions // what this process has seen

	mu     sync.Mutex // guards closed, and calls.Add against calls.Wait
	closed bool
	calls  sync.WaitGroup
}

// Open connects to the cluster, or starts the embedded etcd and waits until it serves, at most until ctx ends. A
// cluster need not be reachable yet, unless it asks for a password.
func Open(ctx context.Context, c Config) (*Store, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	s := &Store{
		prefix:  orDefault(c.Prefix, defaultPrefix),
		timeout: orDefault(c.Timeout, defaultTimeout),
		alarmFn: c.Alarm,
		log:     orDefault(c.Logger, slog.New(slog.DiscardHandler)),
	}
	var err error
	if s.sealer, err = newSealer(c.Key, c.ClusterID); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if len(c.Endpoints) > 0 {
		s.client, err = connect(c, s.timeout, s.log)
	} else {
		s.embedded, err = startEmbedded(ctx, c, s.log)
		if err == nil {
			s.client = s.embedded.client()
		}
	}
	if err != nil {
		s.cancel()
		return nil, err
	}
	if s.embedded != nil {
		s.calls.Go(func() { s.embedded.maintain(s.ctx, s.client) })
	}
	return s, nil
}

func connect(c Config, timeout time.Duration, log *slog.Logger) (*clientv3.Client, error) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            c.Endpoints,
		TLS:                  c.TLS,
		Username:             c.Username,
		Password:             c.Password,
		DialTimeout:          timeout,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: timeout,
		Logger:               newZap(log),
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return client, nil
}

// Close ends all calls and watches, waits for them, and stops the embedded etcd.
func (s *Store) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.cancel()
	s.calls.Wait()
	err := s.client.Close()
	if errors.Is(err, context.Canceled) {
		err = nil // what the client says when it had no connection, as with the embedded etcd
	}
	if s.embedded != nil {
		err = errors.Join(err, s.embedded.close())
	}
	return err
}

// Ping asks etcd for an answer.
func (s *Store) Ping(ctx context.Context) error {
	return s.call(ctx, func(ctx context.Context) error {
		_, err := s.client.Get(ctx, s.prefix, clientv3.WithCountOnly())
		return err
	})
}

// enter registers a call, so that Close waits for it.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("%w: the store is closed", ErrUnavailable)
	}
	s.calls.Add(1)
	return nil
}

// scope ends with ctx and with Close.
func (s *Store) scope(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// call runs one exchange with etcd under the deadline, and says ErrUnavailable for whatever goes wrong in it: a
// refusal of etcd (no leader, no space, no permission) is an outage for us as well.
func (s *Store) call(ctx context.Context, do func(context.Context) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.calls.Done()
	scoped, cancel := s.scope(ctx)
	defer cancel()
	timed, cancel := context.WithTimeout(scoped, s.timeout)
	defer cancel()
	err := do(timed)
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// alarm reports a value that is not authentic.
func (s *Store) alarm(path string, err error) {
	s.log.Error("stored value is not authentic", "path", path, "error", err)
	if s.alarmFn != nil {
		s.alarmFn(path, err)
	}
}

func orDefault[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}
