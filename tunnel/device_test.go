package tunnel_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"dstack.host/tunnel"
)

func TestOpenReportsAllFaults(t *testing.T) {
	_, err := tunnel.Open(tunnel.Config{
		Device: "wintun", Name: "far-too-long-a-name", Listen: netip.MustParseAddrPort("224.0.0.1:1"), MTU: 100,
		HandshakeInterval: -1,
	})
	for _, want := range []string{"device", "name", "private key", "address", "listen", "mtu", "handshake interval"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v: does not speak of %q", err, want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, change := range map[string]func(*tunnel.Config){
		"a name with a slash":      func(c *tunnel.Config) { c.Name = "../x" },
		"a name with a pattern":    func(c *tunnel.Config) { c.Name = "wg%d" },
		"a hidden name":            func(c *tunnel.Config) { c.Name = ".." },
		"an unspecified address":   func(c *tunnel.Config) { c.Address = netip.MustParsePrefix("0.0.0.0/0") },
		"a loopback address":       func(c *tunnel.Config) { c.Address = netip.MustParsePrefix("127.0.0.1/8") },
		"a mapped address":         func(c *tunnel.Config) { c.Address = netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.1"), 120) },
		"a huge MTU":               func(c *tunnel.Config) { c.MTU = 65536 },
		"an address not ours":      func(c *tunnel.Config) { c.Listen = netip.MustParseAddrPort("192.0.2.1:0") },
		"a device in another case": func(c *tunnel.Config) { c.Device = "TUN" },
	} {
		cfg := tunnel.Config{
			Device: "netstack", PrivateKey: tunnel.NewPrivateKey(), Address: netip.MustParsePrefix("10.0.0.1/24"), Listen: loopback,
		}
		change(&cfg)
		if tun, err := tunnel.Open(cfg); err == nil {
			tun.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

func TestATakenPortIsTold(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
		first := open(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.1/24"), Listen: netip.MustParseAddrPort(listen)})
		if first.ListenAddr().Port() == 0 || first.ListenAddr().Addr() != netip.MustParseAddrPort(listen).Addr() {
			t.Errorf("listens on %v", first.ListenAddr())
		}
		_, err := tunnel.Open(tunnel.Config{
			Device: "netstack", PrivateKey: tunnel.NewPrivateKey(), Address: netip.MustParsePrefix("10.0.0.1/24"),
			Listen: first.ListenAddr(),
		})
		port := fmt.Sprintf("udp port %d", first.ListenAddr().Port())
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), port) {
			t.Errorf("%v: want EADDRINUSE and %q", err, port)
		}
	}
}

func TestTheListenAddressIsKept(t *testing.T) {
	tun := open(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.1/24"), Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	// The same port of another address is free: the tunnel has not taken it.
	other := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), tun.ListenAddr().Port())
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(other))
	if err != nil {
		t.Fatalf("%v: the tunnel listens on more than its address", err)
	}
	c.Close()
}

func TestAutoSaysWhyItChose(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("as root this would create an interface of this host; the tests of the TUN do it in a namespace")
	}
	tun := open(t, tunnel.Config{Device: "auto", Address: netip.MustParsePrefix("10.0.0.1/24")})
	for _, want := range []string{"netstack (", "kernel: ", "tun: "} {
		if !strings.Contains(tun.Device(), want) {
			t.Errorf("device %q: does not say %q", tun.Device(), want)
		}
	}
}

func TestListenIsForTheInsideOnly(t *testing.T) {
	cvm := openCVM(t, "10.0.0.2")
	for _, a := range []string{"127.0.0.1:80", "10.0.0.3:80", "[::1]:80"} {
		if l, err := cvm.Listen(netip.MustParseAddrPort(a)); err == nil {
			l.Close()
			t.Errorf("%s: listens", a)
		}
	}
	l, err := cvm.Listen(netip.MustParseAddrPort("0.0.0.0:80"))
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Addr().String(); got != "10.0.0.2:80" {
		t.Errorf("listens on %s", got)
	}
	if _, err := cvm.Listen(netip.MustParseAddrPort("10.0.0.2:80")); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the same port again: %v, want EADDRINUSE", err)
	}
	done := make(chan error)
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v, want net.ErrClosed", err)
	}
}

func TestCloseWithOpenConnections(t *testing.T) {
	gw, cvm := openGateway(t), openCVM(t, "10.0.0.2")
	reconcile(t, gw, peer(cvm))
	connect(t, cvm, gw)
	serveEcho(t, cvm, 80, "")
	c, err := gw.DialContext(t.Context(), "tcp", "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	read := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	if err := errors.Join(gw.Close(), gw.Close()); err != nil {
		t.Error(err)
	}
	if err := <-read; err == nil {
		t.Error("a read of a connection through a closed tunnel succeeded")
	}
	if _, err := gw.DialContext(t.Context(), "tcp", "10.0.0.2:80"); err == nil {
		t.Error("dialed through a closed tunnel")
	}
}
