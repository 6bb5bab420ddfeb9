package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"dstack.host/gateway/certs"
	"dstack.host/gateway/store"
)

// newSecrets runs secrets over a store until the returned function is called or the test ends.
func newSecrets(t testing.TB, kept *store.Store, logs *logs) (s *certs.Secrets, stop func()) {
	t.Helper()
	cfg := certs.SecretsConfig{Domains: []string{"dstack.host"}, Storage: kept}
	if logs != nil {
		cfg.Logger = logs.logger
	}
	s, err := certs.NewSecrets(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	await(t, "TLS secrets", s.Ready())
	return s, stop
}

// client is a TLS client that keeps its sessions.
type client struct {
	config *tls.Config
	sent   []byte // of the last connection, as the network sees it
}

func newClient(roots *x509.CertPool, version uint16) *client {
	return &client{config: &tls.Config{RootCAs: roots, MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(8)}}
}

// connect shakes hands with a server that uses s, reads a byte so that tickets have arrived, and returns what was agreed on.
func (k *client) connect(t testing.TB, c *certs.Certs, s *certs.Secrets, name string) (tls.ConnectionState, error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	server := &tls.Config{GetCertificate: c.GetCertificate, MinVersion: tls.VersionTLS12}
	s.Configure(server)
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		tc := tls.Server(conn, server.Clone())
		tc.Write([]byte("x"))
		tc.Close()
	}()
	defer func() { <-served }()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	tap := &tapped{Conn: raw}
	config := k.config.Clone()
	config.ServerName = name
	conn := tls.Client(tap, config)
	defer conn.Close()
	_, err = io.ReadFull(conn, make([]byte, 1))
	k.sent = tap.sent
	return conn.ConnectionState(), err
}

// tapped keeps what is written.
type tapped struct {
	net.Conn
	sent []byte
}

func (c *tapped) Write(b []byte) (int, error) {
	c.sent = append(c.sent, b...)
	return c.Conn.Write(b)
}

func TestASessionIsResumedOnAnotherNodeAndAfterARestart(t *testing.T) {
	dir := t.TempDir()
	kept := openStore(t, dir)
	c, stopCerts := start(t, certs.Config{Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: new(attestor), Storage: kept})
	await(t, "certificates", c.Ready())
	roots := pool(t, c.Root())
	one, stopOne := newSecrets(t, kept, nil)
	other, stopOther := newSecrets(t, kept, nil)

	clients := map[string]*client{"TLS 1.3": newClient(roots, tls.VersionTLS13), "TLS 1.2": newClient(roots, tls.VersionTLS12)}
	resumed := func(when string, s *certs.Secrets, want bool) {
		t.Helper()
		for name, k := range clients {
			state, err := k.connect(t, c, s, "app.dstack.host")
			if err != nil || state.DidResume != want {
				t.Errorf("%s, %s: resumed %v (%v), want %v", when, name, state.DidResume, err, want)
			}
		}
	}
	resumed("first", one, false)
	resumed("again", one, true)
	resumed("on the other node", other, true)

	// The key of tickets turns on one node: tickets under the one before are still taken, on all.
	turn(t, kept, certs.TicketsPath)
	resumed("after the key has turned", other, true)
	resumed("and again", one, true)

	stopOne()
	stopOther()
	stopCerts()
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	kept = openStore(t, dir)
	after, _ := newSecrets(t, kept, nil)
	resumed("after a restart", after, true)

	foreign, _ := newSecrets(t, openStore(t, t.TempDir()), nil)
	resumed("at a gateway of another cluster", foreign, false)
}

// turn lets a day go by for a stored ring: the next generation comes into use.
func turn(t *testing.T, kept *store.Store, path string) {
	t.Helper()
	for {
		e, err := kept.Get(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		r, err := certs.Turned(path, e.Value)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kept.Commit(t.Context(), []store.Cond{{Path: path, Revision: e.Revision}}, []store.Op{store.Put(path, encode(t, r))}); err == nil {
			return
		} else if !errors.Is(err, store.ErrConflict) {
			t.Fatal(err)
		}
	}
}

func TestDamagedSecretsAreReplacedAndNotShown(t *testing.T) {
	kept, logs := openStore(t, t.TempDir()), newLogs()
	if _, err := kept.Commit(t.Context(), nil, []store.Op{
		store.Put(certs.TicketsPath, []byte(`[{"from":"2026-01-01T00:00:00Z","secret":"c2VjcmV0"}]`)), // not a key's size
		store.Put(certs.ECHPrefix+"dstack.host", []byte("confidential")),
	}); err != nil {
		t.Fatal(err)
	}
	newSecrets(t, kept, logs)
	if logs.contains("confidential") || logs.contains("c2VjcmV0") {
		t.Errorf("the log shows a secret:\n%s", logs)
	}
	if !logs.contains("makes no sense") {
		t.Errorf("the log does not tell:\n%s", logs)
	}
}

func TestNewSecretsTellsEveryFault(t *testing.T) {
	for _, c := range []certs.SecretsConfig{{}, {Domains: []string{"a"}, Storage: new(store.Store)}, {Domains: []string{"dstack.host"}}} {
		if _, err := certs.NewSecrets(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}
