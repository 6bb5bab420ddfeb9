package tunnel_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"dstack.host/tunnel"
)

const uapiDir = "/var/run/wireguard"

// inNamespace reports whether this process is the child that runs the test of t's name in namespaces of its own, where
// it may create interfaces and sockets that nobody else sees. In the parent it runs that child, or skips.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(namespaceEnv) == t.Name() {
		prepareNamespace(t)
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to create network interfaces in a namespace")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), namespaceEnv+"="+t.Name(), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		t.Fatalf("in the namespace:\n%s", out)
	case err != nil:
		t.Skipf("create namespaces: %v", err)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("in the namespace:\n%s", out)
	}
	return false
}

// prepareNamespace brings loopback up and hides the host's UAPI sockets.
func prepareNamespace(t *testing.T) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Skipf("loopback: %v", err)
	}
	if err := errors.Join(
		os.MkdirAll(uapiDir, 0o755),
		syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""),
		syscall.Mount("tmpfs", uapiDir, "tmpfs", 0, ""),
	); err != nil {
		t.Skipf("mount: %v", err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { goleak.VerifyNone(t) })
}

func TestTUNCarriesTCP(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	gw := open(t, tunnel.Config{Device: "tun", Name: "wgtest0", Address: netip.MustParsePrefix("10.0.0.1/24")})
	cvm := openCVM(t, "10.0.0.2")
	reconcile(t, gw, peer(cvm))
	connect(t, cvm, gw)
	serveEcho(t, cvm, 8080, "app:")
	big := strings.Repeat("0123456789abcdef", 1<<16)
	if got, err := exchange(t.Context(), gw, "10.0.0.2:8080", big); err != nil || got != "app:"+big {
		t.Fatalf("%d octets, %v; want %d", len(got), err, len(big)+4)
	}
	waitHandshake(t, gw, cvm.PublicKey())
	if _, err := exchange(t.Context(), gw, "10.0.0.2:9", ""); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed port: %v, want ECONNREFUSED", err)
	}

	// The gateway's own services are out of reach of its peers, on its tunnel address and on any other.
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	to := netip.AddrPortFrom(gw.Address().Addr(), l.Addr().(*net.TCPAddr).AddrPort().Port())
	if got, err := exchange(ctx, cvm, to.String(), "hi"); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a CVM dialing a service of the gateway: %q, %v; want silence", got, err)
	}
}

// TestTUNCarriesASecondAddress needs the interface's own address of IPv6, and a dial from it.
func TestTUNCarriesASecondAddress(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	gw := open(t, tunnel.Config{Device: "tun", Name: "wgtest0", Address: netip.MustParsePrefix("10.0.0.1/24"), Address6: netip.MustParsePrefix("fd12::1/64")})
	second := netip.MustParseAddr("fd12::a00:2")
	cvm := open(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.2/32"), Address6: netip.PrefixFrom(second, 128), Inbound: true})
	both, toGateway := peer(cvm), reachable(gw)
	both.Addr6, toGateway.Addr6 = second, netip.MustParseAddr("fd12::1")
	reconcile(t, gw, both)
	reconcile(t, cvm, toGateway)
	serveEchoAt(t, cvm, netip.AddrPortFrom(second, 80), "six:")
	if got, err := exchange(t.Context(), gw, "[fd12::a00:2]:80", "x"); err != nil || got != "six:x" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestTUNTakesConnectionsOfACVM(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	gw := openGateway(t)
	cvm := open(t, tunnel.Config{Device: "tun", Address: netip.MustParsePrefix("10.0.0.2/32"), Inbound: true})
	reconcile(t, gw, peer(cvm))
	connect(t, cvm, gw) // which is outside of the prefix: it needs a route of its own
	serveEcho(t, cvm, 8080, "app:")
	if got, err := exchange(t.Context(), gw, "10.0.0.2:8080", "hi"); err != nil || got != "app:hi" {
		t.Errorf("%q, %v", got, err)
	}
	routes := func() (n int) {
		list, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			if r.Dst != nil && r.Dst.String() == "10.0.0.1/32" {
				n++
			}
		}
		return n
	}
	if n := routes(); n != 1 {
		t.Errorf("%d routes to the gateway, want 1", n)
	}
	reconcile(t, cvm)
	if n := routes(); n != 0 {
		t.Errorf("%d routes to a peer that is gone", n)
	}
}

func TestTUNIsReachedByWGCtrl(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	gw := open(t, tunnel.Config{Device: "tun", Name: "wgtest0", Address: netip.MustParsePrefix("10.0.0.1/24"), MTU: 1380})
	want := randomPeers(3)
	reconcile(t, gw, want...)
	client, err := wgctrl.New()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	d, err := client.Device("wgtest0")
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Peers) != 3 || d.PublicKey != wgtypes.Key(gw.PublicKey()) || d.ListenPort != int(gw.ListenAddr().Port()) {
		t.Errorf("device %v with %d peers on port %d", d.PublicKey, len(d.Peers), d.ListenPort)
	}
	l, err := netlink.LinkByName("wgtest0")
	if err != nil {
		t.Fatal(err)
	}
	if l.Attrs().MTU != 1380 || l.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("interface %+v", l.Attrs())
	}
	// A change by somebody else is put right.
	key := wgtypes.Key(want[0].Key)
	if err := client.ConfigureDevice("wgtest0", wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: key, Remove: true}}}); err != nil {
		t.Fatal(err)
	}
	checkPeers(t, gw, want)

	// A second one of the same name is refused, and takes nothing of the first with it.
	if second, err := tunnel.Open(tunnel.Config{
		Device: "tun", Name: "wgtest0", PrivateKey: tunnel.NewPrivateKey(), Address: netip.MustParsePrefix("10.0.1.1/24"),
	}); err == nil {
		second.Close()
		t.Error("opened twice")
	}
	checkPeers(t, gw, want)

	// A connection to the socket that stays open does not keep Close.
	c, err := net.Dial("unix", filepath.Join(uapiDir, "wgtest0.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := gw.Close(); err != nil {
		t.Error(err)
	}
	c.SetDeadline(time.Now().Add(deadline))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the socket of a closed device: %v, want its end", err)
	}
	if _, err := netlink.LinkByName("wgtest0"); err == nil {
		t.Error("the interface is still there")
	}
	if _, err := os.Stat(filepath.Join(uapiDir, "wgtest0.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestTUNTellsATakenPort(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
		first := open(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.1/24"), Listen: netip.MustParseAddrPort(listen)})
		_, err := tunnel.Open(tunnel.Config{
			Device: "tun", PrivateKey: tunnel.NewPrivateKey(), Address: netip.MustParsePrefix("10.0.0.1/24"),
			Listen: first.ListenAddr(),
		})
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("got %v, want EADDRINUSE", err)
		}
		if _, err := netlink.LinkByName(tunnel.DefaultName); err == nil {
			t.Error("the interface is still there")
		}
	}
}

func TestAutoTakesTheBestDevice(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	tun := open(t, tunnel.Config{Device: "auto", Address: netip.MustParsePrefix("10.0.0.1/24")})
	t.Log(tun.Device())
	if got := tun.Device(); !strings.HasPrefix(got, "kernel (the best") && !strings.HasPrefix(got, "tun (kernel: not available") {
		t.Errorf("device %q", got)
	}
}

func TestKernelCarriesTCP(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	probe := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "wgprobe"}}
	if err := netlink.LinkAdd(probe); err != nil {
		t.Skipf("the kernel has no WireGuard: %v", err)
	}
	if err := netlink.LinkDel(probe); err != nil {
		t.Fatal(err)
	}
	cfg := tunnel.Config{Device: "kernel", Name: "wgtest0", PrivateKey: tunnel.NewPrivateKey(),
		Address: netip.MustParsePrefix("10.0.0.1/24")}
	gw := open(t, cfg)
	cvm := openCVM(t, "10.0.0.2")
	reconcile(t, gw, peer(cvm))
	at := reachable(gw)
	at.Endpoint = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), gw.ListenAddr().Port())
	reconcile(t, cvm, at)
	serveEcho(t, cvm, 8080, "app:")
	if got, err := exchange(t.Context(), gw, "10.0.0.2:8080", "hi"); err != nil || got != "app:hi" {
		t.Errorf("%q, %v", got, err)
	}
	// Another takes the interface over and finds the peer there.
	second := open(t, cfg)
	if n := len(second.Peers()); n != 1 {
		t.Errorf("%d peers taken over, want 1", n)
	}
}
