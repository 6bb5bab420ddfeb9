package tunnel_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/conn"

	"dstack.host/tunnel"
)

func TestBindMovesBatches(t *testing.T) {
	for _, s := range []string{"127.0.0.1", "::1"} {
		addr := netip.MustParseAddr(s)
		a, b := tunnel.NewBind(addr), tunnel.NewBind(addr)
		_, portA, err := a.Open(0)
		if err != nil {
			t.Skipf("listen on %s: %v", s, err)
		}
		defer a.Close()
		receive, portB, err := b.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if _, _, err := b.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
			t.Errorf("open twice: %v", err)
		}
		to, err := a.ParseEndpoint(netip.AddrPortFrom(addr, portB).String())
		if err != nil {
			t.Fatal(err)
		}
		const n = 40 // more than one batch
		var sent [][]byte
		for i := range n {
			sent = append(sent, []byte{byte(i), 1, 2, 3})
		}
		if err := a.Send(sent, to); err != nil {
			t.Fatal(err)
		}
		bufs, sizes, eps := make([][]byte, b.BatchSize()), make([]int, b.BatchSize()), make([]conn.Endpoint, b.BatchSize())
		for i := range bufs {
			bufs[i] = make([]byte, 64)
		}
		for got := 0; got < n; {
			k, err := receive[0](bufs, sizes, eps)
			if err != nil {
				t.Fatal(err)
			}
			for i := range k {
				want := netip.AddrPortFrom(addr, portA).String()
				if sizes[i] != 4 || bufs[i][0] != byte(got) || eps[i].DstToString() != want {
					t.Fatalf("datagram %d: %x of %d octets from %s, want from %s", got, bufs[i][0], sizes[i], eps[i].DstToString(), want)
				}
				got++
			}
		}
		if err := errors.Join(b.Close(), b.Close()); err != nil {
			t.Error(err)
		}
		if _, err := receive[0](bufs, sizes, eps); !errors.Is(err, net.ErrClosed) {
			t.Errorf("receive after close: %v, want net.ErrClosed", err)
		}
		if err := b.Send(sent, to); !errors.Is(err, net.ErrClosed) {
			t.Errorf("send after close: %v, want net.ErrClosed", err)
		}
	}
}

func TestBindRefuses(t *testing.T) {
	b := tunnel.NewBind(netip.MustParseAddr("127.0.0.1"))
	if _, _, err := b.Open(0); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	six, err := b.ParseEndpoint("[::1]:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Send([][]byte{{1}}, six); err == nil {
		t.Error("sent to the other address family")
	}
	if err := b.Send([][]byte{{1}}, &conn.StdNetEndpoint{}); !errors.Is(err, conn.ErrWrongEndpointType) {
		t.Errorf("an endpoint of another bind: %v", err)
	}
	if err := b.SetMark(1); err == nil {
		t.Error("a mark was accepted")
	}
	for _, s := range []string{"", "localhost:1", "127.0.0.1", "127.0.0.1:x"} {
		if e, err := b.ParseEndpoint(s); err == nil {
			t.Errorf("%q: endpoint %v", s, e)
		}
	}
	mapped, err := b.ParseEndpoint("[::ffff:127.0.0.1]:1")
	if err != nil || mapped.DstToString() != "127.0.0.1:1" {
		t.Errorf("%v, %v: want the IPv4 form", mapped, err)
	}
}
