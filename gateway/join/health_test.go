package join_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dstack.host/gateway/join"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// socketDir is a folder whose name is short enough for sockets.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "join-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestTheSocketIsTakenOverFromTheDeadAlone(t *testing.T) {
	dir := socketDir(t)
	path := filepath.Join(dir, "made", "on the way.sock")
	first, err := join.ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v, want mode 0600", info.Mode(), err)
	}
	if _, err := join.ListenSocket(path); err == nil || !strings.Contains(err.Error(), "another join answers") {
		t.Errorf("a second one: %v", err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false) // as a process that is killed
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := join.ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := join.ListenSocket(file); err == nil {
		t.Error("a file was replaced")
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
		t.Errorf("the file is now %q, %v", text, err)
	}
	if _, err := join.ListenSocket(filepath.Join(file, "x.sock")); err == nil || !strings.Contains(err.Error(), "--socket") {
		t.Errorf("below a file: %v", err)
	}
}

// openTunnel opens one inside the process.
func openTunnel(t *testing.T, c tunnel.Config) *tunnel.Tunnel {
	t.Helper()
	c.Device, c.PrivateKey, c.Listen = "netstack", tunnel.NewPrivateKey(), netip.MustParseAddrPort("127.0.0.1:0")
	tun, err := tunnel.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tun.Close() })
	return tun
}

func TestHealthFollowsTheTunnel(t *testing.T) {
	td, _ := boot(t, authority(t), simtdx.VM{AppCompose: "app"})
	c := join.NewCondition(td, "the app", "the instance")
	now := time.Now()
	expect := func(when string, at time.Time, ok bool, words ...string) {
		t.Helper()
		h := c.Health(at)
		for _, w := range words {
			if h.OK != ok || !strings.Contains(h.String(), w) {
				t.Errorf("%s: %t, %s; want %t and %q", when, h.OK, h, ok, w)
			}
		}
	}
	expect("at first", now, false, "not registered yet")
	c.Attempted(agent.Status{Err: errors.New("no such host")})
	expect("refused", now, false, "not registered yet: no such host")
	gateway := openTunnel(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.1/24")})
	own := openTunnel(t, tunnel.Config{Address: netip.MustParsePrefix("10.0.0.2/32"), Inbound: true})
	c.Opened(own)
	c.Attempted(agent.Status{Time: now})
	expect("no gateway in the answer", now, false, "no node")
	peer := tunnel.Peer{Key: gateway.PublicKey(), Addr: netip.MustParseAddr("10.0.0.1"), Endpoint: gateway.ListenAddr(), Keepalive: 25 * time.Second}
	if err := own.Reconcile(t.Context(), []tunnel.Peer{peer}); err != nil {
		t.Fatal(err)
	}
	expect("before a handshake", now, false, "UDP port")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c.Meet(ctx, own) {
		t.Error("met a gateway that knows nobody")
	}
	if err := gateway.Reconcile(t.Context(), []tunnel.Peer{{Key: own.PublicKey(), Addr: netip.MustParseAddr("10.0.0.2")}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	if !c.Meet(ctx, own) {
		t.Fatal("no handshake")
	}
	expect("joined", time.Now(), true, "healthy: instance the instance at 10.0.0.2, tunnel to 1 gateway;", "SIMULATED")
	c.Attempted(agent.Status{Err: errors.New("the gateway\nis away")})
	expect("a refresh that fails", time.Now(), true, "the last registration failed")
	expect("silence", time.Now().Add(4*time.Minute), false, "the last WireGuard handshake was 4m")
	c.Opened(nil)
	expect("closed", time.Now(), false, "not registered yet")
}

func TestHealthIsTold(t *testing.T) {
	td, _ := boot(t, authority(t), simtdx.VM{AppCompose: "app"})
	path := filepath.Join(socketDir(t), "s")
	if _, err := join.AskHealth(t.Context(), path); err == nil || !strings.Contains(err.Error(), "no join answers at "+path) {
		t.Errorf("nobody there: %v", err)
	}
	listener, err := join.ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- join.NewCondition(td, "app", "instance").Serve(ctx, listener) }()
	h, err := join.AskHealth(t.Context(), path)
	if err != nil || h.OK || h.InstanceID != "instance" || h.Reason != "not registered yet" {
		t.Errorf("%+v %v", h, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}
