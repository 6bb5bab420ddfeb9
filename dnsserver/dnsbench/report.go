//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"text/tabwriter"
)

// row is one comparison, as every benchmark of this repository writes it. The
// ratio is the way round in which more is better for us.
type row struct {
	Case      string   `json:"case"`
	Peer      string   `json:"peer,omitempty"`
	Metric    string   `json:"metric"`
	Ours      float64  `json:"ours"`
	Theirs    *float64 `json:"theirs,omitempty"`
	Ratio     *float64 `json:"ratio,omitempty"`
	Rounds    int      `json:"rounds"`
	Discarded int      `json:"discarded"`
	// Disturbed says that rounds count although other processes ran beside them.
	Disturbed bool `json:"disturbed,omitempty"`

	spread, target float64
}

// metric is a figure of a round.
type metric struct {
	name       string
	moreIsMore bool // a larger one is better
}

var (
	cpuPerQuery = metric{"cpu_us", false}
	rate        = metric{"qps", true}
	p99         = metric{"p99_us", false}
	p99Quiet    = metric{"p99_quiet_us", false}
)

// series are the figures of one case, server and metric, one for each round.
type series struct {
	values    []float64
	discarded int
	disturbed bool
}

func (s *series) median() float64 {
	sorted := slices.Sorted(slices.Values(s.values))
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// spread is how far the quartiles lie apart, as a share of the median.
func (s *series) spread() float64 {
	sorted := slices.Sorted(slices.Values(s.values))
	n := len(sorted)
	if n < 2 {
		return 0
	}
	return (sorted[(3*(n-1)+2)/4] - sorted[(n-1)/4]) / s.median()
}

// compare makes the row of our figures and a peer's, which may be nil.
func compare(name, peer string, m metric, us, them *series, target float64) row {
	r := row{Case: name, Metric: m.name, Ours: round(us.median()), Rounds: len(us.values), Discarded: us.discarded, Disturbed: us.disturbed, spread: us.spread()}
	if them == nil {
		return r
	}
	theirs, ratio := them.median(), us.median()/them.median()
	if !m.moreIsMore {
		ratio = 1 / ratio
	}
	theirs, ratio = round(theirs), round(ratio)
	r.Peer, r.Theirs, r.Ratio, r.target = peer, &theirs, &ratio, target
	r.Rounds, r.Discarded, r.spread = min(r.Rounds, len(them.values)), r.Discarded+them.discarded, max(r.spread, them.spread())
	r.Disturbed = r.Disturbed || them.disturbed
	return r
}

// round keeps four digits, for the others are noise.
func round(v float64) float64 {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	unit := math.Pow(10, math.Floor(math.Log10(math.Abs(v)))-3)
	return math.Round(v/unit) * unit
}

// writeJSON writes the rows to a file.
func writeJSON(file string, rows []row) error {
	text, err := json.MarshalIndent(rows, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// writeTable writes the rows for a person.
func writeTable(w io.Writer, rows []row) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "case\tpeer\tmetric\tours\ttheirs\tratio\ttarget\tspread\trounds\tdiscarded")
	for _, r := range rows {
		theirs, ratio, target := "", "", ""
		if r.Theirs != nil {
			theirs, ratio = fmt.Sprintf("%.4g", *r.Theirs), fmt.Sprintf("%.2f", *r.Ratio)
		}
		if r.target > 0 && r.Ratio != nil {
			verdict := "reached"
			if *r.Ratio < r.target {
				verdict = "missed"
			}
			target = fmt.Sprintf("%.1f %s", r.target, verdict)
		}
		disturbed := ""
		if r.Disturbed {
			disturbed = " disturbed"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%.4g\t%s\t%s\t%s\t±%.0f%%\t%d%s\t%d\n", r.Case, r.Peer, r.Metric, r.Ours, theirs, ratio, target, 50*r.spread, r.Rounds, disturbed, r.Discarded)
	}
	_ = table.Flush() // a terminal
}
