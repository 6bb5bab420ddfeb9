package enroll_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/registry"
	"dstack.host/ratls/simtdx"
)

// guestInfo is what a guest agent answers Info with (dstack 0.5 guest-agent/rpc/proto/agent_rpc.proto), as far as it matters.
func guestInfo(t testing.TB, compose string) string {
	t.Helper()
	tcb := must(json.Marshal(map[string]any{"mrtd": "00", "event_log": []any{}, "app_compose": compose}))(t)
	return string(must(json.Marshal(map[string]any{"app_id": "", "tcb_info": string(tcb), "vm_config": "", "app_name": "old"}))(t))
}

const narrow = `{"name":"old","port_policy":{"ports":[{"port":8080,"pp":true}],"restrict_mode":true}}`

// TestThePortPolicyOfAnOldGuestIsAskedOfItsAgent registers guests that report none, as before dstack 0.5.9.
func TestThePortPolicyOfAnOldGuestIsAskedOfItsAgent(t *testing.T) {
	w := newWorld(t)
	open := &registry.PortPolicy{}
	for i, row := range []struct {
		name, compose string
		answer        func(w http.ResponseWriter)
		want          *registry.PortPolicy // nil: no port is reached
		measured      bool
	}{
		{"policy in the compose file", narrow, func(rw http.ResponseWriter) { io.WriteString(rw, guestInfo(t, narrow)) },
			&registry.PortPolicy{Restrict: true, Ports: []registry.Port{{Port: 8080, Proxy: true}}}, true},
		{"compose file without one", "{}", func(rw http.ResponseWriter) { io.WriteString(rw, guestInfo(t, "{}")) }, open, true},
		{"measurements kept secret", "{}", func(rw http.ResponseWriter) { io.WriteString(rw, `{"tcb_info":""}`) }, open, false},
		{"compose file of another code", narrow, func(rw http.ResponseWriter) { io.WriteString(rw, guestInfo(t, `{"port_policy":{}}`)) }, nil, false},
		{"no JSON", "{}", func(rw http.ResponseWriter) { io.WriteString(rw, `<html>`) }, nil, false},
		{"no JSON inside", "{}", func(rw http.ResponseWriter) { io.WriteString(rw, `{"tcb_info":"{"}`) }, nil, false},
		{"member twice", "{}", func(rw http.ResponseWriter) { io.WriteString(rw, `{"tcb_info":"","tcb_info":"x"}`) }, nil, false},
		{"impossible policy", `{"port_policy":{"ports":[{"port":0}]}}`, func(rw http.ResponseWriter) {
			io.WriteString(rw, guestInfo(t, `{"port_policy":{"ports":[{"port":0}]}}`))
		}, nil, false},
		{"without end", "{}", func(rw http.ResponseWriter) {
			for range 9 << 10 {
				if _, err := io.WriteString(rw, strings.Repeat(" ", 1<<10)); err != nil {
					return
				}
			}
		}, nil, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			asked := make(chan string, 16)
			agent := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				select {
				case asked <- r.Method + " " + r.Host + r.RequestURI:
				default:
				}
				row.answer(rw)
			}))
			defer agent.Close()
			td := w.boot(t, simtdx.VM{AppCompose: row.compose, InstanceSeed: append(make([]byte, 19), byte(i))})
			key := newKey()
			if a := register(t, w.at, attested(t, td), fmt.Sprintf(`{"client_public_key":"%s"}`, key)); a.status != http.StatusOK {
				t.Fatal(a.body)
			}
			inst := w.registry.Snapshot().Instance(idOf(t, td).ID)
			if inst.Policy().Allowed(80) {
				t.Error("a port is open before the policy is known")
			}
			outcome := w.ask(t, inst, agent)
			select {
			case line := <-outcome:
				if gaveUp := strings.Contains(line, "tells no port policy"); gaveUp != (row.want == nil) {
					t.Errorf("log: %s", line)
				}
			case <-time.After(patience):
				t.Fatal("no outcome")
			}
			if got, want := <-asked, fmt.Sprintf("POST %s:8090/prpc/Info?json", inst.Addr); got != want {
				t.Errorf("asked %s, want %s", got, want)
			}
			now := w.registry.Snapshot().Instance(inst.ID)
			if diff := cmp.Diff(row.want, now.Ports); diff != "" || now.Measured != row.measured {
				t.Errorf("measured %t; ports (-want +got):\n%s", now.Measured, diff)
			}
		})
	}
}

// lineChannel takes the lines of a log.
type lineChannel chan string

func (l lineChannel) Write(line []byte) (int, error) {
	l <- string(line)
	return len(line), nil
}

// ask runs the task that asks agents, and returns its log; only this instance's tunnel is up.
func (w *world) ask(t *testing.T, inst *registry.Instance, agent *httptest.Server) <-chan string {
	t.Helper()
	log := make(lineChannel, 16)
	run(t, enroll.NewPorts(enroll.PortsConfig{
		Registry: w.registry, Port: 8090, Logger: slog.New(slog.NewTextHandler(log, nil)), Up: func(i *registry.Instance) bool { return i.ID == inst.ID },
		Dial: func(ctx context.Context, i *registry.Instance, port uint16) (net.Conn, error) {
			if i.ID != inst.ID || port != 8090 {
				return nil, fmt.Errorf("dialed port %d of %s", port, i.ID)
			}
			return new(net.Dialer).DialContext(ctx, "tcp", agent.Listener.Addr().String())
		},
	}).Run)
	return log
}

func (w *world) await(t *testing.T, ready func(*registry.Snapshot) bool) {
	t.Helper()
	deadline := time.After(patience)
	for changed := w.registry.Changed(); !ready(w.registry.Snapshot()); changed = w.registry.Changed() {
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("does not come")
		}
	}
}

// TestAnAgentThatIsNotReadyIsAskedAgain answers the second question.
func TestAnAgentThatIsNotReadyIsAskedAgain(t *testing.T) {
	w := newWorld(t)
	var calls atomic.Int64
	agent := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			http.Error(rw, "starting", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(rw, guestInfo(t, narrow))
	}))
	defer agent.Close()
	td := w.boot(t, simtdx.VM{AppCompose: narrow})
	register(t, w.at, attested(t, td), fmt.Sprintf(`{"client_public_key":"%s"}`, newKey()))
	id := idOf(t, td).ID
	w.ask(t, w.registry.Snapshot().Instance(id), agent)
	w.await(t, func(s *registry.Snapshot) bool { return s.Instance(id).Measured })
	if n := calls.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
}
