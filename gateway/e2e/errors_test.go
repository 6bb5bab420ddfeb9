package e2e

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"dstack.host/gateway"
	"dstack.host/gateway/demo"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

// guest is a TD of the demo's vendor that registers without running the demo's app.
func guest(t *testing.T, d *demo.Demo, key tunnel.PrivateKey, ports *agent.PortPolicy) (*simtdx.TD, *agent.Agent) {
	t.Helper()
	authority, err := gateway.Authority(d.Dir())
	if err != nil {
		t.Fatal(err)
	}
	machine, err := authority.Machine(simtdx.MachineOptions{Name: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	seed := make([]byte, 20)
	_, _ = rand.Read(seed)
	td, err := machine.Boot(simtdx.VM{AppCompose: `{"name":"` + t.Name() + `"}`, InstanceSeed: seed})
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := ratls.NewCertificate(t.Context(), td, ratls.CertOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(agent.Config{
		URLs: []string{"https://" + d.Gateway().EnrollAddr().String()}, PrivateKey: key, Ports: ports,
		TLS:    &tls.Config{Certificates: []tls.Certificate{certificate}, InsecureSkipVerify: true},
		Tunnel: tunnel.Config{Device: "netstack", Listen: netip.MustParseAddrPort("127.0.0.1:0")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return td, a
}

func TestAnAppWithoutATunnelIsTold(t *testing.T) {
	leakless(t)
	d := start(t, demo.Options{})
	td, a := guest(t, d, tunnel.NewPrivateKey(), nil)
	answer, err := a.Register(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info, err := td.Info()
	if err != nil {
		t.Fatal(err)
	}
	app := hex.EncodeToString(info.AppID)
	inst := d.Gateway().Snapshot().ByAddr(answer.Address)
	if inst == nil || inst.App.String() != app {
		t.Fatalf("%v is registered at %s, want app %s", inst, answer.Address, app)
	}
	for _, http2 := range []bool{false, true} {
		status, problem := ask(t, d, t.Context(), "https://"+app+"."+demo.DefaultBase+"/", http2)
		if status != http.StatusServiceUnavailable || problem.Reason != "tunnel_down" || problem.Hop != "tunnel" {
			t.Errorf("HTTP/2 %t: %d %+v, want 503 tunnel_down", http2, status, problem)
		}
	}
	peersAreInstances(t, d)
}

func TestAnAppThatRefusesIsTold(t *testing.T) {
	leakless(t)
	d := start(t, demo.Options{})
	key := tunnel.NewPrivateKey()
	td, a := guest(t, d, key, nil)
	answer, err := a.Register(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tun, err := tunnel.Open(tunnel.Config{Device: "netstack", PrivateKey: key, Address: netip.PrefixFrom(answer.Address, 32), Inbound: true, Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tun.Close() }()
	server := answer.Servers[0]
	if err := tun.Reconcile(t.Context(), []tunnel.Peer{{Key: server.Key, Addr: server.Addr, Endpoint: netip.MustParseAddrPort(server.Endpoint), Keepalive: 25 * time.Second}}); err != nil {
		t.Fatal(err)
	}
	info, err := td.Info()
	if err != nil {
		t.Fatal(err)
	}
	inst := d.Gateway().Snapshot().ByAddr(answer.Address)
	for deadline := time.Now().Add(20 * time.Second); !d.Gateway().TunnelUp(inst.ID); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the tunnel does not come up")
		}
	}
	status, problem := ask(t, d, t.Context(), "https://"+hex.EncodeToString(info.AppID)+"-8080."+demo.DefaultBase+"/", false)
	if status != http.StatusBadGateway || problem.Reason != "app_refused" {
		t.Errorf("%d %+v, want 502 app_refused", status, problem)
	}
}

func TestAPortThatTheAppDoesNotOpenIsTold(t *testing.T) {
	leakless(t)
	d := start(t, demo.Options{})
	url := strings.Replace(d.Apps()[0].URL, "."+demo.DefaultBase, "-8080."+demo.DefaultBase, 1)
	status, problem := ask(t, d, t.Context(), url, true)
	if status != http.StatusForbidden || problem.Reason != "port_denied" {
		t.Errorf("%d %+v, want 403 port_denied", status, problem)
	}
}

func TestWebSocketReachesTheApp(t *testing.T) {
	leakless(t)
	d := start(t, demo.Options{})
	client, err := d.Client(false)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	echo := d.Apps()[1]
	socket, _, err := websocket.Dial(t.Context(), echo.URL+"ws", &websocket.DialOptions{HTTPClient: client})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.CloseNow() }()
	for _, message := range []string{"hello", strings.Repeat("x", 30_000)} {
		if err := socket.Write(t.Context(), websocket.MessageText, []byte(message)); err != nil {
			t.Fatal(err)
		}
		_, got, err := socket.Read(t.Context())
		if err != nil || string(got) != message {
			t.Fatalf("got %d bytes (%v), want %d", len(got), err, len(message))
		}
	}
	if err := socket.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
}
