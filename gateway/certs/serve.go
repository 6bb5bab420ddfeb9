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

// The values of Key.Use.
const (
	// UseCurrent is that of a key that is being served.
	UseCurrent = "current"
	// UseNext is that of a key that is going to be served.
	UseNext = "next"
)

// Key is a TLS key of the gateway as relying parties know it.
type Key struct {
	// SPKI is the DER of the SubjectPublicKeyInfo; not to be modified.
	SPKI []byte
	// NotAfter is when the certificate over the key expires.
	NotAfter time.Time
	// Names are the DNS names of that certificate.
	Names []string
	// Use is UseCurrent or UseNext.
	Use string
}

// snapshot is what is served. It is immutable, but for changed, which is closed when the next one takes its place.
type snapshot struct {
	certs   map[string]*certificate // by base domain, and by "*."+base domain
	next    map[string]successor    // by the same names
	keys    []Key
	roots   []byte
	account string
	changed chan struct{}
}

// successor is a certificate that is going to be served, and from when on.
type successor struct {
	*certificate
	at time.Time
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

// set serves cert for name.
func (s *serving) set(name string, cert *certificate) {
	s.update(func(n *snapshot) bool {
		n.certs, n.next = with(n.certs, name, cert), maps.Clone(n.next)
		delete(n.next, name)
		n.keys = keys(n.certs, n.next)
		return true
	})
}

// serves reports whether cert is what is served for name.
func (s *serving) serves(name string, cert *certificate) bool {
	old := s.current.Load().certs[name]
	return old != nil && bytes.Equal(old.Leaf.Raw, cert.Leaf.Raw)
}

// announce tells that cert is to follow what is served for name, and returns for how long it still has to be told before:
// nothing when nothing valid is served, and never beyond the end of what is.
func (s *serving) announce(name string, cert *certificate, lead time.Duration) (wait time.Duration) {
	s.update(func(n *snapshot) bool {
		old := n.certs[name]
		if old == nil {
			return false
		}
		at := time.Now().Add(lead)
		if end := old.Leaf.NotAfter.Add(-switchMargin); end.Before(at) {
			at = end
		}
		told := n.next[name]
		known := told.certificate != nil && bytes.Equal(told.Leaf.Raw, cert.Leaf.Raw)
		if known && told.at.Before(at) {
			at = told.at
		}
		wait = max(0, time.Until(at))
		if known || wait == 0 {
			return false
		}
		n.next = with(n.next, name, successor{cert, at})
		n.keys = keys(n.certs, n.next)
		return true
	})
	return wait
}

// with returns a copy of m with one more entry.
func with[V any](m map[string]V, name string, v V) map[string]V {
	out := make(map[string]V, len(m)+1)
	maps.Copy(out, m)
	out[name] = v
	return out
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

// keys lists the keys in the order of the names they are served for, what is served before what follows it.
func keys(certs map[string]*certificate, next map[string]successor) []Key {
	var out []Key
	for _, name := range slices.Sorted(maps.Keys(certs)) {
		out = append(out, keyOf(certs[name], UseCurrent))
		if n, ok := next[name]; ok {
			out = append(out, keyOf(n.certificate, UseNext))
		}
	}
	return out
}

func keyOf(cert *certificate, use string) Key {
	leaf := cert.Leaf
	return Key{SPKI: leaf.RawSubjectPublicKeyInfo, NotAfter: leaf.NotAfter, Names: leaf.DNSNames, Use: use}
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

// Keys returns the keys that are served now and those that are going to be, a fresh order of fixed elements; empty before the
// first certificate.
func (c *Certs) Keys() []Key { return slices.Clone(c.serving.current.Load().keys) }

// Root returns the certificates, PEM, that verify what the internal issuer signs: one for each base domain. It is nil
// with other issuers and until Run has loaded or made them.
func (c *Certs) Root() []byte { return bytes.Clone(c.serving.current.Load().roots) }

// Account returns the URI of the ACME account, "" with other issuers and until it is registered.
func (c *Certs) Account() string { return c.serving.current.Load().account }
