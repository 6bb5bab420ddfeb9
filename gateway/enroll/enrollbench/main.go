//go:build linux

// Command enrollbench measures registration on a whole gateway in this process, over TLS on the loopback interface: `make bench-enroll`.
//
//	refresh             registrations that change nothing, 64 at once, each guest on a connection that stays open
//	refresh-connection  the same as dstack's guests do it, each on a connection of its own
//	first               first registrations, with the collateral at hand: they are bounded by verifying quotes
//	proxy, proxy-churn  requests through proxy and tunnel at a constant rate, alone and while instances register with new keys
//
// Client and gateway share the CPUs. Rounds of all cases alternate; one in which other processes used more than a tenth of a CPU
// is done again, and if that happens too often it counts, and the row says so.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"text/tabwriter"
	"time"
)

type options struct {
	rounds   int
	duration time.Duration
	out      string
	noise    float64
}

// row is one figure, as every benchmark of this repository writes it.
type row struct {
	Case      string  `json:"case"`
	Metric    string  `json:"metric"`
	Ours      float64 `json:"ours"`
	Rounds    int     `json:"rounds"`
	Discarded int     `json:"discarded"`
	Disturbed bool    `json:"disturbed,omitempty"` // rounds count although other processes ran beside them
}

// figures are those of one round, by metric.
type figures map[string]float64

// scenario is one case; run measures one round.
type scenario struct {
	name string
	run  func(context.Context, time.Duration) (figures, error)
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 3, "rounds of each case")
	flag.DurationVar(&o.duration, "duration", 5*time.Second, "length of a round")
	flag.StringVar(&o.out, "o", "bench-enroll.json", "file for the rows")
	flag.Float64Var(&o.noise, "noise", 0.1, "CPUs that other processes may use in a round")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-enroll:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	b, err := start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	var rows []row
	cases := b.scenarios()
	measured := make([]series, len(cases))
	for range o.rounds {
		for i, c := range cases {
			if err := measured[i].round(ctx, o, c); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	for i, c := range cases {
		rows = append(rows, measured[i].rows(c.name)...)
	}
	return report(o.out, rows)
}

// series are the rounds of one case.
type series struct {
	rounds    []figures
	discarded int
	disturbed bool
}

// maxDiscarded is how many rounds of a case are done again before the machine is taken as it is.
const maxDiscarded = 3

func (s *series) round(ctx context.Context, o options, c scenario) error {
	for {
		m, err := startMeter()
		if err != nil {
			return err
		}
		f, err := c.run(ctx, o.duration)
		if err != nil {
			return err
		}
		others, err := m.others()
		if err != nil {
			return err
		}
		if others > o.noise && s.discarded < maxDiscarded {
			s.discarded++
			continue
		}
		s.disturbed = s.disturbed || others > o.noise
		s.rounds = append(s.rounds, f)
		return nil
	}
}

func (s *series) rows(name string) (rows []row) {
	metrics := map[string][]float64{}
	for _, f := range s.rounds {
		for metric, value := range f {
			metrics[metric] = append(metrics[metric], value)
		}
	}
	for metric, values := range metrics {
		slices.Sort(values)
		n := len(values)
		rows = append(rows, row{name, metric, (values[(n-1)/2] + values[n/2]) / 2, n, s.discarded, s.disturbed})
	}
	slices.SortFunc(rows, func(a, b row) int {
		if a.Metric < b.Metric {
			return -1
		}
		return 1
	})
	return rows
}

func report(file string, rows []row) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "case\tmetric\tours\trounds\tdiscarded\tdisturbed\t")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%d\t%d\t%t\t\n", r.Case, r.Metric, r.Ours, r.Rounds, r.Discarded, r.Disturbed)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	text, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
