package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace that nothing but its file keeps alive.
type namespace struct{ file *os.File }

// newNamespace makes one, or skips the test with the reason why it can't.
func newNamespace(t *testing.T) namespace {
	t.Helper()
	var file *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		return err
	})
	if err != nil {
		t.Skipf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = file.Close() })
	n := namespace{file}
	n.ip(t, "link set lo up")
	return n
}

// onThread runs f on a thread that ends with it, whatever f did to the thread.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// do runs f inside. Sockets and processes that it makes stay inside.
func (n namespace) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// ip runs ip(8) inside.
func (n namespace) ip(t *testing.T, args string) {
	t.Helper()
	if err := n.do(func() error {
		out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(args)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func (n namespace) dial(ctx context.Context, to string) (c net.Conn, err error) {
	err = n.do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", to)
		return err
	})
	return c, err
}

// web serves an app on every address inside; it tells who asks.
func (n namespace) web(t *testing.T, at, text string) {
	t.Helper()
	var listener net.Listener
	if err := n.do(func() (err error) { listener, err = net.Listen("tcp", at); return err }); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = fmt.Fprintf(w, "%s for %s", text, host)
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

// start runs the program inside until the test ends.
func (n namespace) start(t *testing.T, args ...string) *process {
	t.Helper()
	p := prepare(t, exec.CommandContext(t.Context(), os.Args[0], args...))
	if err := n.do(p.Start); err != nil {
		t.Fatal(err)
	}
	return p
}

// cable joins two namespaces by a veth pair, with an address on each end.
func cable(t *testing.T, a, b namespace, atA, atB string) {
	t.Helper()
	a.ip(t, fmt.Sprintf("link add veth0 type veth peer name veth0 netns /proc/%d/fd/%d", os.Getpid(), b.file.Fd()))
	for _, end := range []struct {
		n  namespace
		at string
	}{{a, atA}, {b, atB}} {
		end.n.ip(t, "addr add "+end.at+" dev veth0")
		end.n.ip(t, "link set veth0 up")
	}
}

// TestTwoNamespacesAreJoinedByTUNs runs the program twice, as gateway and as join, each in a network namespace of its own with a
// TUN; the two are joined by a cable and nothing else. The gateway's clients come from its side.
func TestTwoNamespacesAreJoinedByTUNs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skipf("needs ip(8) of iproute2: %v", err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip(err)
	}
	front, vm := newNamespace(t), newNamespace(t)
	cable(t, front, vm, "192.0.2.1/24", "192.0.2.2/24")
	dir := socketFolder(t)
	// The sockets of wg(8) lie in one folder for all namespaces.
	names := struct{ gateway, vm string }{fmt.Sprintf("g%d", os.Getpid()), fmt.Sprintf("v%d", os.Getpid())}
	config := write(t, fmt.Sprintf(`base_domains = ["dstack.localhost"]
data_dir = %q
attestation.kind = "simulated-tdx"
certs.issuer = "internal"
proxy.listen = "192.0.2.1:443"
enroll.listen = "192.0.2.1:8000"
enroll.names = ["192.0.2.1"]
dns.listen = ["192.0.2.1:53"]
dns.addresses = ["192.0.2.1"]
tunnel.device = "tun"
tunnel.name = %q
tunnel.listen = "192.0.2.1:51820"
tunnel.handshake_interval = "200ms"
`, filepath.Join(dir, "data"), names.gateway))
	gateway := front.start(t, "serve", "-c", config)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	awaitPort(t, ctx, front, "192.0.2.1:8000")

	vm.web(t, "0.0.0.0:80", "the app")
	vm.web(t, "0.0.0.0:8022", "private")
	socket := filepath.Join(dir, "s")
	member := vm.start(t, "join", "--simulated", filepath.Join(dir, "data", "simulated-tdx.pem"), "--gateway-app", gatewayApp,
		"--port", "80", "--device", "tun", "--interface", names.vm, "--socket", socket, "https://192.0.2.1:8000")
	printed := member.until(t, "Ctrl-C leaves")
	url := regexp.MustCompile(`https://\S+`).FindString(printed)
	client := clientOf(t, front, filepath.Join(dir, "data", "ca.pem"))
	defer client.CloseIdleConnections()
	// The app sees the gateway's address in the tunnel: the request came through it.
	for body := ""; body != "the app for 10.0.0.1"; {
		if answer, err := client.Get(url); err == nil {
			text, _ := io.ReadAll(answer.Body)
			body = string(text)
			_ = answer.Body.Close()
		}
		if ctx.Err() != nil {
			t.Fatalf("%s answers %q", url, body)
		}
	}
	if out, errs, code := program(t, "join", "--health", "--socket", socket); code != 0 {
		t.Errorf("health: exit %d\n%s%s", code, out, errs)
	}
	// Whoever has taken the gateway over reaches no more of the VM than was opened.
	dial, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	address := regexp.MustCompile(`at (\S+)\.\n`).FindStringSubmatch(printed)
	if c, err := front.dial(ctx, address[1]+":80"); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	if c, err := front.dial(dial, address[1]+":8022"); err == nil {
		_ = c.Close()
		t.Error("a port that was not opened is reached through the tunnel")
	}
	if code := member.end(); code != 0 {
		t.Errorf("join ended with %d", code)
	}
	if err := vm.do(func() error { _, err := net.InterfaceByName(names.vm); return err }); err == nil {
		t.Error("the interface is still there")
	}
	if code := gateway.end(); code != 0 {
		t.Errorf("the gateway ended with %d", code)
	}
}

// awaitPort waits until something listens.
func awaitPort(t *testing.T, ctx context.Context, n namespace, at string) {
	t.Helper()
	for {
		c, err := n.dial(ctx, at)
		if err == nil {
			_ = c.Close()
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// clientOf is an HTTP client inside that knows the gateway's certificates and where its names are.
func clientOf(t *testing.T, n namespace, caFile string) *http.Client {
	t.Helper()
	text, err := os.ReadFile(caFile)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatal(errors.Join(err, errors.New("no root of the gateway")))
	}
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return n.dial(ctx, "192.0.2.1:443") },
	}}
}
