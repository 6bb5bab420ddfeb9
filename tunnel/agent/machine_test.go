package agent_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/tunnel/agent"
)

// never is a handshake that has not happened.
const never = -1

// look is one observation at a second, with the handshake's second.
type look struct {
	at         int
	configured bool
	handshake  int
	fails      bool
	want       string
}

func TestMachine(t *testing.T) {
	for name, looks := range map[string][]look{
		"nothing configured: at once, then 30, 60, 120, 120 seconds after each failure": {
			{at: 0, fails: true, want: "force"},
			{at: 10, want: "wait"}, {at: 29, want: "wait"},
			{at: 30, fails: true, want: "force"},
			{at: 80, want: "wait"},
			{at: 90, fails: true, want: "force"},
			{at: 209, want: "wait"},
			{at: 210, fails: true, want: "force"},
			{at: 329, want: "wait"},
			{at: 330, fails: true, want: "force"},
			{at: 450, fails: true, want: "force"},
		},
		"success, then gone again: after 30 seconds": {
			{at: 0, want: "force"},
			{at: 10, configured: true, handshake: 5, want: "wait"},
			{at: 20, want: "wait"},
			{at: 30, want: "force"},
		},
		"all well: a refresh every 180 seconds": {
			{at: 0, want: "force"},
			{at: 10, configured: true, handshake: 9, want: "wait"},
			{at: 179, configured: true, handshake: 170, want: "wait"},
			{at: 180, configured: true, handshake: 170, want: "refresh"},
			{at: 359, configured: true, handshake: 350, want: "wait"},
			{at: 360, configured: true, handshake: 350, fails: true, want: "refresh"},
			{at: 539, configured: true, handshake: 530, want: "wait"},
			{at: 540, configured: true, handshake: 530, want: "refresh"},
		},
		"configured at the start: the first refresh 180 seconds later": {
			{at: 0, configured: true, handshake: 0, want: "wait"},
			{at: 179, configured: true, handshake: 100, want: "wait"},
			{at: 180, configured: true, handshake: 100, want: "refresh"},
		},
		"never a handshake: forced 180 seconds after that was first seen, then every 180": {
			{at: 0, want: "force"},
			{at: 10, configured: true, handshake: never, want: "wait"},
			{at: 180, configured: true, handshake: never, want: "refresh"},
			{at: 189, configured: true, handshake: never, want: "wait"},
			{at: 190, configured: true, handshake: never, want: "force"},
			{at: 369, configured: true, handshake: never, want: "wait"},
			{at: 370, configured: true, handshake: never, fails: true, want: "force"},
			{at: 549, configured: true, handshake: never, want: "wait"},
			{at: 550, configured: true, handshake: never, want: "force"},
		},
		"handshakes stop: no periodic refresh while stale, one forced in 180 seconds": {
			{at: 0, want: "force"},
			{at: 180, configured: true, handshake: 150, want: "refresh"},
			{at: 329, configured: true, handshake: 150, want: "wait"},
			{at: 330, configured: true, handshake: 150, want: "force"},
			{at: 360, configured: true, handshake: 150, want: "wait"},
			{at: 509, configured: true, handshake: 150, want: "wait"},
			{at: 510, configured: true, handshake: 150, want: "force"},
			{at: 520, configured: true, handshake: 515, want: "wait"},
			{at: 690, configured: true, handshake: 680, want: "refresh"},
		},
		"a clock that was set back does not make a tunnel stale": {
			{at: 0, configured: true, handshake: 5000, want: "wait"},
			{at: 180, configured: true, handshake: 5000, want: "refresh"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			zero := time.Unix(1_700_000_000, 0)
			second := func(n int) time.Time { return zero.Add(time.Duration(n) * time.Second) }
			m := agent.NewMachine()
			for _, l := range looks {
				var handshake time.Time
				if l.configured && l.handshake != never {
					handshake = second(l.handshake)
				}
				if got := m.Step(second(l.at), l.configured, handshake, !l.fails); got != l.want {
					t.Fatalf("at %d: %s, want %s", l.at, got, l.want)
				}
			}
		})
	}
}

func TestLoopKeepsTimeAndEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		note := func(s string) {
			got = append(got, time.Since(start).String()+" "+s)
			if len(got) == 5 {
				cancel()
			}
		}
		calls := 0
		register := func(context.Context) (agent.Answer, error) {
			if calls++; calls <= 2 {
				return agent.Answer{}, errors.New("down")
			}
			return agent.Answer{}, nil
		}
		fake := &agent.Fake{Handshake: time.Now} // alive whenever it is looked at
		err := agent.Loop(ctx, agent.Timing{}, register, fake, func(s agent.Status) {
			switch {
			case s.Err != nil:
				note(s.Err.Error())
			case s.Forced:
				note("forced")
			default:
				note("refreshed")
			}
		})
		if err != nil || !fake.Closed {
			t.Errorf("loop ended with %v, tunnel closed %v; want nil, true", err, fake.Closed)
		}
		want := []string{"0s down", "30s down", "1m30s forced", "4m30s refreshed", "7m30s refreshed"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("attempts (-want +got):\n%s", diff)
		}
	})
}

func TestLoopForcesAStaleTunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		fake := &agent.Fake{}
		fake.Applied = func(_ agent.Answer, anew bool) error {
			what := " keep"
			if anew {
				what = " anew"
			}
			if got = append(got, time.Since(start).String()+what); len(got) == 4 {
				cancel()
			}
			return nil
		}
		register := func(context.Context) (agent.Answer, error) { return agent.Answer{}, nil }
		if err := agent.Loop(ctx, agent.Timing{}, register, fake, func(agent.Status) {}); err != nil {
			t.Error(err)
		}
		want := []string{"0s anew", "3m0s keep", "3m10s anew", "6m10s anew"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("attempts (-want +got):\n%s", diff)
		}
	})
}

func TestLoopEndsWhenTheServiceFails(t *testing.T) {
	fake := &agent.Fake{Served: make(chan error, 1)}
	fake.Served <- errors.New("the app is gone")
	register := func(context.Context) (agent.Answer, error) { return agent.Answer{}, nil }
	err := agent.Loop(t.Context(), agent.Timing{}, register, fake, func(agent.Status) {})
	if err == nil || !strings.Contains(err.Error(), "the app is gone") {
		t.Errorf("got %v, want the error of the service", err)
	}
}
