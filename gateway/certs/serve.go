package certs

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ErrNotReady is what GetCertificate wraps for a name of ours whose certificate was not obtained yet.
var ErrNotReady = errors.New("certificate not obtained yet")

// UseCurrent is the Key.Use of a key that is being served.
const UseCurrent = "current"

// Key is a TLS key of the gateway as relying parties know it.
type Key struct {
	// SPKI is the DER of the SubjectPublicKeyInfo; not to be modified.
	SPKI []byte
	// NotAfter is when the certificate over the key expires.
	NotAfter time.Time
	// Names are the DNS names of that certificate.
	Names []string
	// Use is UseCurrent.
	Use string
}

// snapshot is what is served. It is immutable, but for changed, which is closed when the next one takes its place.
type snapshot struct {
	certs   map[string]*certificate // by base domain, and by "*."+base domain
	keys    []Key
	roots   []byte
	account string
	changed chan struct{}
}

// serving holds the current snapshot. Readers never block.
type serving struct {
	names     []string                 // set by init: what there must be a certificate for
	wildcards map[string]string        // set by init: base domain to its wildcard, so that look-ups build no string
	ready     chan struct{}            // closed by set when every name has a certificate
	mu        sync.Mutex               // serialises writers
	current   atomic.Pointer[snapshot] // replaced by update
}

func (s *serving) init(domains []string) {
	s.ready = make(chan struct{})
	s.wildcards = make(map[string]string, len(domains))
	for _, d := range domains {
		s.wildcards[d] = "*." + d
		s.names = append(s.names, d, "*."+d)
	}
	s.current.Store(&snapshot{changed: make(chan struct{})})
}

// update replaces the snapshot by a copy that change has worked on, unless change reports that nothing changed.
func (s *serving) update(change func(*snapshot) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.Load()
	next := *old
	if !change(&next) {
		return false
	}
	next.changed = make(chan struct{})
	s.current.Store(&next)
	close(old.changed)
	if len(next.certs) == len(s.names) && len(old.certs) != len(next.certs) {
		close(s.ready)
	}
	return true
}

// set serves cert for name, and reports whether it is another than before.
func (s *serving) set(name string, cert *certificate) bool {
	return s.update(func(n *snapshot) bool {
		if old := n.certs[name]; old != nil && bytes.Equal(old.Leaf.Raw, cert.Leaf.Raw) {
			return false
		}
		certs := make(map[string]*certificate, len(n.certs)+1)
		maps.Copy(certs, n.certs)
		certs[name] = cert
		n.certs, n.keys = certs, keys(certs)
		return true
	})
}

func (s *serving) setRoots(roots []byte) {
	s.update(func(n *snapshot) bool { n.roots = roots; return true })
}

func (s *serving) setAccount(account string) {
	s.update(func(n *snapshot) bool {
		same := n.account == account
		n.account = account
		return !same
	})
}

// keys lists the keys of certs in the order of the names they are served for.
func keys(certs map[string]*certificate) []Key {
	var out []Key
	for _, name := range slices.Sorted(maps.Keys(certs)) {
		leaf := certs[name].Leaf
		out = append(out, Key{SPKI: leaf.RawSubjectPublicKeyInfo, NotAfter: leaf.NotAfter, Names: leaf.DNSNames, Use: UseCurrent})
	}
	return out
}

// lookup returns the certificate for a server name in any case: that of the base domain itself, or the wildcard of the
// base domain that the name is exactly one label under.
func (s *serving) lookup(serverName string) (*certificate, error) {
	name := strings.ToLower(serverName)
	managed := name
	if _, ok := s.wildcards[name]; !ok {
		label, parent, _ := strings.Cut(name, ".")
		if managed, ok = s.wildcards[parent]; !ok || label == "" || label == "*" {
			return nil, fmt.Errorf("server name %q is not one label under a base domain", serverName)
		}
	}
	if cert := s.current.Load().certs[managed]; cert != nil {
		return cert, nil
	}
	return nil, fmt.Errorf("%s: %w", managed, ErrNotReady)
}

// GetCertificate serves TLS handshakes (tls.Config.GetCertificate): the certificate of a base domain for its own name,
// of its wildcard for every name one label below. Nothing is ever obtained on demand. The error wraps ErrNotReady when
// the certificate is still missing; for names that are not ours, and without a name, there is no certificate.
func (c *Certs) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.serving.lookup(hello.ServerName)
}

// Ready is closed when every base domain has both its certificates.
func (c *Certs) Ready() <-chan struct{} { return c.serving.ready }

// Changed returns a channel that is closed when what Keys, Root, Account, CAA or GetCertificate answer changes next. Take
// it before reading them, then nothing is missed.
func (c *Certs) Changed() <-chan struct{} { return c.serving.current.Load().changed }

// Keys returns the keys that are served now, a fresh order of fixed elements; empty before the first certificate.
func (c *Certs) Keys() []Key { return slices.Clone(c.serving.current.Load().keys) }

// Root returns the certificates, PEM, that verify what the internal issuer signs: one for each base domain. It is nil
// with other issuers and until Run has loaded or made them.
func (c *Certs) Root() []byte { return bytes.Clone(c.serving.current.Load().roots) }

// Account returns the URI of the ACME account, "" with other issuers and until it is registered.
func (c *Certs) Account() string { return c.serving.current.Load().account }
