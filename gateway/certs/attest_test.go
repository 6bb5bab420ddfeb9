package certs_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dstack.host/gateway/certs"
)

var errNoTEE = errors.New("the TEE does not answer")

func TestNoCertificateIsRequestedForAKeyThatIsNotAttested(t *testing.T) {
	dns := newAuthority(t, "dstack.example")
	pebble := newPebble(t, dns)
	cfg, logs, tee := acmeConfig(t, pebble, dns), newLogs(), new(attestor)
	tee.fail(errNoTEE)
	cfg.Attestor, cfg.Logger = tee, logs.logger
	c, stop := start(t, cfg)
	logs.await(t, errNoTEE.Error())
	if _, err := c.Lookup("dstack.example"); !errors.Is(err, certs.ErrNotReady) {
		t.Errorf("served: %v", err)
	}
	stop()
	if n := pebble.Orders(); n != 0 {
		t.Errorf("%d orders", n)
	}
	if !logs.contains("level=ERROR") {
		t.Errorf("not loud:\n%s", logs)
	}

	tee.fail(nil)
	c, _ = start(t, cfg)
	await(t, "certificates", c.Ready())
	for _, k := range c.Keys() {
		if !tee.has(string(k.SPKI)) {
			t.Errorf("%v: the key that serves is not attested", k.Names)
		}
	}
	if !tee.has(c.Account()) {
		t.Errorf("account %s is not attested", c.Account())
	}
}

func TestAStoredCertificateServesOnlyOnceItsKeyIsAttested(t *testing.T) {
	logs, tee := newLogs(), new(attestor)
	cfg := certs.Config{Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: tee, Storage: openStore(t, t.TempDir()), Logger: logs.logger}
	c, stop := start(t, cfg)
	await(t, "certificates", c.Ready())
	keys := c.Keys()
	stop()

	tee.fail(errNoTEE)
	c, stop = start(t, cfg)
	logs.await(t, "so it does not serve: "+errNoTEE.Error())
	if len(c.Keys()) != 0 {
		t.Errorf("told or served: %v", c.Keys())
	}
	stop()
	tee.fail(nil)
	c, _ = start(t, cfg)
	await(t, "certificates", c.Ready())
	if !bytes.Equal(keys[0].SPKI, c.Keys()[0].SPKI) {
		t.Error("another key serves")
	}
}

// uses returns the uses of the keys of c.
func uses(c *certs.Certs) (all []string) {
	for _, k := range c.Keys() {
		all = append(all, k.Use)
	}
	return all
}

func TestARenewedKeyIsToldBeforeItServes(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const lead = 5 * time.Minute
		tee := new(attestor)
		c := certs.NewInDirectory(certs.Config{
			Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: tee, Lead: lead, Lifetime: 12 * time.Hour,
		}, dir)
		stop := run(t, c)
		await(t, "certificates", c.Ready())
		first := c.Keys()

		// While nothing can be quoted, the old keys go on serving and no new one is told.
		tee.fail(errNoTEE)
		time.Sleep(time.Until(certs.RenewAt(leaf(t, c, "dstack.host"))) + time.Hour)
		if got := c.Keys(); len(got) != 2 || !bytes.Equal(got[0].SPKI, first[0].SPKI) {
			t.Fatalf("keys %v", got)
		}
		tee.fail(nil)
		for changed := c.Changed(); len(c.Keys()) < 3; changed = c.Changed() {
			<-changed
		}
		at := slices.Index(uses(c), certs.UseNext)
		if at < 1 || uses(c)[at-1] != certs.UseCurrent {
			t.Fatalf("uses %v, want next after current", uses(c))
		}
		next := c.Keys()[at]
		host := strings.Replace(next.Names[0], "*", "app", 1)
		if got := leaf(t, c, host); bytes.Equal(got.RawSubjectPublicKeyInfo, next.SPKI) {
			t.Error("the next key serves already")
		}
		time.Sleep(lead)
		synctest.Wait()
		if got := leaf(t, c, host); !bytes.Equal(got.RawSubjectPublicKeyInfo, next.SPKI) {
			t.Error("another key than the one that was told serves")
		}
		stop()
	})
}

// A certificate that is near its end is not waited for.
func TestARenewedKeyServesBeforeTheOldCertificateEnds(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		tee := new(attestor)
		c := certs.NewInDirectory(certs.Config{
			Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: tee, Lead: 24 * time.Hour, Lifetime: 12 * time.Hour,
		}, dir)
		stop := run(t, c)
		await(t, "certificates", c.Ready())
		old := leaf(t, c, "dstack.host")
		time.Sleep(time.Until(old.NotAfter) - 30*time.Second)
		if got := leaf(t, c, "dstack.host"); bytes.Equal(got.Raw, old.Raw) {
			t.Error("the old certificate serves to its end")
		}
		stop()
	})
}

// What one node renews, the others tell and serve without being asked.
func TestNodesSwitchTogether(t *testing.T) {
	cfg := certs.Config{Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: new(attestor), Lead: time.Hour, Storage: openStore(t, t.TempDir())}
	one, _ := start(t, cfg)
	await(t, "certificates", one.Ready())
	storage := certs.NewStorage(cfg.Storage)

	// Another gateway, elsewhere, has renewed.
	elsewhere := cfg
	elsewhere.Storage = openStore(t, t.TempDir())
	other, _ := start(t, elsewhere)
	await(t, "certificates", other.Ready())
	for _, end := range []string{".key", ".crt"} {
		key := "certificates/internal/dstack.host/dstack.host" + end
		value, err := certs.NewStorage(elsewhere.Storage).Load(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if err := storage.Store(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, one, "the other's key told", func() bool {
		return slices.ContainsFunc(one.Keys(), func(k certs.Key) bool {
			return k.Use == certs.UseNext && bytes.Equal(k.SPKI, leaf(t, other, "dstack.host").RawSubjectPublicKeyInfo)
		})
	})
}
