package tunnel_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"dstack.host/tunnel"
)

// model is a WireGuard device as far as peers go: an allowed IP has one owner, whoever got it last.
type model struct {
	peers map[tunnel.PublicKey]tunnel.Peer
	owner map[netip.Addr]tunnel.PublicKey
}

// apply does what the message of c says, and tells if c contradicts the state.
func (m *model) apply(c tunnel.Change) error {
	msg := tunnel.Message(c)
	key := tunnel.PublicKey(msg.PublicKey)
	p, exists := m.peers[key]
	if msg.Remove {
		if !exists || c.Op != tunnel.Remove {
			return fmt.Errorf("%v removes a peer that is not there", c)
		}
		m.release(p)
		delete(m.peers, key)
		return nil
	}
	if exists != msg.UpdateOnly {
		return fmt.Errorf("%v: peer exists %v", c, exists)
	}
	if msg.ReplaceAllowedIPs {
		m.release(p)
	}
	if len(msg.AllowedIPs) > 0 != msg.ReplaceAllowedIPs {
		return fmt.Errorf("%v: replaces %v by %v", c, msg.ReplaceAllowedIPs, msg.AllowedIPs)
	}
	for _, n := range msg.AllowedIPs {
		a, _ := netip.AddrFromSlice(n.IP)
		if old, ok := m.owner[a]; ok && c.Op == tunnel.Add && old != key && m.peers[old].Addr == a {
			return fmt.Errorf("%v takes %v from a peer that still has it", c, a)
		}
		m.owner[a], p.Addr = key, a
	}
	if k := msg.PersistentKeepaliveInterval; k != nil {
		p.Keepalive = *k
	}
	if e := msg.Endpoint; e != nil {
		p.Endpoint = e.AddrPort()
	}
	p.Key = key
	m.peers[key] = p
	return nil
}

func (m *model) release(p tunnel.Peer) {
	if m.owner[p.Addr] == p.Key {
		delete(m.owner, p.Addr)
	}
}

// world returns up to n peers with distinct keys and addresses out of a few, so that lists overlap.
func world(r *rand.Rand, n int) []tunnel.Peer {
	keys, addrs := r.Perm(12), r.Perm(12)
	peers := make([]tunnel.Peer, r.IntN(n+1))
	for i := range peers {
		peers[i] = tunnel.Peer{
			Key:       tunnel.PublicKey{9, byte(keys[i])},
			Addr:      netip.AddrFrom4([4]byte{10, 0, 0, byte(addrs[i])}),
			Keepalive: time.Duration(r.IntN(2)) * 25 * time.Second,
		}
		if r.IntN(2) == 0 {
			peers[i].Endpoint = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(3))}), 51820)
		}
	}
	return peers
}

func TestDiffLeadsFromAnyPeersToAnyOther(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for round := range 5000 {
		current, want := world(r, 10), world(r, 10)
		m := model{map[tunnel.PublicKey]tunnel.Peer{}, map[netip.Addr]tunnel.PublicKey{}}
		for _, p := range current {
			m.peers[p.Key], m.owner[p.Addr] = p, p.Key
		}
		changes := tunnel.Diff(current, want)
		for _, c := range changes {
			if err := m.apply(c); err != nil {
				t.Fatalf("seed %d round %d: %v\ncurrent %v\nwant %v\nchanges %v", seed, round, err, current, want, changes)
			}
		}
		if err := m.equal(want); err != nil {
			t.Fatalf("seed %d round %d: %v\ncurrent %v\nwant %v\nchanges %v", seed, round, err, current, want, changes)
		}
		if again := tunnel.Diff(values(m.peers), want); len(again) != 0 {
			t.Fatalf("seed %d round %d: a second pass changes %v", seed, round, again)
		}
		touched := map[tunnel.PublicKey]bool{}
		for _, c := range changes {
			if touched[c.Key()] {
				t.Fatalf("seed %d round %d: two messages for one peer in %v", seed, round, changes)
			}
			touched[c.Key()] = true
		}
	}
}

func (m *model) equal(want []tunnel.Peer) error {
	if len(m.peers) != len(want) || len(m.owner) != len(want) {
		return fmt.Errorf("%d peers with %d addresses, want %d", len(m.peers), len(m.owner), len(want))
	}
	for _, w := range want {
		p := m.peers[w.Key]
		if !w.Endpoint.IsValid() {
			p.Endpoint = w.Endpoint // learned
		}
		if p != w || m.owner[w.Addr] != w.Key {
			return fmt.Errorf("peer %v is %v", w, p)
		}
	}
	return nil
}

func values(m map[tunnel.PublicKey]tunnel.Peer) (list []tunnel.Peer) {
	for _, p := range m {
		list = append(list, p)
	}
	return list
}

func TestAnUpdateChangesOnlyWhatDiffers(t *testing.T) {
	was := tunnel.Peer{Key: tunnel.PublicKey{9}, Addr: netip.MustParseAddr("10.0.0.2")}
	now := was
	now.Keepalive = 25 * time.Second
	m := tunnel.Message(tunnel.Change{Op: tunnel.Update, Was: was, Peer: now})
	if m.ReplaceAllowedIPs || m.AllowedIPs != nil || m.Endpoint != nil || !m.UpdateOnly || m.PersistentKeepaliveInterval == nil {
		t.Errorf("message %+v", m)
	}
}

func TestReconcileSendsOneMessageForAChangedPeer(t *testing.T) {
	gw := openGateway(t)
	var sent int
	peers := randomPeers(3)
	reconcile(t, gw, peers...)
	gw.CountMessages(&sent)
	reconcile(t, gw, peers...)
	if sent != 0 {
		t.Errorf("%d messages for no change", sent)
	}
	peers[1].Keepalive = 25 * time.Second
	reconcile(t, gw, peers...)
	if sent != 1 {
		t.Errorf("%d messages for one change", sent)
	}
}

// randomPeers returns n peers of 10.0.0.0/8 from 10.0.0.2 on. Their keys belong to nobody.
func randomPeers(n int) []tunnel.Peer {
	peers := make([]tunnel.Peer, n)
	for i := range peers {
		a := i + 2
		peers[i] = tunnel.Peer{
			Key:  tunnel.NewPrivateKey().PublicKey(),
			Addr: netip.AddrFrom4([4]byte{10, byte(a >> 16), byte(a >> 8), byte(a)}),
		}
	}
	return peers
}

func TestReconcileLeavesOutWhatCannotBe(t *testing.T) {
	gw := openGateway(t)
	good := randomPeers(2)
	addr := netip.MustParseAddr
	bad := map[string]tunnel.Peer{
		"key given twice":       {Key: good[0].Key, Addr: addr("10.0.0.9")},
		"address 10.0.0.2":      {Key: tunnel.NewPrivateKey().PublicKey(), Addr: good[0].Addr},
		"device's own key":      {Key: gw.PublicKey(), Addr: addr("10.0.0.9")},
		"device's own address":  {Key: tunnel.NewPrivateKey().PublicKey(), Addr: addr("10.0.0.1")},
		"small order":           {Key: tunnel.PublicKey{1}, Addr: addr("10.0.0.9")},
		"canonical":             {Key: tunnel.PublicKey{31: 0xff}, Addr: addr("10.0.0.9")},
		"address invalid IP":    {Key: tunnel.NewPrivateKey().PublicKey()},
		"127.0.0.1":             {Key: tunnel.NewPrivateKey().PublicKey(), Addr: addr("127.0.0.1")},
		"255.255.255.255":       {Key: tunnel.NewPrivateKey().PublicKey(), Addr: addr("255.255.255.255")},
		"IPv6 form":             {Key: tunnel.NewPrivateKey().PublicKey(), Addr: addr("::ffff:10.0.0.9")},
		"zone":                  {Key: tunnel.NewPrivateKey().PublicKey(), Addr: addr("fe80::1%x")},
		"keepalive -1":          {Key: tunnel.NewPrivateKey().PublicKey(), Addr: addr("10.0.0.9"), Keepalive: -1},
		"keepalive 18h12m16s":   {Key: tunnel.NewPrivateKey().PublicKey(), Addr: addr("10.0.0.9"), Keepalive: 65536 * time.Second},
		"keepalive 1.5s":        {Key: tunnel.NewPrivateKey().PublicKey(), Addr: addr("10.0.0.9"), Keepalive: 1500 * time.Millisecond},
		"endpoint 192.0.2.1:0":  {Key: tunnel.NewPrivateKey().PublicKey(), Addr: addr("10.0.0.9"), Endpoint: netip.MustParseAddrPort("192.0.2.1:0")},
		"endpoint 0.0.0.0:5182": {Key: tunnel.NewPrivateKey().PublicKey(), Addr: addr("10.0.0.9"), Endpoint: netip.MustParseAddrPort("0.0.0.0:5182")},
	}
	for want, p := range bad {
		err := gw.Reconcile(t.Context(), []tunnel.Peer{good[0], p, good[1]})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
		checkPeersOrFaults(t, gw, want, good)
		if gw.Has(p.Key, p.Addr) || !gw.Has(good[0].Key, good[0].Addr) || gw.Has(good[0].Key, good[1].Addr) {
			t.Errorf("%s: Has tells something else than the device", want)
		}
	}
}

// checkPeersOrFaults wants exactly the good peers on the device.
func checkPeersOrFaults(t *testing.T, tun *tunnel.Tunnel, name string, want []tunnel.Peer) {
	t.Helper()
	d, err := tun.RawDevice()
	if err != nil {
		t.Fatal(err)
	}
	if got := tun.Peers(); len(got) != len(want) || len(d.Peers) != len(want) || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%s: peers %v and %d on the device, want %v", name, got, len(d.Peers), want)
	}
}

func TestPollPutsRightWhatSomebodyElseChanged(t *testing.T) {
	gw := openGateway(t)
	want := randomPeers(3)
	reconcile(t, gw, want...)
	foreign := wgtypes.Key(tunnel.NewPrivateKey().PublicKey())
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	err := gw.Configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{
		{PublicKey: foreign, AllowedIPs: []net.IPNet{*all}},
		{PublicKey: wgtypes.Key(want[0].Key), Remove: true},
		{PublicKey: wgtypes.Key(want[1].Key), ReplaceAllowedIPs: true},
		{PublicKey: wgtypes.Key(want[2].Key), AllowedIPs: []net.IPNet{*all}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := gw.Poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkPeers(t, gw, want)
	d, err := gw.RawDevice()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Peers {
		if len(p.AllowedIPs) != 1 || p.PublicKey == foreign {
			t.Errorf("peer %v has %v", p.PublicKey, p.AllowedIPs)
		}
	}
}

func TestReconcileReadsTheDeviceAgainAfterAFailure(t *testing.T) {
	gw := openGateway(t)
	want := randomPeers(3)
	gw.FailOn(want[1].Key, os.ErrDeadlineExceeded)
	if err := gw.Reconcile(t.Context(), want); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if n := len(gw.Peers()); n != 2 {
		t.Errorf("%d peers, want the two others", n)
	}
	gw.FailOn(tunnel.PublicKey{}, nil)
	reconcile(t, gw, want...)
	checkPeers(t, gw, want)
}
