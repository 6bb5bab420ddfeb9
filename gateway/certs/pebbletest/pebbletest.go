// Package pebbletest runs Pebble, Let's Encrypt's ACME server for tests, inside the process: the real RFC 8555 endpoints
// over TLS on loopback, whose validation asks a DNS server of the caller's choice. Nothing but the TXT records of dns-01
// is looked up (Pebble knows no CAA).
//
// Pebble has no way to stop: one goroutine for each New, LeakedGoroutine, waits for validations until the process ends.
// Everything else is gone when Close returns.
package pebbletest

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"sync"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// LeakedGoroutine is the function, for goleak.IgnoreTopFunction, of the goroutine that a closed Pebble leaves behind.
const LeakedGoroutine = "github.com/letsencrypt/pebble/v2/va.VAImpl.processTasks"

// CAAIdentity is the issuer domain name that Pebble announces.
const CAAIdentity = "pebble.letsencrypt.org"

// Config says how Pebble behaves.
type Config struct {
	// DNS is the server that validation asks, over TCP. Required.
	DNS netip.AddrPort
	// ValiditySeconds of issued certificates; zero is Pebble's default of 90 days.
	ValiditySeconds uint64
	// Log receives Pebble's log; nil discards it.
	Log io.Writer
}

// Pebble is a running server.
type Pebble struct {
	server *httptest.Server
	ca     *ca.CAImpl

	mu     sync.Mutex
	orders int // guarded by mu
}

// New starts a Pebble that validates without pauses, refuses no nonces at random and reuses no authorization.
func New(cfg Config) (*Pebble, error) {
	if !cfg.DNS.IsValid() {
		return nil, errors.New("pebbletest: DNS: address of a DNS server required")
	}
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	logger := log.New(cfg.Log, "pebble ", 0)
	store := db.NewMemoryStore()
	authority := ca.New(logger, store, "", "ecdsa", 0, 1, map[string]ca.Profile{
		"default": {Description: "default", ValidityPeriod: cfg.ValiditySeconds},
	})
	p := &Pebble{ca: authority}
	withEnvironment(func() {
		validation := va.New(logger, 0, 0, false, cfg.DNS.String(), store)
		front := wfe.New(logger, store, validation, authority, []string{CAAIdentity}, false, false, 0, 0)
		p.server = httptest.NewUnstartedServer(p.counted(front.Handler()))
	})
	p.server.Config.ErrorLog = logger
	p.server.StartTLS()
	return p, nil
}

// environment guards the variables that Pebble reads while it is made, its only way to be configured.
var environment sync.Mutex

// withEnvironment runs do with Pebble's variables set for a fast and predictable server, and restores them.
func withEnvironment(do func()) {
	environment.Lock()
	defer environment.Unlock()
	for name, value := range map[string]string{
		"PEBBLE_VA_NOSLEEP":      "1",
		"PEBBLE_VA_ALWAYS_VALID": "0",
		"PEBBLE_WFE_NONCEREJECT": "0",
		"PEBBLE_AUTHZREUSE":      "0",
	} {
		old, was := os.LookupEnv(name)
		os.Setenv(name, value)
		defer func() {
			if was {
				os.Setenv(name, old)
			} else {
				os.Unsetenv(name)
			}
		}()
	}
	do()
}

// counted counts the orders that h is asked for.
func (p *Pebble) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/order-plz" {
			p.mu.Lock()
			p.orders++
			p.mu.Unlock()
		}
		h.ServeHTTP(w, r)
	})
}

// Close stops the server; see the package comment for what stays.
func (p *Pebble) Close() { p.server.Close() }

// Directory returns the URL of the ACME directory.
func (p *Pebble) Directory() string { return p.server.URL + wfe.DirectoryPath }

// Roots returns the pool that verifies the TLS certificate of the directory.
func (p *Pebble) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.server.Certificate())
	return pool
}

// RootsPEM returns the certificate in Roots as PEM, for configurations that name a file.
func (p *Pebble) RootsPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.server.Certificate().Raw})
}

// IssuerRoots returns the pool that verifies what Pebble issues; it is another for every Pebble.
func (p *Pebble) IssuerRoots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.ca.GetRootCert(0).Cert)
	return pool
}

// Orders returns how many orders were requested so far.
func (p *Pebble) Orders() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.orders
}
