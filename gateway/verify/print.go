package verify

import (
	"fmt"
	"io"
)

// Print writes the result for a person, one line a check.
func (r *Result) Print(w io.Writer) error {
	verdict := "verified"
	if !r.OK() {
		verdict = "NOT VERIFIED"
	}
	if _, err := fmt.Fprintf(w, "%s\n", r.URL); err != nil {
		return err
	}
	for _, c := range r.Checks {
		if _, err := fmt.Fprintf(w, "  %-4s  %-20s  %s\n", c.Status, c.Name, printable(c.Detail)); err != nil {
			return err
		}
	}
	if r.Simulated {
		verdict += ", but the TEE is SIMULATED: this proves nothing about hardware"
	}
	if failed, ok := r.Failure(); ok {
		verdict += ": " + failed.Name
	}
	_, err := fmt.Fprintln(w, verdict)
	return err
}
