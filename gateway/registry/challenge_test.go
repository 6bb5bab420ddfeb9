package registry_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A process that ended between publishing a challenge and removing it leaves its record to whoever runs next.
func TestChallengesOfProcessesThatAreGoneExpire(t *testing.T) {
	now := &clock{now: time.Unix(1_700_000_000, 0)}
	dir := t.TempDir()
	n := start(t, options{dir: dir, now: now.Now})
	const name = "_acme-challenge.example.com"
	for _, value := range []string{"left", "renewed"} {
		if err := n.SetChallenge(t.Context(), name, value); err != nil {
			t.Fatal(err)
		}
	}
	n.stop()

	n = start(t, options{dir: dir, now: now.Now})
	expire := func(after time.Duration, want ...string) {
		t.Helper()
		now.advance(after)
		if err := n.ExpireChallenges(t.Context()); err != nil {
			t.Fatal(err)
		}
		until := time.Now().Add(10 * time.Second)
		for !cmp.Equal(n.Snapshot().Challenges()[name], want) && time.Now().Before(until) {
			select {
			case <-n.Changed():
			case <-time.After(10 * time.Millisecond):
			}
		}
		if diff := cmp.Diff(want, n.Snapshot().Challenges()[name]); diff != "" {
			t.Errorf("after another %v (-want +got)\n%s", after, diff)
		}
	}
	expire(59*time.Minute, "left", "renewed")
	if err := n.SetChallenge(t.Context(), name, "renewed"); err != nil {
		t.Fatal(err)
	}
	expire(time.Minute, "renewed")
	expire(time.Hour)
}
