package tunnel_test

import (
	"encoding/hex"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"dstack.host/tunnel"
)

const (
	hexA = "1000000000000000000000000000000000000000000000000000000000000041"
	hexB = "2000000000000000000000000000000000000000000000000000000000000041"
)

func wgKey(t testing.TB, s string) (k wgtypes.Key) {
	t.Helper()
	if _, err := hex.Decode(k[:], []byte(s)); err != nil {
		t.Fatal(err)
	}
	return k
}

func cidr(t testing.TB, s string) net.IPNet {
	t.Helper()
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		t.Fatal(err)
	}
	return *n
}

func TestUAPISetSaysEverything(t *testing.T) {
	a, port, mark, alive := wgKey(t, hexA), 51820, 7, 25*time.Second
	got := tunnel.UAPISet(wgtypes.Config{
		PrivateKey: &a, ListenPort: &port, FirewallMark: &mark, ReplacePeers: true,
		Peers: []wgtypes.PeerConfig{
			{PublicKey: wgKey(t, hexB), UpdateOnly: true, Remove: true},
			{PublicKey: wgKey(t, hexA), PresharedKey: &a, Endpoint: &net.UDPAddr{IP: net.ParseIP("2001:db8::1"), Port: 9},
				PersistentKeepaliveInterval: &alive, ReplaceAllowedIPs: true,
				AllowedIPs: []net.IPNet{cidr(t, "10.0.0.2/32"), cidr(t, "fd00::2/128")}},
		},
	})
	want := strings.Join([]string{
		"private_key=" + hexA, "listen_port=51820", "fwmark=7", "replace_peers=true",
		"public_key=" + hexB, "update_only=true", "remove=true",
		"public_key=" + hexA, "preshared_key=" + hexA, "endpoint=[2001:db8::1]:9", "persistent_keepalive_interval=25",
		"replace_allowed_ips=true", "allowed_ip=10.0.0.2/32", "allowed_ip=fd00::2/128", "",
	}, "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := tunnel.UAPISet(wgtypes.Config{}); got != "" {
		t.Errorf("nothing to set: %q", got)
	}
}

func TestParseUAPI(t *testing.T) {
	got, err := tunnel.ParseUAPI(strings.Join([]string{
		"private_key=" + hexA, "listen_port=51820", "fwmark=7", "future=1",
		"public_key=" + hexB, "preshared_key=" + hexA, "protocol_version=1", "endpoint=192.0.2.1:9",
		"last_handshake_time_sec=1700000000", "last_handshake_time_nsec=5", "tx_bytes=1", "rx_bytes=2",
		"persistent_keepalive_interval=25", "allowed_ip=10.0.0.2/32", "allowed_ip=fd00::2/128",
		"public_key=" + hexA, "last_handshake_time_sec=0", "last_handshake_time_nsec=0", "errno=0", "", "ignored",
	}, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	a := wgKey(t, hexA)
	want := &wgtypes.Device{
		Type: wgtypes.Userspace, PrivateKey: a, PublicKey: a.PublicKey(), ListenPort: 51820, FirewallMark: 7,
		Peers: []wgtypes.Peer{
			{PublicKey: wgKey(t, hexB), PresharedKey: a, ProtocolVersion: 1, TransmitBytes: 1, ReceiveBytes: 2,
				Endpoint:          &net.UDPAddr{IP: net.IP{192, 0, 2, 1}, Port: 9},
				LastHandshakeTime: time.Unix(1700000000, 5), PersistentKeepaliveInterval: 25 * time.Second,
				AllowedIPs: []net.IPNet{cidr(t, "10.0.0.2/32"), cidr(t, "fd00::2/128")}},
			{PublicKey: a},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseUAPIRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no equals sign":      "listen_port",
		"short key":           "public_key=00",
		"key not hex":         "public_key=" + strings.Repeat("x", 64),
		"private key short":   "private_key=00",
		"port too large":      "listen_port=65536",
		"port negative":       "listen_port=-1",
		"an error":            "errno=22",
		"endpoint a name":     "public_key=" + hexA + "\nendpoint=localhost:1",
		"seconds too large":   "public_key=" + hexA + "\nlast_handshake_time_sec=9223372036854775808",
		"nanoseconds":         "public_key=" + hexA + "\nlast_handshake_time_nsec=9999999999",
		"allowed IP":          "public_key=" + hexA + "\nallowed_ip=10.0.0.2",
		"keepalive too large": "public_key=" + hexA + "\npersistent_keepalive_interval=65536",
		"octets not a number": "public_key=" + hexA + "\nrx_bytes=0x1",
	} {
		if d, err := tunnel.ParseUAPI(text); err == nil {
			t.Errorf("%s: read as %+v", name, d)
		}
	}
	_, err := tunnel.ParseUAPI("private_key=" + hexA + "00")
	if err == nil || strings.Contains(err.Error(), hexA) {
		t.Errorf("%v: want an error that does not repeat the key", err)
	}
}

func FuzzParseUAPI(f *testing.F) {
	f.Add("private_key=" + hexA + "\nlisten_port=1\npublic_key=" + hexB + "\nendpoint=[::1]:1\nallowed_ip=10.0.0.2/32\nerrno=0\n\n")
	f.Add("public_key=" + hexA + "\nlast_handshake_time_sec=1\nlast_handshake_time_nsec=1\npersistent_keepalive_interval=25\n")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := tunnel.ParseUAPI(text)
		if err != nil {
			return
		}
		// What was read can be written and read again.
		cfg := wgtypes.Config{PrivateKey: &d.PrivateKey, ListenPort: &d.ListenPort, FirewallMark: &d.FirewallMark}
		for i := range d.Peers {
			p := &d.Peers[i]
			cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{
				PublicKey: p.PublicKey, PresharedKey: &p.PresharedKey, Endpoint: p.Endpoint,
				PersistentKeepaliveInterval: &p.PersistentKeepaliveInterval, AllowedIPs: p.AllowedIPs,
			})
		}
		again, err := tunnel.ParseUAPI(tunnel.UAPISet(cfg))
		if err != nil {
			t.Fatal(err)
		}
		if len(again.Peers) != len(d.Peers) || again.ListenPort != d.ListenPort {
			t.Fatalf("%+v became %+v", d, again)
		}
		for i := range d.Peers {
			if !cmp.Equal(again.Peers[i].AllowedIPs, d.Peers[i].AllowedIPs) {
				t.Fatalf("%+v became %+v", d.Peers[i], again.Peers[i])
			}
		}
	})
}
