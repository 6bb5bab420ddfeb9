package certs

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"dstack.host/gateway/store"
)

const (
	// secretsPrefix is where the secrets lie in the store.
	secretsPrefix = "tls/"
	ticketsPath   = secretsPrefix + "tickets"
	echPrefix     = secretsPrefix + "ech/"
	ticketKeySize = 32
	// secretsRetry is how soon what could not be stored is tried again.
	secretsRetry = 5 * time.Second
	// secretsCheck is how often the clock is compared with the secrets at least, and how often a node replaces one at most: two
	// whose clocks disagree by days do not drive each other.
	secretsCheck = time.Hour
)

// SecretsConfig says what secrets there are.
type SecretsConfig struct {
	// Domains are the base domains, each the public name of its ECH configuration. At least one.
	Domains []string
	// Storage keeps the secrets, sealed, below "tls/". Required.
	Storage *store.Store
	// Logger receives what goes wrong; nil discards it.
	Logger *slog.Logger
}

// Secrets are what TLS handshakes need beside certificates, the same on all nodes and after a restart: the keys of session
// tickets, and those of Encrypted Client Hello (RFC 9849). Each is replaced every day; the one before it still works for
// another. Its methods are safe for concurrent use.
type Secrets struct {
	cfg      SecretsConfig             // set by NewSecrets
	paths    map[string]secretKind     // set by NewSecrets
	ready    chan struct{}             // closed by Run with the first complete set
	replaced map[string]time.Time      // owned by Run: when this node replaced each
	current  atomic.Pointer[secretSet] // replaced by Run
}

// secretKind tells how a secret is made, of how many octets, when there are others.
type secretKind struct {
	size  int
	fresh func(others ring) ([]byte, error)
}

// secretSet is the secrets as they are now. It is immutable but for changed, which is closed when the next takes its place.
type secretSet struct {
	tickets [][]byte           // keys, the one in use first
	sealer  *tls.Config        // seals and opens tickets with them; used for nothing else
	ech     map[string]echKeys // by base domain
	changed chan struct{}
}

// NewSecrets checks cfg. Nothing is read or started before Run; until it has read, session tickets are those of this process,
// and Encrypted Client Hello is not accepted.
func NewSecrets(cfg SecretsConfig) (*Secrets, error) {
	var errs []error
	if len(cfg.Domains) == 0 {
		errs = append(errs, errors.New("no base domain"))
	}
	for _, d := range cfg.Domains {
		if err := checkDomain(d); err != nil {
			errs = append(errs, fmt.Errorf("%q: %w", d, err))
		}
	}
	if cfg.Storage == nil {
		errs = append(errs, errors.New("no storage"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("TLS secrets: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Secrets{cfg: cfg, paths: map[string]secretKind{ticketsPath: {ticketKeySize, newTicketKey}}, ready: make(chan struct{}), replaced: make(map[string]time.Time)}
	for _, d := range cfg.Domains {
		s.paths[echPrefix+d] = secretKind{echKeySize, newECHKey}
	}
	s.current.Store(&secretSet{sealer: new(tls.Config), changed: make(chan struct{})})
	return s, nil
}

// Ready is closed when the secrets of the store are in use.
func (s *Secrets) Ready() <-chan struct{} { return s.ready }

// Changed returns a channel that is closed when what ECHConfigList answers may change next.
func (s *Secrets) Changed() <-chan struct{} { return s.current.Load().changed }

// Configure has the handshakes of c, and of its clones, use the secrets. No lock that another handshake writes, and no I/O, is
// on their path.
func (s *Secrets) Configure(c *tls.Config) {
	c.WrapSession = s.wrap
	c.UnwrapSession = s.unwrap
	c.GetEncryptedClientHelloKeys = s.keysFor
}

// wrap seals a session into a ticket. Early data is never allowed: it can be replayed.
func (s *Secrets) wrap(cs tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
	session.EarlyData = false
	return s.current.Load().sealer.EncryptTicket(cs, session)
}

// unwrap opens a ticket; one that does not open leads to a whole handshake.
func (s *Secrets) unwrap(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	session, err := s.current.Load().sealer.DecryptTicket(ticket, cs)
	if session != nil {
		session.EarlyData = false
	}
	return session, err
}

// newTicketKey returns a fresh key of session tickets.
func newTicketKey(ring) ([]byte, error) {
	key := make([]byte, ticketKeySize)
	rand.Read(key) // never fails
	return key, nil
}

// newSealer returns what seals with the first of keys and opens with all.
func newSealer(keys [][]byte) (*tls.Config, error) {
	sized := make([][32]byte, len(keys))
	for i, k := range keys {
		if len(k) != len(sized[i]) {
			return nil, fmt.Errorf("a ticket key has %d octets", len(k))
		}
		sized[i] = [32]byte(k)
	}
	c := new(tls.Config)
	c.SetSessionTicketKeys(sized)
	return c, nil
}

// Run follows the store and replaces what is due, until ctx ends.
func (s *Secrets) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	told := make(chan store.Update)
	tasks.Go(func() error {
		return s.cfg.Storage.Watch(ctx, secretsPrefix, func(u store.Update) error {
			select {
			case told <- u:
			case <-ctx.Done():
			}
			return nil
		})
	})
	tasks.Go(func() error {
		s.follow(ctx, told)
		return nil
	})
	return tasks.Wait()
}

func (s *Secrets) follow(ctx context.Context, told <-chan store.Update) {
	var stored map[string]store.Entry // nil before the store has told
	timer := time.NewTimer(secretsCheck)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case u := <-told:
			stored = after(stored, u)
		case <-timer.C:
		}
		if stored != nil {
			timer.Reset(s.advance(ctx, stored))
		}
	}
}

// after returns what is stored after an update.
func after(old map[string]store.Entry, u store.Update) map[string]store.Entry {
	next := make(map[string]store.Entry)
	for path, e := range old {
		if !u.Reset || slices.Contains(u.Skipped, path) {
			next[path] = e
		}
	}
	for _, e := range u.Puts {
		next[e.Path] = e
	}
	for _, path := range u.Deletes {
		delete(next, path)
	}
	return next
}

// advance uses what is stored, replaces what is due, and returns when to look again. What it stores is used when the store
// tells of it, which is when it tells the other nodes.
func (s *Secrets) advance(ctx context.Context, stored map[string]store.Entry) time.Duration {
	now, pause := time.Now(), secretsCheck
	rings := make(map[string]ring, len(s.paths))
	for path, kind := range s.paths {
		r, err := parseRing(stored[path].Value, kind.size)
		if err != nil {
			s.cfg.Logger.Error("a stored TLS secret makes no sense; a new one takes its place", "path", path, "error", err)
		}
		rings[path] = r
		pause = min(pause, r.due(now))
		if last, ok := s.replaced[path]; ok && now.Sub(last) < secretsCheck && len(r) > 0 {
			continue
		}
		if err := s.replace(ctx, path, stored[path].Revision, r, kind.fresh); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Error("TLS secret not replaced", "path", path, "error", err, "retry_in", secretsRetry)
			pause = min(pause, secretsRetry)
		}
	}
	s.use(rings, now)
	return max(pause, time.Second)
}

// replace stores what a ring should be now, if that is another, unless another node has been faster.
func (s *Secrets) replace(ctx context.Context, path string, revision int64, r ring, fresh func(ring) ([]byte, error)) error {
	next, changed, err := r.advance(time.Now(), fresh)
	if err != nil || !changed {
		return err
	}
	value, err := json.Marshal(next)
	if err != nil {
		return err
	}
	_, err = s.cfg.Storage.Commit(ctx, []store.Cond{{Path: path, Revision: revision}}, []store.Op{store.Put(path, value)})
	if err == nil || errors.Is(err, store.ErrConflict) {
		s.replaced[path] = time.Now()
		return nil
	}
	return err
}

// use makes the rings what handshakes use. Of what is missing or makes no sense, what was used before stays.
func (s *Secrets) use(rings map[string]ring, now time.Time) {
	old := s.current.Load()
	next := &secretSet{tickets: old.tickets, sealer: old.sealer, ech: make(map[string]echKeys), changed: make(chan struct{})}
	complete := true
	settle := func(path string, set func(secrets [][]byte) error) {
		secrets := rings[path].order(now)
		complete = complete && len(secrets) > 0
		if len(secrets) == 0 {
			return
		}
		if err := set(secrets); err != nil {
			s.cfg.Logger.Error("a stored TLS secret can't be used", "path", path, "error", err)
			complete = false
		}
	}
	settle(ticketsPath, func(secrets [][]byte) (err error) {
		if slices.EqualFunc(secrets, old.tickets, bytes.Equal) {
			return nil
		}
		sealer, err := newSealer(secrets)
		if err == nil {
			next.tickets, next.sealer = secrets, sealer
		}
		return err
	})
	for _, d := range s.cfg.Domains {
		next.ech[d] = old.ech[d]
		settle(echPrefix+d, func(secrets [][]byte) error {
			keys, err := newECHKeys(d, secrets)
			if err == nil {
				next.ech[d] = keys
			}
			return err
		})
	}
	s.current.Store(next)
	close(old.changed)
	if complete && !s.told() {
		close(s.ready)
	}
}

// told reports whether ready is closed.
func (s *Secrets) told() bool {
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}
