package verify

import (
	"fmt"
	"io"
	"strings"
	"time"

	"dstack.host/ratls"
)

// marks stand before each check, in one column.
var marks = map[ratls.Status]string{ratls.Pass: "✓", ratls.Fail: "✗", ratls.Skip: "–"}

// colours are those of a terminal (ECMA-48 SGR).
var colours = map[ratls.Status]string{ratls.Pass: "\x1b[32m", ratls.Fail: "\x1b[1;31m", ratls.Skip: "\x1b[2m"}

const plain = "\x1b[0m"

// Print writes the result for a person: the hops of the way, and below each one line a check.
func (r *Result) Print(w io.Writer) error { return r.print(w, false) }

// PrintColour does so for a terminal.
func (r *Result) PrintColour(w io.Writer) error { return r.print(w, true) }

func (r *Result) print(w io.Writer, colour bool) error {
	var b strings.Builder
	fmt.Fprintln(&b, printable(r.URL))
	if r.Replayed {
		fmt.Fprintf(&b, "replayed as of %s from a bundle of %s: that its nonce was fresh, its connection and what DNS said are the word of whoever made it\n", stamp(r.Time), stamp(r.Collected))
	}
	hop := ""
	for _, c := range r.Checks {
		if c.Hop != hop {
			hop = c.Hop
			fmt.Fprintln(&b, printable(hop))
		}
		state := fmt.Sprintf("%s %-4s", marks[c.Status], c.Status)
		if colour {
			state = colours[c.Status] + state + plain
		}
		fmt.Fprintf(&b, "  %s  %-20s  %s\n", state, c.Name, printable(c.Detail))
	}
	verdict := r.verdict()
	if colour {
		verdict = colours[r.Verdict] + verdict + plain
	}
	fmt.Fprintln(&b, verdict)
	_, err := io.WriteString(w, b.String())
	return err
}

// verdict is the last line.
func (r *Result) verdict() string {
	var failed []string
	for _, c := range r.Checks {
		if c.Status == ratls.Fail {
			failed = append(failed, c.Name)
		}
	}
	switch {
	case !r.OK():
		return "NOT VERIFIED: " + strings.Join(failed, ", ")
	case r.Simulated:
		return "verified, but the TEE is SIMULATED: this proves nothing about hardware"
	}
	return "verified"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
