package certs_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/certs"
)

// counter makes secrets "1", "2" and so on.
func counter() func(certs.Ring) ([]byte, error) {
	n := 0
	return func(certs.Ring) ([]byte, error) {
		n++
		return fmt.Appendf(nil, "%d", n), nil
	}
}

func secrets(order [][]byte) string {
	var names []string
	for _, s := range order {
		names = append(names, string(s))
	}
	return strings.Join(names, " ")
}

const day = 24 * time.Hour

var start0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestARingTurnsOnceADayWithOverlap(t *testing.T) {
	fresh := counter()
	var r certs.Ring
	for _, step := range []struct {
		at   time.Duration
		want string // the one in use first, then the others, newest first
	}{
		{0, "1 2"},
		{time.Hour, "1 2"},
		{day - time.Second, "1 2"},
		{day, "2 3 1"},                        // 2 was known for a day before
		{2*day - time.Second, "2 3 1"},        // 1 still works
		{2 * day, "3 4 2"},                    // 1 does not any more
		{12 * day, "4 5"},                     // nobody was here for ten days
		{12*day + 23*time.Hour, "4 5"},        // and the next begins a day after that
		{13 * day, "5 6 4"},                   //
		{13*day - 2*time.Hour, "4 6 5"},       // a clock that goes back a little finds what it needs
		{13*day + time.Minute, "5 6 4"},       //
		{400 * day, "6 7"},                    // a clock is wrong by a year
		{14 * day, "6 7"},                     // and the others go on with what it left them, and use it in time
		{14*day + day - time.Minute, "6 7"},   //
		{14*day + day + time.Minute, "7 8 6"}, //
	} {
		now := start0.Add(step.at)
		next, changed, err := certs.AdvanceRing(r, now, fresh)
		if err != nil {
			t.Fatal(err)
		}
		if got := secrets(certs.OrderRing(next, now)); got != step.want {
			t.Errorf("after %s: %q, want %q", step.at, got, step.want)
		}
		if again, more, _ := certs.AdvanceRing(next, now, fresh); more {
			t.Errorf("after %s: it moves again, from %v to %v", step.at, next, again)
		}
		text, err := json.Marshal(next)
		if err != nil {
			t.Fatal(err)
		}
		if read, err := certs.ParseRing(text, 1); err != nil || cmp.Diff(next, read) != "" {
			t.Errorf("after %s: stored and read, %v (%v)", step.at, cmp.Diff(next, read), err)
		}
		if due := certs.RingDue(next, now); due <= 0 || due > day {
			t.Errorf("after %s: due in %s", step.at, due)
		}
		if changed {
			r = next
		}
	}
}

func TestARingWithoutFreshSecretsStaysAsItIs(t *testing.T) {
	r, _, err := certs.AdvanceRing(nil, start0, counter())
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no entropy")
	got, changed, err := certs.AdvanceRing(r, start0.Add(day), func(certs.Ring) ([]byte, error) { return nil, broken })
	if !errors.Is(err, broken) || changed || cmp.Diff(r, got) != "" {
		t.Errorf("%v, changed %v, %v", got, changed, err)
	}
}

func TestAStoredRingIsReadStrictly(t *testing.T) {
	for text, ok := range map[string]bool{
		"":     true, // none yet
		"[]":   false,
		"null": false,
		"{}":   false,
		`[{"from":"2026-01-01T00:00:00Z","secret":"AA=="}]`:                                                 true,
		`[{"from":"2026-01-01T00:00:00Z","secret":""}]`:                                                     false,
		`[{"from":"2026-01-01T00:00:00Z","secret":"AA=="}`:                                                  false,
		`[{"from":"yesterday","secret":"AA=="}]`:                                                            false,
		`[{"from":"2026-01-01T00:00:00Z","secret":"secret"}]`:                                               false,
		`[{"from":"2026-01-02T00:00:00Z","secret":"AA=="},{"from":"2026-01-01T00:00:00Z","secret":"AA=="}]`: false,
		"[" + strings.Repeat(`{"from":"2026-01-01T00:00:00Z","secret":"AA=="},`, 9) + "]":                   false,
	} {
		_, err := certs.ParseRing([]byte(text), 1)
		if (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
		if err != nil && strings.Contains(err.Error(), "AA==") {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}
