package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/tunnel"
	"dstack.host/tunnel/agent"
)

// node is a gateway with a tunnel, as small as one can be.
type node struct {
	*httptest.Server
	tunnel *tunnel.Tunnel
	// guarded by mu
	mu     sync.Mutex
	client netip.Addr
	name   string // of the endpoint, "" for its address
	asked  int
}

func newNode(t *testing.T, client string) *node {
	t.Helper()
	tun, err := tunnel.Open(tunnel.Config{
		Device: "netstack", PrivateKey: tunnel.NewPrivateKey(), Address: netip.MustParsePrefix("10.0.0.1/24"),
		Listen: netip.MustParseAddrPort("127.0.0.1:0"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tun.Close() })
	n := &node{tunnel: tun, client: netip.MustParseAddr(client)}
	n.Server = gateway(t, n.register)
	return n
}

func (n *node) register(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	var req struct {
		Key tunnel.PublicKey `json:"client_public_key"`
	}
	err := json.NewDecoder(r.Body).Decode(&req)
	if err == nil {
		err = n.tunnel.Reconcile(r.Context(), []tunnel.Peer{{Key: req.Key, Addr: n.client}})
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	endpoint := n.tunnel.ListenAddr().String()
	if n.name != "" {
		endpoint = net.JoinHostPort(n.name, fmt.Sprint(n.tunnel.ListenAddr().Port()))
	}
	io.WriteString(w, answer(n.client.String(), server(n.tunnel.PublicKey(), "10.0.0.1/24", endpoint)))
}

// get asks the app of the CVM through the tunnel until it answers.
func (n *node) get(t *testing.T, addr string) string {
	t.Helper()
	client := http.Client{Timeout: limit, Transport: &http.Transport{
		DialContext: n.tunnel.DialContext, DisableKeepAlives: true,
	}}
	for end := time.Now().Add(limit); ; {
		res, err := client.Get("http://" + addr + "/")
		if err == nil {
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			return string(body)
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// serveApp is a CVM's app on port 8080.
func serveApp(ctx context.Context, tun *tunnel.Tunnel) error {
	l, err := tun.Listen(netip.AddrPortFrom(tun.Address().Addr(), 8080))
	if err != nil {
		return err
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "app at %v", tun.Address().Addr())
	})}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func TestRunJoinsAGatewayAndFollowsIt(t *testing.T) {
	gw := newNode(t, "10.0.0.2")
	gw.name = "gw.example"
	var resolved []string
	turns := 0
	a := newAgent(t, agent.Config{
		URLs: []string{gw.URL}, TLS: trusting(t, gw.Server), Serve: serveApp,
		Tunnel: tunnel.Config{Device: "netstack", Listen: netip.MustParseAddrPort("127.0.0.1:0")},
		Timing: agent.Timing{Poll: time.Millisecond, Refresh: 20 * time.Millisecond},
		Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
			resolved = append(resolved, host)
			return []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("127.0.0.1")}, nil
		},
		Turn: func() { turns++ },
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	if got := gw.get(t, "10.0.0.2:8080"); got != "app at 10.0.0.2" {
		t.Errorf("got %q", got)
	}
	// The gateway gives another address: the tunnel and the app move there.
	gw.mu.Lock()
	gw.client = netip.MustParseAddr("10.0.0.7")
	gw.mu.Unlock()
	if got := gw.get(t, "10.0.0.7:8080"); got != "app at 10.0.0.7" {
		t.Errorf("got %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	gw.mu.Lock() // a request that was given up may still be served
	defer gw.mu.Unlock()
	if turns < 2 {
		t.Errorf("%d turns", turns)
	}
	// Answers that changed nothing resolved nothing.
	if want := []string{"gw.example", "gw.example"}; !cmp.Equal(want, resolved) || gw.asked < 2 {
		t.Errorf("resolved %v in %d registrations, want %v", resolved, gw.asked, want)
	}
}

func TestRunEndsWithTheErrorOfTheService(t *testing.T) {
	gw := newNode(t, "10.0.0.2")
	a := newAgent(t, agent.Config{
		URLs: []string{gw.URL}, TLS: trusting(t, gw.Server),
		Serve:  func(context.Context, *tunnel.Tunnel) error { return errors.New("no such app") },
		Tunnel: tunnel.Config{Device: "netstack", Listen: netip.MustParseAddrPort("127.0.0.1:0")},
	})
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := a.Run(ctx); err == nil || !strings.Contains(err.Error(), "no such app") {
		t.Errorf("got %v", err)
	}
}

func TestAGatewayWhoseNameDoesNotResolveKeepsNoOtherOut(t *testing.T) {
	good, lost := newNode(t, "10.0.0.2"), tunnel.NewPrivateKey().PublicKey()
	front := gateway(t, func(w http.ResponseWriter, r *http.Request) {
		var req struct {
			Key tunnel.PublicKey `json:"client_public_key"`
		}
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		if err := good.tunnel.Reconcile(r.Context(), []tunnel.Peer{{Key: req.Key, Addr: good.client}}); err != nil {
			t.Error(err)
		}
		io.WriteString(w, answer("10.0.0.2",
			server(lost, "10.4.0.1/24", "lost.example:51820"),
			server(good.tunnel.PublicKey(), "10.0.0.1/24", good.tunnel.ListenAddr().String())))
	})
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	statuses, peers := make(chan agent.Status, 2), make(chan []tunnel.Peer, 1)
	answers := []error{errors.New("no such host"), nil, errors.New("no such host")}
	a := newAgent(t, agent.Config{
		URLs: []string{front.URL}, TLS: trusting(t, front),
		Serve: func(ctx context.Context, tun *tunnel.Tunnel) error {
			<-ctx.Done()
			peers <- tun.Peers()
			return nil
		},
		Tunnel: tunnel.Config{Device: "netstack", Listen: netip.MustParseAddrPort("127.0.0.1:0")},
		Timing: agent.Timing{Poll: time.Millisecond, Refresh: time.Millisecond},
		Resolve: func(context.Context, string) ([]netip.Addr, error) {
			err := answers[0]
			answers = answers[1:]
			return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, err
		},
		Status: func(s agent.Status) {
			if statuses <- s; len(statuses) == cap(statuses) {
				cancel()
			}
		},
	})
	if err := a.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if s := <-statuses; s.Err == nil || !strings.Contains(s.Err.Error(), "no such host") {
		t.Errorf("the first attempt: %v", s.Err)
	}
	if s := <-statuses; s.Err != nil || len(s.Answer.Servers) != 2 {
		t.Errorf("the second attempt: %+v", s)
	}
	if got := <-peers; len(got) != 2 {
		t.Errorf("peers %v, want both gateways", got)
	}
}
