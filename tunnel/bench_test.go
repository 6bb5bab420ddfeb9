package tunnel_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"dstack.host/tunnel"
)

// BenchmarkReconcile adds one peer to many and takes it away again.
func BenchmarkReconcile(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprintf("%d peers", n), func(b *testing.B) {
			tun := open(b, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.1/8")})
			peers := randomPeers(n + 1)
			reconcile(b, tun, peers[:n]...)
			b.ReportAllocs()
			add := true
			for b.Loop() {
				want := peers[:n]
				if add {
					want = peers
				}
				add = !add
				if err := tun.Reconcile(b.Context(), want); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDiff is the pure part of BenchmarkReconcile.
func BenchmarkDiff(b *testing.B) {
	peers := randomPeers(10001)
	b.ReportAllocs()
	for b.Loop() {
		if len(tunnel.Diff(peers[:10000], peers)) != 1 {
			b.Fatal("not one change")
		}
	}
}

// BenchmarkPoll reads a device with many peers.
func BenchmarkPoll(b *testing.B) {
	tun := open(b, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.1/8")})
	reconcile(b, tun, randomPeers(10000)...)
	b.ReportAllocs()
	for b.Loop() {
		if err := tun.Poll(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHandshake(b *testing.B) {
	tun := open(b, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.1/8")})
	key := tunnel.NewPrivateKey().PublicKey()
	b.ReportAllocs()
	for b.Loop() {
		tun.Handshake(key)
	}
}

// pair is a gateway and a CVM that echoes at port 80.
func pair(b *testing.B) *tunnel.Tunnel {
	gw, cvm := openGateway(b), openCVM(b, "10.0.0.2")
	reconcile(b, gw, peer(cvm))
	connect(b, cvm, gw)
	serveEcho(b, cvm, 80, "")
	return gw
}

func BenchmarkNetstackDial(b *testing.B) {
	gw := pair(b)
	for b.Loop() {
		c, err := gw.DialContext(b.Context(), "tcp", "10.0.0.2:80")
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

func BenchmarkNetstackBulk(b *testing.B) {
	gw := pair(b)
	c, err := gw.DialContext(b.Context(), "tcp", "10.0.0.2:80")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	out, in := make([]byte, 64<<10), make([]byte, 64<<10)
	b.SetBytes(2 * int64(len(out)))
	for b.Loop() {
		if err := roundTrip(c, out, in); err != nil {
			b.Fatal(err)
		}
	}
}

func roundTrip(c net.Conn, out, in []byte) error {
	if _, err := c.Write(out); err != nil {
		return err
	}
	_, err := io.ReadFull(c, in)
	return err
}

func TestHandshakeDoesNotAllocate(t *testing.T) {
	tun := openGateway(t)
	key := tunnel.NewPrivateKey().PublicKey()
	if n := testing.AllocsPerRun(100, func() { tun.Handshake(key) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
