package certs_test

import (
	"strings"
	"testing"
	"time"

	"dstack.host/gateway/certs"
	"dstack.host/gateway/store"
)

func TestNewTellsEveryFault(t *testing.T) {
	internal := func(change func(*certs.Config)) certs.Config {
		cfg := certs.Config{Domains: []string{"dstack.localhost"}, Issuer: certs.IssuerInternal, Attestor: new(attestor), Storage: new(store.Store)}
		change(&cfg)
		return cfg
	}
	acme := func(change func(*certs.Config)) certs.Config {
		return internal(func(cfg *certs.Config) {
			cfg.Domains, cfg.Issuer, cfg.Challenges = []string{"dstack.example"}, certs.IssuerACME, new(authority)
			change(cfg)
		})
	}
	domain := func(d string) certs.Config { return internal(func(c *certs.Config) { c.Domains = []string{d} }) }
	directory := func(d string) certs.Config { return acme(func(c *certs.Config) { c.Directory = d }) }

	for _, tt := range []struct {
		name string
		cfg  certs.Config
		want []string // substrings of the error, one a fault; none: accepted
	}{
		{"internal", internal(func(*certs.Config) {}), nil},
		{"acme at Let's Encrypt", acme(func(*certs.Config) {}), nil},
		{"acme elsewhere, private name", acme(func(c *certs.Config) {
			c.Directory, c.Domains = "https://ca.example:14000/dir", []string{"dstack.localhost"}
		}), nil},
		{"nothing", certs.Config{}, []string{"domains: none", "storage", "attestor", "issuer"}},
		{"all at once", acme(func(c *certs.Config) {
			c.Domains, c.Storage, c.Directory, c.Email, c.Challenges, c.CAAIdentity =
				[]string{"a"}, nil, "http://x", "nobody", nil, "a;b"
		}), []string{"two labels", "storage", "directory", "email", "challenges", "caa identity"}},
		{"issuer in other case", internal(func(c *certs.Config) { c.Issuer = "ACME" }), []string{"issuer"}},
		{"given twice", internal(func(c *certs.Config) { c.Domains = []string{"a.b", "a.b"} }), []string{"twice"}},
		{"empty domain", domain(""), []string{"two labels"}},
		{"upper case", domain("Dstack.host"), []string{"lower-case"}},
		{"trailing dot", domain("dstack.host."), []string{"empty"}},
		{"leading dot", domain(".dstack.host"), []string{"empty"}},
		{"wildcard", domain("*.dstack.host"), []string{"lower-case"}},
		{"not ASCII", domain("dstäck.host"), []string{"lower-case"}},
		{"path", domain("dstack.host/.."), []string{"lower-case"}},
		{"NUL", domain("dstack\x00.host"), []string{"lower-case"}},
		{"hyphen at the end", domain("dstack-.host"), []string{"hyphen"}},
		{"long label", domain(strings.Repeat("a", 64) + ".host"), []string{"63"}},
		{"long name", domain(strings.Repeat("a.", 119) + "host"), []string{"longer than"}},
		{"lifetime too short", internal(func(c *certs.Config) { c.Lifetime = time.Minute }), []string{"lifetime"}},
		{"lifetime negative", internal(func(c *certs.Config) { c.Lifetime = -time.Hour }), []string{"lifetime"}},
		{"lifetime too long", internal(func(c *certs.Config) { c.Lifetime = 31 * 24 * time.Hour }), []string{"lifetime"}},
		{"private name at Let's Encrypt", acme(func(c *certs.Config) { c.Domains = []string{"dstack.localhost"} }), []string{"private name"}},
		{"plain http", directory("http://acme.example/dir"), []string{"directory"}},
		{"no host", directory("https:///dir"), []string{"directory"}},
		{"user in URL", directory("https://a:b@acme.example/dir"), []string{"directory"}},
		{"no URL", directory("https://acme.example/%zz"), []string{"directory"}},
		{"address with name", acme(func(c *certs.Config) { c.Email = "Ops <ops@dstack.example>" }), []string{"email"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := certs.New(tt.cfg)
			if (err == nil) != (tt.want == nil) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error does not tell %q:\n%v", w, err)
				}
			}
		})
	}
}
