package certs

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/caddyserver/certmagic"
)

var (
	Backoff         = backoff
	CheckAccountURI = checkAccountURI
	CheckRequest    = checkRequest
	NewStorage      = newStorage
	RenewAt         = renewAt
	ZapLogger       = zapLogger
)

// Doors to the rings of secrets.
type Ring = ring

// ParseRing, and the methods of a ring.
var (
	ParseRing   = parseRing
	AdvanceRing = ring.advance
	OrderRing   = ring.order
	RingDue     = ring.due
)

// Turned is the ring of a day later: its next generation in use.
func Turned(path string, value []byte) (ring, error) {
	kind := secretKind{ticketKeySize, newTicketKey}
	if path != ticketsPath {
		kind = secretKind{echKeySize, newECHKey}
	}
	r, err := parseRing(value, kind.size)
	if err != nil {
		return nil, err
	}
	for i := range r {
		r[i].From = r[i].From.Add(-ringInterval)
	}
	r, _, err = r.advance(time.Now(), kind.fresh)
	return r, err
}

// Where secrets lie.
const (
	TicketsPath = ticketsPath
	ECHPrefix   = echPrefix
)

// NewInDirectory is New over files in dir in place of the store, which cannot run under testing/synctest.
func NewInDirectory(cfg Config, dir string) *Certs {
	return build(cfg.withDefaults(), fileVault{&certmagic.FileStorage{Path: dir}})
}

type fileVault struct{ *certmagic.FileStorage }

func (v fileVault) create(ctx context.Context, key string, value []byte) ([]byte, error) {
	if old, err := v.Load(ctx, key); !errors.Is(err, fs.ErrNotExist) {
		return old, err
	}
	return value, v.Store(ctx, key, value)
}

// watch tells nothing: there is one node.
func (v fileVault) watch(context.Context, func(string)) error { return nil }

// Lookup is GetCertificate by name.
func (c *Certs) Lookup(serverName string) (*certificate, error) { return c.serving.lookup(serverName) }
