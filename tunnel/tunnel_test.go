package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"dstack.host/tunnel"
)

func TestMain(m *testing.M) {
	if os.Getenv(namespaceEnv) != "" {
		os.Exit(m.Run()) // the parent process checks for leaks
	}
	goleak.VerifyTestMain(m)
}

// namespaceEnv is set in the child process that runs a test in a network namespace of its own.
const namespaceEnv = "TUNNEL_TEST_NAMESPACE"

const deadline = 20 * time.Second

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// open opens a tunnel on netstack unless cfg says otherwise, and closes it with the test.
func open(t testing.TB, cfg tunnel.Config) *tunnel.Tunnel {
	t.Helper()
	if cfg.Device == "" {
		cfg.Device = "netstack"
	}
	if cfg.PrivateKey == (tunnel.PrivateKey{}) {
		cfg.PrivateKey = tunnel.NewPrivateKey()
	}
	if cfg.Listen == (netip.AddrPort{}) {
		cfg.Listen = loopback
	}
	tun, err := tunnel.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tun.Close(); err != nil {
			t.Error(err)
		}
	})
	return tun
}

func openGateway(t testing.TB) *tunnel.Tunnel {
	t.Helper()
	return open(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.1/24")})
}

func openCVM(t testing.TB, addr string) *tunnel.Tunnel {
	t.Helper()
	return open(t, tunnel.Config{Address: netip.MustParsePrefix(addr + "/32"), Inbound: true})
}

// peer is how others see t.
func peer(t *tunnel.Tunnel) tunnel.Peer {
	return tunnel.Peer{Key: t.PublicKey(), Addr: t.Address().Addr()}
}

// reachable is peer with its endpoint, for the side that speaks first.
func reachable(t *tunnel.Tunnel) tunnel.Peer {
	p := peer(t)
	p.Endpoint, p.Keepalive = t.ListenAddr(), 25*time.Second
	return p
}

func reconcile(t testing.TB, tun *tunnel.Tunnel, want ...tunnel.Peer) {
	t.Helper()
	if err := tun.Reconcile(t.Context(), want); err != nil {
		t.Fatal(err)
	}
}

// serveEcho answers every connection to tun at port with what it says, after greeting with name.
func serveEcho(t testing.TB, tun *tunnel.Tunnel, port uint16, name string) {
	t.Helper()
	serveEchoAt(t, tun, netip.AddrPortFrom(tun.Address().Addr(), port), name)
}

func serveEchoAt(t testing.TB, tun *tunnel.Tunnel, at netip.AddrPort, name string) {
	t.Helper()
	l, err := tun.Listen(at)
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("accept: %v", err)
				}
				return
			}
			work.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(deadline))
				io.WriteString(c, name)
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		work.Wait()
	})
}

// exchange dials to, sends, half-closes, and returns everything that came back.
func exchange(ctx context.Context, tun *tunnel.Tunnel, to, text string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	c, err := tun.DialContext(ctx, "tcp", to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(deadline))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestOnlyTheInboundPortsAreOpen(t *testing.T) {
	gw := openGateway(t)
	cvm := open(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.2/32"), Inbound: true, InboundPorts: []uint16{8080}})
	reconcile(t, gw, peer(cvm))
	connect(t, cvm, gw)
	serveEcho(t, cvm, 8080, "app:")
	serveEcho(t, cvm, 8081, "private:")
	if got, err := exchange(t.Context(), gw, "10.0.0.2:8080", "hi"); err != nil || got != "app:hi" {
		t.Errorf("%q, %v", got, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if got, err := exchange(ctx, gw, "10.0.0.2:8081", "hi"); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port that is not open: %q, %v; want silence", got, err)
	}
	if cvm.OnHost() {
		t.Error("a tunnel in this process is said to be an interface of the host")
	}
}

func TestTunnelsCarryTCPBothWays(t *testing.T) {
	for _, tc := range []struct{ name, gateway, cvm string }{
		{"IPv4", "10.0.0.1/24", "10.0.0.2/32"},
		{"IPv6", "fd00::1/64", "fd00::2/128"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			gw := open(t, tunnel.Config{Address: netip.MustParsePrefix(tc.gateway)})
			cvm := open(t, tunnel.Config{Address: netip.MustParsePrefix(tc.cvm), Inbound: true})
			reconcile(t, gw, peer(cvm))
			connect(t, cvm, gw)
			serveEcho(t, cvm, 8080, "app:")

			big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
			to := netip.AddrPortFrom(cvm.Address().Addr(), 8080).String()
			got, err := exchange(t.Context(), gw, to, big)
			if err != nil || got != "app:"+big {
				t.Fatalf("got %d octets, %v; want the greeting and %d octets", len(got), err, len(big))
			}
			if err := gw.Poll(t.Context()); err != nil {
				t.Fatal(err)
			}
			at, ok := gw.Handshake(cvm.PublicKey())
			if since := time.Since(at); !ok || since < 0 || since > time.Minute {
				t.Errorf("handshake %v %v, want one just now", at, ok)
			}
		})
	}
}

func TestHandshakesAppearInTheSnapshotAndGoWithThePeer(t *testing.T) {
	gw, cvm := openGateway(t), openCVM(t, "10.0.0.2")
	reconcile(t, gw, peer(cvm))
	reconcile(t, cvm, reachable(gw))
	if _, ok := gw.Handshake(cvm.PublicKey()); ok {
		t.Error("a handshake before the first reading")
	}
	waitHandshake(t, gw, cvm.PublicKey())
	reconcile(t, gw)
	if at, ok := gw.Handshake(cvm.PublicKey()); ok {
		t.Errorf("handshake %v of a peer that was removed", at)
	}
}

// connect gives cvm the gateway as its peer and waits until the two have a session. Packets that both send first can
// cross, and then WireGuard waits five seconds before it tries again.
func connect(t testing.TB, cvm, gw *tunnel.Tunnel) {
	t.Helper()
	reconcile(t, cvm, reachable(gw))
	waitHandshake(t, gw, cvm.PublicKey())
	waitHandshake(t, cvm, gw.PublicKey())
}

func waitHandshake(t testing.TB, tun *tunnel.Tunnel, key tunnel.PublicKey) {
	t.Helper()
	for end := time.Now().Add(deadline); ; {
		if err := tun.Poll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := tun.Handshake(key); ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no handshake with %v in %v", key, deadline)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestRunPollsUntilTheContextEnds(t *testing.T) {
	gw := open(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.1/24"), HandshakeInterval: time.Millisecond})
	cvm := openCVM(t, "10.0.0.2")
	reconcile(t, gw, peer(cvm))
	reconcile(t, cvm, reachable(gw))
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	done := make(chan error)
	go func() { done <- gw.Run(ctx) }()
	for ctx.Err() == nil {
		if _, ok := gw.Handshake(cvm.PublicKey()); ok {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if ctx.Err() != nil {
		t.Error("no handshake seen")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v, want nil", err)
	}
}

func TestRunEndsWithTheTunnel(t *testing.T) {
	gw := open(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.1/24"), HandshakeInterval: time.Millisecond})
	if err := gw.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"Run": gw.Run(t.Context()), "Poll": gw.Poll(t.Context()), "Reconcile": gw.Reconcile(t.Context(), nil),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v, want net.ErrClosed", name, err)
		}
	}
}

func TestARefusedConnectionIsToldAsSuch(t *testing.T) {
	gw, cvm := openGateway(t), openCVM(t, "10.0.0.2")
	reconcile(t, gw, peer(cvm))
	connect(t, cvm, gw)
	_, err := exchange(t.Context(), gw, "10.0.0.2:8080", "")
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want ECONNREFUSED", err)
	}
}

func TestDialRefusesWhatIsNotAPeer(t *testing.T) {
	gw, cvm := openGateway(t), openCVM(t, "10.0.0.2")
	reconcile(t, gw, peer(cvm))
	for _, tc := range []struct {
		network, address string
		want             error
	}{
		{"tcp", "10.0.0.3:80", tunnel.ErrNoPeer},
		{"tcp", "10.0.0.1:80", tunnel.ErrNoPeer},
		{"tcp", "127.0.0.1:80", tunnel.ErrNoPeer},
		{"tcp", "[::ffff:10.0.0.2]:80", tunnel.ErrNoPeer},
		{"tcp", "localhost:80", nil},
		{"tcp", "10.0.0.2:0", nil},
		{"tcp", "10.0.0.2:65536", nil},
		{"tcp", "10.0.0.2:http", nil},
		{"tcp", "10.0.0.2", nil},
		{"tcp", "", nil},
		{"tcp6", "10.0.0.2:80", net.UnknownNetworkError("tcp6")},
		{"udp", "10.0.0.2:80", net.UnknownNetworkError("udp")},
	} {
		c, err := gw.DialContext(t.Context(), tc.network, tc.address)
		if err == nil {
			c.Close()
			t.Errorf("%s %s: connected", tc.network, tc.address)
		} else if tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s %s: %v, want %v", tc.network, tc.address, err, tc.want)
		}
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	gw := openGateway(t)
	reconcile(t, gw, tunnel.Peer{Key: tunnel.NewPrivateKey().PublicKey(), Addr: netip.MustParseAddr("10.0.0.2")})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := gw.DialContext(ctx, "tcp", "10.0.0.2:80")
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("got %v, want a timeout", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := gw.DialContext(ctx, "tcp", "10.0.0.2:80"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestAPeerCannotSpeakFromTheAddressOfAnother(t *testing.T) {
	host := open(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.1/24"), Inbound: true})
	serveEcho(t, host, 80, "host:")
	honest, thief := openCVM(t, "10.0.0.2"), openCVM(t, "10.0.0.2")
	// The host knows the thief by another address than the one it uses.
	reconcile(t, host, peer(honest), tunnel.Peer{Key: thief.PublicKey(), Addr: netip.MustParseAddr("10.0.0.3")})
	connect(t, honest, host)
	connect(t, thief, host)

	if got, err := exchange(t.Context(), honest, "10.0.0.1:80", "hi"); err != nil || got != "host:hi" {
		t.Errorf("the owner of the address: %q, %v", got, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if got, err := exchange(ctx, thief, "10.0.0.1:80", "hi"); err == nil {
		t.Errorf("the thief got %q, want no connection", got)
	}
}

func TestPeersCannotReachTheGatewayOrEachOther(t *testing.T) {
	gw, one, two := openGateway(t), openCVM(t, "10.0.0.2"), openCVM(t, "10.0.0.3")
	serveEcho(t, two, 80, "two:")
	reconcile(t, gw, peer(one), peer(two))
	reconcile(t, two, reachable(gw))
	// One claims that the gateway carries the address of the other.
	route := reachable(gw)
	route.Addr = two.Address().Addr()
	reconcile(t, one, route)
	waitHandshake(t, gw, one.PublicKey())
	waitHandshake(t, gw, two.PublicKey())
	if _, err := gw.Listen(netip.MustParseAddrPort("10.0.0.1:80")); err == nil {
		t.Error("the gateway listens inside the tunnel")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if got, err := exchange(ctx, one, "10.0.0.3:80", "hi"); err == nil {
		t.Errorf("one CVM reached another: %q", got)
	}
	reconcile(t, one, reachable(gw))
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := exchange(ctx, one, "10.0.0.1:80", "hi"); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a CVM dialing the gateway: %v, want silence", err)
	}
}

func TestReconcileTable(t *testing.T) {
	key := [4]tunnel.PublicKey{}
	for i := range key {
		key[i] = tunnel.NewPrivateKey().PublicKey()
	}
	addr := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}) }
	p := func(k, a int) tunnel.Peer { return tunnel.Peer{Key: key[k], Addr: addr(a)} }
	kept := func(k, a int, alive time.Duration) tunnel.Peer {
		return tunnel.Peer{Key: key[k], Addr: addr(a), Keepalive: alive}
	}
	for _, tc := range []struct {
		name         string
		before, want []tunnel.Peer
		messages     []string
	}{
		{"nothing", nil, nil, nil},
		{"first peer", nil, []tunnel.Peer{p(0, 2)}, []string{"add 0"}},
		{"no change", []tunnel.Peer{p(0, 2), p(1, 3)}, []tunnel.Peer{p(1, 3), p(0, 2)}, nil},
		{"one more", []tunnel.Peer{p(0, 2)}, []tunnel.Peer{p(0, 2), p(1, 3)}, []string{"add 1"}},
		{"one less", []tunnel.Peer{p(0, 2), p(1, 3)}, []tunnel.Peer{p(1, 3)}, []string{"remove 0"}},
		{"none left", []tunnel.Peer{p(0, 2), p(1, 3)}, nil, []string{"remove 0", "remove 1"}},
		{"new key at an address", []tunnel.Peer{p(0, 2), p(1, 3)}, []tunnel.Peer{p(2, 2), p(1, 3)},
			[]string{"remove 0", "add 2"}},
		{"two new keys", []tunnel.Peer{p(0, 2), p(1, 3)}, []tunnel.Peer{p(2, 2), p(3, 3)},
			[]string{"remove 0", "add 2", "remove 1", "add 3"}},
		{"removals that free nothing come first", []tunnel.Peer{p(0, 2), p(1, 9)}, []tunnel.Peer{p(2, 2)},
			[]string{"remove 1", "remove 0", "add 2"}},
		{"a peer moves", []tunnel.Peer{p(0, 2)}, []tunnel.Peer{p(0, 3)}, []string{"update 0"}},
		{"a peer moves to one that goes", []tunnel.Peer{p(0, 2), p(1, 3)}, []tunnel.Peer{p(0, 3)},
			[]string{"remove 1", "update 0"}},
		{"two peers swap", []tunnel.Peer{p(0, 2), p(1, 3)}, []tunnel.Peer{p(0, 3), p(1, 2)},
			[]string{"update 0", "update 1"}},
		{"keepalive", []tunnel.Peer{p(0, 2)}, []tunnel.Peer{kept(0, 2, 25*time.Second)}, []string{"update 0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			gw := openGateway(t)
			reconcile(t, gw, tc.before...)
			var messages []string
			for _, c := range tunnel.Diff(gw.Peers(), tc.want) {
				for i, k := range key {
					if k == c.Key() {
						messages = append(messages, fmt.Sprint(c.Op, " ", i))
					}
				}
			}
			if diff := cmp.Diff(tc.messages, messages); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			reconcile(t, gw, tc.want...)
			checkPeers(t, gw, tc.want)
		})
	}
}

// checkPeers holds what the tunnel says and what its device says against want.
func checkPeers(t *testing.T, tun *tunnel.Tunnel, want []tunnel.Peer) {
	t.Helper()
	byKey := func(list []tunnel.Peer) map[tunnel.PublicKey]tunnel.Peer {
		m := make(map[tunnel.PublicKey]tunnel.Peer)
		for _, p := range list {
			m[p.Key] = p
		}
		return m
	}
	comparers := cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })}
	if diff := cmp.Diff(byKey(want), byKey(tun.Peers()), comparers); diff != "" {
		t.Errorf("peers (-want +got):\n%s", diff)
	}
	if err := tun.Poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(byKey(want), byKey(tun.Peers()), comparers); diff != "" {
		t.Errorf("peers of the device (-want +got):\n%s", diff)
	}
}

// TestASecondAddressReachesThePeerToo gives both ends one of each family, and takes the peer's second one away again.
func TestASecondAddressReachesThePeerToo(t *testing.T) {
	gateway := open(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.1/24"), Address6: netip.MustParsePrefix("fd12:3456::1/64")})
	second := netip.MustParseAddr("fd12:3456::a00:2")
	cvm := open(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.2/32"), Address6: netip.PrefixFrom(second, 128), Inbound: true})
	both := peer(cvm)
	both.Addr6 = second
	toGateway := reachable(gateway)
	toGateway.Addr6 = netip.MustParseAddr("fd12:3456::1")
	reconcile(t, gateway, both)
	reconcile(t, cvm, toGateway)
	serveEcho(t, cvm, 80, "four:")
	serveEchoAt(t, cvm, netip.AddrPortFrom(second, 80), "six:")
	for to, want := range map[string]string{"10.0.0.2:80": "four:x", "[fd12:3456::a00:2]:80": "six:x"} {
		if got, err := exchange(t.Context(), gateway, to, "x"); err != nil || got != want {
			t.Errorf("%s: %q, %v", to, got, err)
		}
	}
	if err := gateway.Poll(t.Context()); err != nil { // reads the device
		t.Fatal(err)
	}
	if got := gateway.Peers(); len(got) != 1 || got[0] != both {
		t.Errorf("peers %v, want %v", got, both)
	}
	reconcile(t, gateway, peer(cvm))
	if _, err := exchange(t.Context(), gateway, "[fd12:3456::a00:2]:80", "x"); !errors.Is(err, tunnel.ErrNoPeer) {
		t.Errorf("the address that was taken away: %v", err)
	}
	if got, err := exchange(t.Context(), gateway, "10.0.0.2:80", "x"); err != nil || got != "four:x" {
		t.Errorf("the first address: %q, %v", got, err)
	}
}

func TestSecondAddressesThatCannotBe(t *testing.T) {
	gateway := openGateway(t)
	for name, change := range map[string]func(*tunnel.Peer){
		"of the same family":     func(p *tunnel.Peer) { p.Addr6 = netip.MustParseAddr("10.0.0.3") },
		"link-local":             func(p *tunnel.Peer) { p.Addr6 = netip.MustParseAddr("fe80::1") },
		"with a zone":            func(p *tunnel.Peer) { p.Addr6 = netip.MustParseAddr("fd00::1%eth0") },
		"beside one of IPv6":     func(p *tunnel.Peer) { p.Addr, p.Addr6 = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2") },
		"of another peer":        func(p *tunnel.Peer) { p.Addr6 = netip.MustParseAddr("fd00::9") },
		"IPv4 in IPv6's clothes": func(p *tunnel.Peer) { p.Addr6 = netip.MustParseAddr("::ffff:10.0.0.3") },
	} {
		t.Run(name, func(t *testing.T) {
			other := tunnel.Peer{Key: tunnel.NewPrivateKey().PublicKey(), Addr: netip.MustParseAddr("10.0.0.9"), Addr6: netip.MustParseAddr("fd00::9")}
			p := tunnel.Peer{Key: tunnel.NewPrivateKey().PublicKey(), Addr: netip.MustParseAddr("10.0.0.2")}
			change(&p)
			if err := gateway.Reconcile(t.Context(), []tunnel.Peer{other, p}); err == nil || len(gateway.Peers()) != 1 {
				t.Errorf("error %v, peers %v", err, gateway.Peers())
			}
		})
	}
	for _, second := range []string{"10.9.9.9/24", "fe80::1/64", "ff02::1/64"} {
		c := tunnel.Config{Device: "netstack", PrivateKey: tunnel.NewPrivateKey(), Address: netip.MustParsePrefix("10.0.0.1/24"), Address6: netip.MustParsePrefix(second)}
		if tun, err := tunnel.Open(c); err == nil {
			tun.Close()
			t.Errorf("%s: taken", second)
		}
	}
}
