package e2e

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"dstack.host/gateway/demo"
	"dstack.host/gateway/registry"
	"dstack.host/gateway/store"
	"dstack.host/ratls"
	"dstack.host/tunnel"
)

// kept is a log that can be read while it is written.
type kept struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (k *kept) Write(line []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.text.Write(line)
}

func (k *kept) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.text.String()
}

// reopened gives the store of a demo that has ended, and a registry on it with a pool of its own choice.
func reopened(t *testing.T, dir, pool string, do func(context.Context, *store.Store, *registry.Registry)) {
	t.Helper()
	key, err := store.LoadKey(filepath.Join(dir, "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), store.Config{Key: key, DataDir: dir, Prefix: "/dstack-gateway/", Name: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := tunnel.NewPool(netip.MustParsePrefix(pool))
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.New(registry.Config{Store: s, Pool: addrs})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	do(ctx, s, r)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestRecordsThatCanBeNoPeerKeepNobodyElseOut starts a gateway on a store that holds an instance with the gateway's own
// WireGuard key, and another at the address that the gateway has by now.
func TestRecordsThatCanBeNoPeerKeepNobodyElseOut(t *testing.T) {
	leakless(t)
	dir, own := t.TempDir(), netip.MustParseAddr("10.0.0.1")
	d := start(t, demo.Options{DataDir: dir})
	first := d.Apps()[0]
	stop(t, d)
	attacker := registry.Instance{ID: registry.InstanceID{1}, App: registry.AppID{2}, Compose: registry.ComposeHash{3}, Identity: ratls.IdentityAttestation}
	reopened(t, dir, "10.0.0.1/32", func(ctx context.Context, s *store.Store, r *registry.Registry) {
		entry, err := s.Get(ctx, "node/"+s.Blind("node", []byte("demo"))+"/wireguard")
		if err != nil {
			t.Fatal(err)
		}
		attacker.Key = tunnel.PrivateKey(entry.Value).PublicKey()
		known := registry.Instance{ID: first.Instance, App: first.ID, Compose: registry.ComposeHash{1}, Key: tunnel.NewPrivateKey().PublicKey()}
		if got, _, err := r.Register(ctx, known); err != nil || got.Addr != own {
			t.Fatalf("%s registered at %v: %v", known.ID, got.Addr, err)
		}
	})
	reopened(t, dir, "10.0.0.64/26", func(ctx context.Context, _ *store.Store, r *registry.Registry) {
		if _, _, err := r.Register(ctx, attacker); err != nil {
			t.Fatal(err)
		}
	})
	log := new(kept)
	d = start(t, demo.Options{DataDir: dir, Logger: slog.New(slog.NewTextHandler(log, nil))})
	consistent(t, d, attacker.ID)
	resolves(t, d, attacker.ID.String(), "NXDOMAIN")
	resolves(t, d, attacker.App.String(), "NXDOMAIN")
	if got := d.Gateway().Snapshot().Instance(first.Instance).Addr; got == own {
		t.Errorf("%s still has the gateway's own address", first.Name)
	}
	for _, want := range []string{"have no peer and no name", "is this device's own key"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}
