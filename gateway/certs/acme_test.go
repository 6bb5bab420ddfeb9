package certs_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/certs"
	"dstack.host/gateway/certs/pebbletest"
)

func newPebble(t *testing.T, a *authority) *pebbletest.Pebble {
	t.Helper()
	p, err := pebbletest.New(pebbletest.Config{DNS: a.addr()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// acmeConfig is the configuration of a gateway for dstack.example that obtains from p and answers through c.
func acmeConfig(t *testing.T, p *pebbletest.Pebble, c certs.Challenges) certs.Config {
	t.Helper()
	return certs.Config{
		Domains: []string{"dstack.example"}, Issuer: certs.IssuerACME, Attestor: new(attestor),
		Directory: p.Directory(), CARoots: p.Roots(), CAAIdentity: pebbletest.CAAIdentity,
		Storage: openStore(t, t.TempDir()), Challenges: c,
	}
}

func TestACMEObtainsBaseAndWildcardThroughOurDNS(t *testing.T) {
	dns := newAuthority(t, "dstack.example", "other.example")
	pebble := newPebble(t, dns)
	cfg := acmeConfig(t, pebble, dns)
	cfg.Domains, cfg.Email = []string{"dstack.example", "other.example"}, "ops@dstack.example"
	c, _ := start(t, cfg)
	await(t, "certificates", c.Ready())

	for _, name := range []string{"dstack.example", "app.dstack.example", "other.example", "app.other.example"} {
		handshake(t, c, name, pebble.IssuerRoots())
	}
	want := certs.CAA{Tag: "issue", Value: "pebble.letsencrypt.org;validationmethods=dns-01;accounturi=" + c.Account()}
	wild := certs.CAA{Tag: "issuewild", Value: want.Value}
	if diff := cmp.Diff([]certs.CAA{want, wild}, c.CAA()); diff != "" {
		t.Errorf("CAA (-want +got)\n%s", diff)
	}
	if c.Root() != nil {
		t.Errorf("internal root %q", c.Root())
	}
	if n := dns.values(); n != 0 {
		t.Errorf("%d challenge values are left behind", n)
	}
	if got := pebble.Orders(); got != 4 {
		t.Errorf("%d orders for four names", got)
	}
}

// The base domain and its wildcard are validated at one name, and at the same time: neither may take the other's answer
// away. Until both are published, none is reported as published.
func TestACMEAnswersOfBaseAndWildcardStandTogether(t *testing.T) {
	dns := newAuthority(t, "dstack.example")
	both := &rendezvous{authority: dns, parties: 2, met: make(chan struct{})}
	c, _ := start(t, acmeConfig(t, newPebble(t, dns), both))
	await(t, "certificates", c.Ready())
	if got := dns.most["_acme-challenge.dstack.example"]; got != 2 {
		t.Errorf("%d values were served together", got)
	}
}

// rendezvous lets SetTXT return only when that many have been called.
type rendezvous struct {
	*authority
	mu      sync.Mutex
	parties int // guarded by mu
	met     chan struct{}
}

func (r *rendezvous) SetTXT(ctx context.Context, fqdn, value string) error {
	if err := r.authority.SetTXT(ctx, fqdn, value); err != nil {
		return err
	}
	r.mu.Lock()
	if r.parties--; r.parties == 0 {
		close(r.met)
	}
	r.mu.Unlock()
	select {
	case <-r.met:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hooked calls set before it publishes.
type hooked struct {
	*authority
	set func(ctx context.Context) error
}

func (h hooked) SetTXT(ctx context.Context, fqdn, value string) error {
	if err := h.set(ctx); err != nil {
		return err
	}
	return h.authority.SetTXT(ctx, fqdn, value)
}

// CAA records must name the account before the authority looks for them.
func TestACMEAccountIsKnownBeforeTheFirstChallenge(t *testing.T) {
	dns := newAuthority(t, "dstack.example")
	var c *certs.Certs
	var early []string
	hook := hooked{dns, func(context.Context) error {
		dns.mu.Lock()
		defer dns.mu.Unlock()
		early = append(early, c.Account())
		return nil
	}}
	cfg := acmeConfig(t, newPebble(t, dns), hook)
	var err error
	if c, err = certs.New(cfg); err != nil {
		t.Fatal(err)
	}
	if got := c.CAA()[0].Value; got != ";" {
		t.Errorf("without an account, CAA allows %q", got)
	}
	run(t, c)
	await(t, "certificates", c.Ready())
	dns.mu.Lock()
	defer dns.mu.Unlock()
	if len(early) != 2 || early[0] == "" || early[0] != c.Account() || early[1] != early[0] {
		t.Errorf("accounts at the challenges %q, then %q", early, c.Account())
	}
}

func TestACMERestartNeedsNoDirectory(t *testing.T) {
	dns := newAuthority(t, "dstack.example")
	pebble := newPebble(t, dns)
	cfg := acmeConfig(t, pebble, dns)
	c, stop := start(t, cfg)
	await(t, "certificates", c.Ready())
	account, keys := c.Account(), c.Keys()
	stop()
	pebble.Close()

	c, _ = start(t, cfg)
	await(t, "certificates without the directory", c.Ready())
	if c.Account() != account {
		t.Errorf("account %q, was %q", c.Account(), account)
	}
	if diff := cmp.Diff(keys, c.Keys()); diff != "" {
		t.Errorf("keys (-before +after)\n%s", diff)
	}
}

func TestACMENodesShareOneAccountAndOrderOnce(t *testing.T) {
	dns := newAuthority(t, "dstack.example")
	pebble := newPebble(t, dns)
	cfg := acmeConfig(t, pebble, dns)
	one, _ := start(t, cfg)
	other, _ := start(t, cfg)
	await(t, "certificates", one.Ready())
	await(t, "certificates", other.Ready())
	if diff := cmp.Diff(one.Keys(), other.Keys()); diff != "" {
		t.Errorf("keys (-one +other)\n%s", diff)
	}
	if got := pebble.Orders(); got != 2 {
		t.Errorf("%d orders for two names", got)
	}
	// Only one of the two had to ask the directory for the account; the other finds it in the store when it next needs it.
	if a, b := one.Account(), other.Account(); a != b && a != "" && b != "" {
		t.Errorf("accounts %q and %q", a, b)
	}
}

// accountPath is where the account of a directory at host lies in the store.
func accountPath(t *testing.T, s interface {
	List(context.Context, string, bool) ([]string, error)
}) string {
	t.Helper()
	keys, err := s.List(t.Context(), "acme", true)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if strings.HasSuffix(k, "/account.json") {
			return k
		}
	}
	t.Fatalf("no account in %q", keys)
	return ""
}

func TestACMELostAccountIsRegisteredAgainWithItsKey(t *testing.T) {
	dns := newAuthority(t, "dstack.example")
	cfg := acmeConfig(t, newPebble(t, dns), dns)
	c, stop := start(t, cfg)
	await(t, "certificates", c.Ready())
	account := c.Account()
	stop()

	storage := certs.NewStorage(cfg.Storage)
	path := accountPath(t, storage)
	record, err := storage.Load(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := storage.Store(t.Context(), path, bytes.Replace(record, []byte(account), []byte(account+"-gone"), 1)); err != nil {
		t.Fatal(err)
	}
	if err := storage.Delete(t.Context(), "certificates"); err != nil {
		t.Fatal(err)
	}
	c, _ = start(t, cfg)
	await(t, "certificates", c.Ready())
	// The key is known to Pebble, so the account is the one it belongs to.
	if c.Account() != account {
		t.Errorf("account %q, was %q", c.Account(), account)
	}
}

func TestACMEStoredAccountIsNeverReplaced(t *testing.T) {
	dns := newAuthority(t, "dstack.example")
	pebble := newPebble(t, dns)
	cfg := acmeConfig(t, pebble, dns)
	c, stop := start(t, cfg)
	await(t, "certificates", c.Ready())
	stop()
	storage := certs.NewStorage(cfg.Storage)
	path := accountPath(t, storage)
	record, err := storage.Load(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}

	for name, damaged := range map[string][]byte{
		"another directory": bytes.Replace(record, []byte(pebble.Directory()), []byte("https://acme.example/dir"), 1),
		"no JSON":           record[:len(record)-1],
		"null":              []byte("null"),
		"no key":            bytes.Replace(record, []byte(`"key"`), []byte(`"kay"`), 1),
		"key cut short":     bytes.Replace(record, []byte("-----BEGIN PRIVATE KEY-----"), []byte("-----BEGIN PRIVATE KEY----"), 1),
		"empty":             {},
	} {
		t.Run(name, func(t *testing.T) {
			if err := storage.Store(t.Context(), path, damaged); err != nil {
				t.Fatal(err)
			}
			cfg, logs := cfg, newLogs()
			cfg.Logger = logs.logger
			c, stop := start(t, cfg)
			logs.await(t, "issuer state not loaded")
			stop()
			if got := c.CAA()[0].Value; got != ";" {
				t.Errorf("CAA allows %q", got)
			}
			after, err := storage.Load(t.Context(), path)
			if err != nil || !bytes.Equal(after, damaged) {
				t.Errorf("the stored account was touched (%v)", err)
			}
			if logs.contains("PRIVATE KEY") {
				t.Errorf("the log shows the stored value:\n%s", logs)
			}
		})
	}
}

func TestACMEFailureIsToldAndTriedAgain(t *testing.T) {
	dns := newAuthority(t, "dstack.example")
	pebble := newPebble(t, dns)
	for _, tt := range []struct {
		name   string
		change func(*certs.Config)
		want   string
	}{
		{"challenge not published", func(c *certs.Config) {
			c.Challenges = hooked{dns, func(context.Context) error { return errors.New("zone is read-only") }}
		}, "zone is read-only"},
		{"directory of a stranger", func(c *certs.Config) { c.CARoots = x509.NewCertPool() }, "certificate"},
		{"no directory there", func(c *certs.Config) { c.Directory += "/nothing" }, "404"},
		{"validation fails", func(c *certs.Config) { c.Domains = []string{"elsewhere.example"} }, "unauthorized"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, logs := acmeConfig(t, pebble, dns), newLogs()
			tt.change(&cfg)
			cfg.Logger = logs.logger
			c, stop := start(t, cfg)
			logs.await(t, "certificate not renewed")
			stop()
			if !logs.contains(tt.want) || !logs.contains("retry_in=") {
				t.Errorf("the log does not tell %q and when it tries again:\n%s", tt.want, logs)
			}
			if _, err := c.Lookup("app." + cfg.Domains[0]); !errors.Is(err, certs.ErrNotReady) {
				t.Errorf("served: %v", err)
			}
			if logs.contains("PRIVATE KEY") {
				t.Errorf("the log shows a key:\n%s", logs)
			}
		})
	}
}

// A gateway that is told to end in the middle of an order withdraws its answers and gives its locks back.
func TestACMEEndsInTheMiddleOfAnOrder(t *testing.T) {
	dns := newAuthority(t, "dstack.example")
	entered := make(chan struct{}, 2)
	stuck := hooked{dns, func(ctx context.Context) error {
		entered <- struct{}{}
		<-ctx.Done()
		return nil // published too late, when nobody waits any more
	}}
	cfg := acmeConfig(t, newPebble(t, dns), stuck)
	_, stop := start(t, cfg)
	<-entered
	stop()
	if n := dns.values(); n != 0 {
		t.Errorf("%d challenge values are left behind", n)
	}
	cfg.Challenges = dns
	c, _ := start(t, cfg)
	await(t, "certificates", c.Ready())
}

// A write that was cut short leaves parts that do not belong together.
func TestTornCertificateIsReplaced(t *testing.T) {
	cfg := certs.Config{Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: new(attestor), Storage: openStore(t, t.TempDir())}
	storage := certs.NewStorage(cfg.Storage)
	const crt, key = "certificates/internal/dstack.host/dstack.host.crt", "certificates/internal/dstack.host/dstack.host.key"
	const otherKey = "certificates/internal/wildcard_.dstack.host/wildcard_.dstack.host.key"

	for _, tt := range []struct {
		name string
		tear func() error
	}{
		{"key of another certificate", func() error {
			value, err := storage.Load(t.Context(), otherKey)
			return errors.Join(err, storage.Store(t.Context(), key, value))
		}},
		{"no key", func() error { return storage.Delete(t.Context(), key) }},
		{"no certificate", func() error { return storage.Delete(t.Context(), crt) }},
		{"damaged certificate", func() error { return storage.Store(t.Context(), crt, []byte("-----BEGIN")) }},
		{"empty key", func() error { return storage.Store(t.Context(), key, nil) }},
		{"certificate for another name", func() error {
			k, err := storage.Load(t.Context(), otherKey)
			v, err2 := storage.Load(t.Context(), strings.TrimSuffix(otherKey, ".key")+".crt")
			return errors.Join(err, err2, storage.Store(t.Context(), key, k), storage.Store(t.Context(), crt, v))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, stop := start(t, cfg)
			await(t, "certificates", c.Ready())
			before := leaf(t, c, "dstack.host")
			stop()
			if err := tt.tear(); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			c, stop = start(t, cfg)
			defer stop()
			await(t, "certificates", c.Ready())
			handshake(t, c, "dstack.host", pool(t, c.Root()))
			if after := leaf(t, c, "dstack.host"); bytes.Equal(before.RawSubjectPublicKeyInfo, after.RawSubjectPublicKeyInfo) {
				t.Error("the torn certificate is still served")
			}
		})
	}
}

func TestBackoffGrowsToAnHour(t *testing.T) {
	for n, want := range []time.Duration{15 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute, 32 * time.Minute, time.Hour, time.Hour} {
		if got := certs.Backoff(n); got > want || got < want*4/5 {
			t.Errorf("after failure %d: %s, want at most %s", n, got, want)
		}
	}
	if got := certs.Backoff(1 << 40); got > time.Hour || got < 48*time.Minute {
		t.Errorf("after very many failures: %s", got)
	}
}

func TestAccountURIMustFitIntoCAA(t *testing.T) {
	for uri, ok := range map[string]bool{
		"https://acme-v02.api.letsencrypt.org/acme/acct/1": true,
		"https://127.0.0.1:14000/my-account/1":             true,
		"":                                                 false,
		"/my-account/1":                                    false,
		"http://acme.example/1":                            false,
		"https:///1":                                       false,
		"https://acme.example/1;validationmethods=http-01": false,
		"https://acme.example/1 2":                         false,
		"https://acme.example/\"":                          false,
		"https://acme.example/\\":                          false,
		"https://acme.example/\n":                          false,
		"https://acme.example/é":                           false,
		"https://acme.example/" + strings.Repeat("1", 200): false,
	} {
		if err := certs.CheckAccountURI(uri); (err == nil) != ok {
			t.Errorf("%q: %v", uri, err)
		}
	}
}

// logs collects what is logged, at all levels.
type logs struct {
	logger *slog.Logger

	mu   sync.Mutex
	text strings.Builder // guarded by mu
	grew chan struct{}   // guarded by mu; closed and replaced by Write
}

func newLogs() *logs {
	l := &logs{grew: make(chan struct{})}
	l.logger = slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return l
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.grew)
	l.grew = make(chan struct{})
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logs) contains(s string) bool { return strings.Contains(l.String(), s) }

// await waits until something that contains s was logged.
func (l *logs) await(t *testing.T, s string) {
	t.Helper()
	timeout := time.After(deadline)
	for {
		l.mu.Lock()
		grew := l.grew
		l.mu.Unlock()
		if l.contains(s) {
			return
		}
		select {
		case <-grew:
		case <-timeout:
			t.Fatalf("%q was not logged within %s:\n%s", s, deadline, l)
		}
	}
}
