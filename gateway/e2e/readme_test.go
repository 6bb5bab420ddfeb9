package e2e

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// command is one line of a console block of the README with the output that it shows.
type command struct{ line, output string }

// commands reads the console blocks of the README.
func commands(t *testing.T) []command {
	t.Helper()
	text, err := os.ReadFile(root + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []command
	in := false
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(line, "```"):
			in = strings.TrimSpace(line) == "```console"
		case in && strings.HasPrefix(line, "$ "):
			all = append(all, command{line: strings.TrimSpace(line[2:])})
		case in && len(all) > 0:
			all[len(all)-1].output += line
		}
	}
	return all
}

// varying is what differs from run to run.
var varying = []struct {
	what *regexp.Regexp
	as   string
}{
	{regexp.MustCompile(`\S*/dstack-demo-[0-9]+`), "/tmp/dstack-demo-N"},
	{regexp.MustCompile(`Ready after \S+`), "Ready after T."},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?`), "DATE"},
	{regexp.MustCompile(`\b[0-9a-f]{64,96}\b`), "HEX"},
	{regexp.MustCompile(`[A-Za-z0-9+/]{43}=`), "KEY"},
	{regexp.MustCompile(`\d+ bytes`), "N bytes"},
	{regexp.MustCompile(`issued below "[^"]*"`), `issued below "CA"`},
}

func steady(text string) string {
	for _, v := range varying {
		text = v.what.ReplaceAllString(text, v.as)
	}
	return text
}

// TestTheReadmeShowsWhatItsCommandsPrint runs every command of the README in a shell, as a newcomer does.
func TestTheReadmeShowsWhatItsCommandsPrint(t *testing.T) {
	for _, port := range []string{"8443", "5353", "8000"} {
		listener, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Skipf("the README's ports are in use on this machine: %v", err)
		}
		_ = listener.Close()
	}
	all := commands(t)
	if len(all) < 4 || all[0].line != "make demo" {
		t.Fatalf("the README's commands are %v", all)
	}
	printed := makeDemo(t)
	if diff := cmp.Diff(steady(all[0].output), steady(printed)[:min(len(steady(all[0].output)), len(steady(printed)))]); diff != "" {
		t.Errorf("make demo (-README +printed):\n%s", diff)
	}
	shown, dir := regexp.MustCompile(`\S*/dstack-demo-[0-9]+`).FindString(all[0].output), regexp.MustCompile(`\S*/dstack-demo-[0-9]+`).FindString(printed)
	for _, c := range all[1:] {
		tool := strings.Fields(c.line)[0]
		if _, err := exec.LookPath(tool); err != nil && !strings.HasPrefix(tool, "./") {
			t.Logf("%s is not installed: not run: %s", tool, c.line)
			continue
		}
		run := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(c.line, shown, dir))
		run.Dir = root
		out, err := run.CombinedOutput()
		if diff := cmp.Diff(steady(c.output), steady(string(out))); diff != "" || err != nil {
			t.Errorf("%s: %v (-README +printed):\n%s\n%s", c.line, err, diff, out)
		}
	}
}

// makeDemo runs make demo until the test ends, and returns what it prints first.
func makeDemo(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	c := exec.CommandContext(ctx, "make", "--no-print-directory", "demo")
	c.Dir = root
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Stderr = testLog{t}
	c.WaitDelay = 10 * time.Second
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGINT) // as Ctrl-C does: the whole group
		_, _ = io.Copy(io.Discard, out)
		_ = c.Wait() // make itself ends by the signal
		cancel()
	})
	var printed strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		printed.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "Ctrl-C") {
			return printed.String()
		}
	}
	t.Fatalf("make demo ended early:\n%s", printed.String())
	return ""
}
