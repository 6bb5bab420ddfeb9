//go:build linux

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestEveryCaseIsMeasured runs the whole benchmark for a moment.
func TestEveryCaseIsMeasured(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rows.json")
	if err := run(t.Context(), options{rounds: 1, duration: 100 * time.Millisecond, out: file, noise: 1000}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	if err := json.Unmarshal(text, &rows); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		if r.Ours < 0 || r.Rounds != 1 {
			t.Errorf("%+v", r)
		}
		got = append(got, r.Case+" "+r.Metric)
	}
	want := []string{"first per_s", "proxy p99_ms", "proxy-churn p99_ms", "proxy-churn registrations", "refresh per_s", "refresh p99_ms", "refresh writes", "refresh-connection per_s"}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("no row for %s", w)
		}
	}
}

func TestRowsAreMedians(t *testing.T) {
	s := series{rounds: []figures{{"a": 3, "b": 1}, {"a": 1, "b": 1}, {"a": 100, "b": 1}, {"a": 5, "b": 1}}, discarded: 2, disturbed: true}
	want := []row{{"x", "a", 4, 4, 2, true}, {"x", "b", 1, 4, 2, true}}
	if diff := cmp.Diff(want, s.rows("x")); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}
