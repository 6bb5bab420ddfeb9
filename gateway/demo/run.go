package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Run starts a demo, prints what there is to try, and ends with ctx.
func Run(ctx context.Context, o Options) error {
	if err := announce(o.Out); err != nil {
		return err
	}
	d, err := Start(ctx, o)
	if err != nil {
		return err
	}
	if err := d.print(o.Out); err != nil {
		d.Stop()
		return errors.Join(err, d.Wait())
	}
	return d.Wait()
}

// Check starts a demo, runs the lines that it prints, prints each with its outcome, and ends. It reports whether all of
// them worked.
func Check(ctx context.Context, o Options) (ok bool, err error) {
	if err := announce(o.Out); err != nil {
		return false, err
	}
	d, err := Start(ctx, o)
	if err != nil {
		return false, err
	}
	ok, err = d.check(ctx, o.Out)
	d.Stop()
	return ok, errors.Join(err, d.Wait())
}

func announce(w io.Writer) error {
	_, err := fmt.Fprintln(w, "Starting a gateway and two confidential VMs, all simulated, in this process …")
	return err
}

// print says what runs and what to try.
func (d *Demo) print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Ready after %s. The TEE is simulated: everything is the real code, but nothing here proves anything about hardware.\n\n", d.took.Round(100*time.Millisecond))
	fmt.Fprintf(&b, "  %-6s  %s\n", "APP", "URL")
	for _, c := range d.cvms {
		fmt.Fprintf(&b, "  %-6s  %s\n", c.name, d.url(c))
	}
	fmt.Fprintf(&b, "\n  root of the certificates       %s\n  root of the simulated TDX      %s\n", d.CAFile(), d.RootFile())
	if d.temporary {
		b.WriteString("  both vanish at the end; --data DIR keeps them, and all state\n")
	}
	b.WriteString("\nTry, in another terminal:\n\n")
	for _, line := range d.Lines() {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	fmt.Fprintf(&b, "\nPut an app of your own beside them, as one that listens on port 3000:\n\n  %s\n", shell(d.Join("3000")))
	b.WriteString("\nCtrl-C ends it.\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// check runs every line.
func (d *Demo) check(ctx context.Context, w io.Writer) (ok bool, err error) {
	ok = true
	for _, line := range d.Lines() {
		out, how, failed := line.run(ctx)
		verdict := "ok"
		if failed != nil {
			ok, verdict = false, "FAILED: "+failed.Error()
		}
		if how != "" {
			verdict += " (" + how + ")"
		}
		if _, err := fmt.Fprintf(w, "\n$ %s\n%s\n%s\n", line, indent(out), verdict); err != nil {
			return false, err
		}
	}
	closing := "\nEverything that the demo prints works."
	if !ok {
		closing = "\nNot everything works; -v shows the log."
	}
	_, err = fmt.Fprintln(w, closing)
	return ok, err
}

// indent sets off a command's output.
func indent(out string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(out, "\n"), "\n", "\n  ")
}
