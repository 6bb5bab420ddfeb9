package certs

import (
	"context"
	"errors"
	"io/fs"

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
