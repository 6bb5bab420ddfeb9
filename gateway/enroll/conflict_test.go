package enroll_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/netip"
	"testing"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/registry"
	"dstack.host/gateway/store"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
)

// TestIdsOfOthers registers what the KMS, or a measured log, says is an instance of one app under the ids of another.
func TestIdsOfOthers(t *testing.T) {
	w := newWorld(t)
	resident := w.resident(t)
	theirs, mine := fromKMS(t, resident), fromKMS(t, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	change := func(f func(info *ratls.AppInfo)) ratls.AppInfo {
		info := mine
		f(&info)
		return info
	}
	for name, info := range map[string]ratls.AppInfo{
		"instance id of another app's instance": change(func(i *ratls.AppInfo) { i.InstanceID = theirs.InstanceID }),
		"instance id that is another app's id":  change(func(i *ratls.AppInfo) { i.InstanceID = theirs.AppID }),
		"app id that is another's instance id":  change(func(i *ratls.AppInfo) { i.AppID = theirs.InstanceID }),
	} {
		t.Run(name, func(t *testing.T) {
			w.unchanged(t, func() answer { return register(t, w.at, w.kms.guest(t, info), body(newKey())) }, http.StatusBadRequest, "under another app")
		})
	}
	t.Run("app id of zeros", func(t *testing.T) {
		info := change(func(i *ratls.AppInfo) { i.AppID = make([]byte, 20) })
		w.unchanged(t, func() answer { return register(t, w.at, w.kms.guest(t, info), body(newKey())) }, http.StatusBadRequest, "no app id")
	})
	t.Run("measured by an app of the same instance seed", func(t *testing.T) {
		// The instance id is a hash over the app id: another app gets another instance.
		td := w.boot(t, simtdx.VM{AppCompose: `{"name":"resident"}`, AppID: mine.AppID})
		key := w.registry.Snapshot().Instance(idOf(t, resident).ID).Key
		w.unchanged(t, func() answer { return register(t, w.at, attested(t, td), body(key)) }, http.StatusBadRequest, "WireGuard key is used by another instance")
	})
}

// exhausted is a pool without a free address.
type exhausted struct{ registry.Pool }

func (exhausted) Allocate(func(netip.Addr) bool) (netip.Addr, error) {
	return netip.Addr{}, errors.New("all addresses are in use")
}
func (exhausted) Contains(netip.Addr) bool { return true }

func TestWhatIsOursToBlameIs503(t *testing.T) {
	w := newWorld(t)
	w.resident(t)
	cert := attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	full := w.newRegistry(t, exhausted{})
	fails := func(err error) func(context.Context, registry.Instance) (registry.Instance, bool, error) {
		return func(context.Context, registry.Instance) (registry.Instance, bool, error) {
			return registry.Instance{}, false, err
		}
	}
	for _, test := range []struct {
		name     string
		register func(context.Context, registry.Instance) (registry.Instance, bool, error)
		text     string
	}{
		{"no address", full.Register, "no address is free"},
		{"etcd away", fails(store.ErrUnavailable), "etcd is unavailable"},
		{"stored record not authentic", fails(store.ErrTampered), "not authentic"},
		{"something unknown", fails(errors.New("disk on fire")), "disk on fire"},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := w.serve(t, func(c *enroll.Config) { c.Register = test.register })
			w.unchanged(t, func() answer { return register(t, at, cert, body(newKey())) }, http.StatusServiceUnavailable, test.text)
		})
	}
}

// TestWithoutEtcd holds what goes on when the store is closed under the registry: known instances refresh, new ones wait.
func TestWithoutEtcd(t *testing.T) {
	w := newWorld(t)
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	cert := attested(t, td)
	first := register(t, w.at, cert, body(key))
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	if a := register(t, w.at, cert, body(key)); a.status != http.StatusOK || a.body != first.body {
		t.Errorf("refresh: %d %s", a.status, a.body)
	}
	for name, a := range map[string]answer{
		"new key":      register(t, w.at, cert, body(newKey())),
		"new instance": register(t, w.at, attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"})), body(newKey())),
	} {
		if a.status != http.StatusServiceUnavailable {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if n := w.registry.Snapshot().Len(); n != 1 || w.registry.Snapshot().Instance(idOf(t, td).ID).Key != key {
		t.Errorf("%d instances", n)
	}
}

// TestTheKeyOfAGatewayIsRefused registers what every answer tells everybody: no tunnel takes a peer with its own key.
func TestTheKeyOfAGatewayIsRefused(t *testing.T) {
	w := newWorld(t)
	w.resident(t)
	other := newKey()
	at := w.serve(t, func(c *enroll.Config) {
		c.Nodes = func() []enroll.Node {
			return []enroll.Node{{Server: c.Servers[0]}, {Server: enroll.TunnelServer{Key: other}}}
		}
	})
	td := w.boot(t, simtdx.VM{AppCompose: "{}"})
	guest := attested(t, td)
	for name, row := range map[string]struct {
		at   netip.AddrPort
		cert tls.Certificate
		key  tunnel.PublicKey
	}{
		"of this node":                {w.at, guest, gatewayKey},
		"of this node, told as such":  {at, guest, gatewayKey},
		"of another node":             {at, guest, other},
		"by an app of the KMS":        {w.at, w.kms.guest(t, fromKMS(t, td)), gatewayKey},
		"of another node, by the KMS": {at, w.kms.guest(t, fromKMS(t, td)), other},
	} {
		t.Run(name, func(t *testing.T) {
			w.unchanged(t, func() answer { return register(t, row.at, row.cert, body(row.key)) }, http.StatusBadRequest, "is the key of a gateway")
		})
	}
}
