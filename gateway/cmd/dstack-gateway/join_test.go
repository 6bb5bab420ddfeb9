package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"dstack.host/gateway/demo"
)

// gatewayApp is the app id of simulated gateways.
const gatewayApp = "79aafb8e14b2417dc58165c9fc710693fd71f2b3"

func TestJoinTellsWhatIsMissing(t *testing.T) {
	t.Setenv("DSTACK_AGENT_ADDRESS", "")
	wrong := write(t, "[gateway]\nkey_provider = 1\n")
	loose := write(t, "max_age = \"2h\"\n")
	const url, nowhere = " https://127.0.0.1:1", " --socket none --agent none"
	trusted := " --gateway-app " + gatewayApp
	for _, row := range []struct {
		name, args string
		code       int
		out, errs  string
	}{
		{"help", "join --help", 0, "Exit status: 0 when", ""},
		{"nothing said", "join", 2, "", "give its URL"},
		{"nothing said: every fault at once", "join", 2, "", "nothing could be reached"},
		{"nobody trusted", "join --to 3000" + url, 2, "", "no gateway is trusted"},
		{"a policy that pins nothing", "join --to 3000 --policy " + loose + url, 2, "", "no gateway is trusted"},
		{"faults of a policy", "join --to 3000 --policy " + wrong + url, 2, "", "gateway.toml:2: gateway.key_provider"},
		{"no CA", "join --to 3000 --ca /nonexistent" + url, 2, "", "no such file"},
		{"a CA without a certificate", "join --to 3000 --ca " + wrong + url, 2, "", "no certificate in PEM"},
		{"no app id", "join --to 3000 --gateway-app any" + url, 2, "", `"any" is not an app id`},
		{"nothing reachable", "join" + trusted + url, 2, "", "nothing could be reached"},
		{"no such port", "join --port 65536" + trusted + url, 2, "", "no port from 1 to 65535"},
		{"no such target", "join --to app" + trusted + url, 2, "", "want [PORT=]HOST:PORT"},
		{"no TLS", "join --to 3000" + trusted + " http://127.0.0.1:1", 2, "", "want https://"},
		{"no address", "join --to 3000 --listen 51820" + trusted + url, 2, "", "--listen"},
		{"no such level", "join --to 3000 --log-level loud" + trusted + url, 2, "", "loud"},
		{"no hardware", "join --to 3000" + nowhere + trusted + url, 1, "", "configfs-tsm"},
		{"no authority", "join --to 3000 --simulated /nonexistent" + nowhere + trusted + url, 1, "", "no such file"},
		{"no guest agent", "join --to 3000 --agent /nonexistent --socket none" + trusted + url, 1, "", "guest agent: Info"},
		{"health of nobody", "join --health --socket /nonexistent", 1, "", "no join answers at /nonexistent"},
		{"health of a URL", "join --health" + url, 2, "", "takes no URL"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.name == "no hardware" {
				if _, err := os.Stat("/sys/kernel/config/tsm/report"); err == nil {
					t.Skip("there is hardware")
				}
			}
			out, errs, code := program(t, strings.Fields(row.args)...)
			if code != row.code || !strings.Contains(out, row.out) || !strings.Contains(errs, row.errs) {
				t.Errorf("exit %d\n%s\n%s\nwant %d, %q and %q", code, out, errs, row.code, row.out, row.errs)
			}
			if strings.Contains(errs, "goroutine ") {
				t.Error("it panicked")
			}
		})
	}
}

// process is the program that runs beside a test.
type process struct {
	*exec.Cmd
	out   io.Reader
	ended bool
}

// prepare has the program end with the test, and with what it says on standard error in the test's log when that fails.
func prepare(t *testing.T, c *exec.Cmd) *process {
	t.Helper()
	c.Env = append(os.Environ(), asProgram+"=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	c.Stderr = &errs
	p := &process{Cmd: c, out: out}
	t.Cleanup(func() {
		p.end()
		if t.Failed() {
			t.Logf("%v:\n%s", c.Args, errs.String())
		}
	})
	return p
}

// until returns what is printed up to a line that has what.
func (p *process) until(t *testing.T, what string) (printed string) {
	t.Helper()
	late := time.AfterFunc(60*time.Second, func() { _ = p.Process.Kill() })
	defer late.Stop()
	for lines := bufio.NewScanner(p.out); lines.Scan(); {
		printed += lines.Text() + "\n"
		if strings.Contains(lines.Text(), what) {
			return printed
		}
	}
	t.Fatalf("%v ended with %d:\n%s", p.Args, p.end(), printed)
	return ""
}

// end tells a process that was started to end, and returns the status that it ended with.
func (p *process) end() int {
	if !p.ended && p.Process != nil {
		p.ended = true
		_ = p.Process.Signal(syscall.SIGTERM)
		_, _ = io.Copy(io.Discard, p.out)
		_ = p.Wait()
	}
	return p.ProcessState.ExitCode()
}

// socketFolder is a folder whose name is short enough for sockets.
func socketFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "join-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestJoinPutsAnAppBesideTheDemos(t *testing.T) {
	d, err := demo.Start(t.Context(), demo.Options{Program: os.Args[0], Base: demo.DefaultBase})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		d.Stop()
		if err := d.Wait(); err != nil {
			t.Error(err)
		}
	}()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "my own app") }))
	defer web.Close()
	socket := filepath.Join(socketFolder(t), "s")
	told := d.Join(web.Listener.Addr().String()) // what a demo prints
	join := exec.CommandContext(t.Context(), told[0], append(told[1:], "--socket", socket)...)
	running := prepare(t, join)
	if err := join.Start(); err != nil {
		t.Fatal(err)
	}
	printed := running.until(t, "Ctrl-C leaves")
	url := regexp.MustCompile(`https://\S+`).FindString(printed)
	if url == "" || !strings.Contains(printed, "SIMULATED") {
		t.Fatalf("printed\n%s", printed)
	}
	if out, errs, code := program(t, "join", "--health", "--socket", socket); code != 0 || !strings.HasPrefix(out, "healthy: ") {
		t.Errorf("health: exit %d\n%s%s", code, out, errs)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for body := ""; body != "my own app"; { // the gateway looks for handshakes a few times a second
		if body, err = d.Get(ctx, url, false); ctx.Err() != nil {
			t.Fatalf("%s: %q %v", url, body, err)
		}
	}
	if out, errs, code := program(t, "verify", "--ca", d.CAFile(), "--simulated-root", d.RootFile(), "--resolver", d.Gateway().DNSAddr().String(), "--fresh-app", url); code != 0 {
		t.Errorf("verify: exit %d\n%s%s", code, out, errs)
	}
	if code := running.end(); code != 0 {
		t.Errorf("told to stop, it ended with %d", code)
	}
	if out, _, code := program(t, "join", "--health", "--socket", socket); code != 1 || out != "" {
		t.Errorf("health after the end: exit %d, %s", code, out)
	}
}

// TestSamplesCallJoinRightly runs what the samples run, as far as that goes without hardware: to the reading of a quote.
func TestSamplesCallJoinRightly(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/config/tsm/report"); err == nil {
		t.Skip("there is hardware, and the samples would join")
	}
	unit := sample(t, "dstack-gateway-join.service", `(?m)^ExecStart=/usr/bin/dstack-gateway (.*)$`)
	compose := sample(t, "join.compose.yaml", `(?m)^ +command: \[(.*)\]$`)
	for name, args := range map[string][]string{"unit": strings.Fields(unit), "compose": strings.FieldsFunc(compose, func(r rune) bool { return strings.ContainsRune(`", `, r) })} {
		_, errs, code := program(t, append(args, "--agent", "none", "--socket", "none")...)
		if code != exitFailed || !strings.Contains(errs, "configfs-tsm") {
			t.Errorf("%s: %q: exit %d, %s", name, args, code, errs)
		}
	}
	check := sample(t, "join.compose.yaml", `(?m)^ +test: \["CMD", "/usr/bin/dstack-gateway", (.*)\]$`)
	if check != `"join", "--health"` {
		t.Errorf("the health check runs %s", check)
	}
}

// sample returns what the expression's group finds in a file of configs/.
func sample(t *testing.T, file, expression string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "configs", file))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(expression).FindStringSubmatch(string(text))
	if found == nil {
		t.Fatalf("%s has nothing like %s", file, expression)
	}
	return found[1]
}
