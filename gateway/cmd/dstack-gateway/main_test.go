package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dstack.host/gateway/demo"
)

// asProgram makes the test binary be the program.
const asProgram = "DSTACK_GATEWAY_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// program runs the program with arguments to its end.
func program(t *testing.T, args ...string) (out, errs string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0], args...)
	c.Env = append(os.Environ(), asProgram+"=1")
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := c.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return stdout.String(), stderr.String(), c.ProcessState.ExitCode()
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gateway.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// kept is a bundle of a demo, and roots the flags that accept it.
const (
	kept  = "../../verify/testdata/bundle.json"
	roots = " --ca ../../verify/testdata/ca.pem --simulated-root ../../verify/testdata/simulated-tdx-root.pem "
)

func TestOutcomesAreTold(t *testing.T) {
	wrong := write(t, "base_domains = [\"x\"]\nnode = 1\n")
	pinned := write(t, "[apps]\nkey_provider = [\"kms\"]\n")
	unmeasured := write(t, "[gateway]\nos_image_hash = [\""+strings.Repeat("00", 32)+"\"]\n")
	hardware := write(t, "base_domains = [\"dstack.example.com\"]\ndata_dir = \""+t.TempDir()+"\"\ndns.addresses = [\"203.0.113.5\"]\ntunnel.endpoint = \"203.0.113.5:51820\"\n")
	for _, row := range []struct {
		name, args string
		code       int
		out, errs  string
	}{
		{"no arguments", "", 0, "Available Commands:", ""},
		{"help", "verify --help", 0, "--simulated-root FILE", ""},
		{"unknown command", "bogus", 2, "", `unknown command "bogus"`},
		{"unknown flag", "demo --bogus", 2, "", "unknown flag: --bogus"},
		{"argument too many", "serve here", 2, "", `unknown command "here"`},
		{"no file", "check-config -c /nonexistent/gateway.toml", 2, "", "name the configuration with -c FILE"},
		{"good configuration", "check-config -c ../../../configs/gateway.toml", 0, "no faults", ""},
		{"all faults at once", "check-config -c " + wrong, 1, "", "gateway.toml:2: node: wants a text in quotes"},
		{"serve tells the same", "serve -c " + wrong, 1, "", `gateway.toml:1: base_domains: "x" is not a domain`},
		{"serve without hardware", "serve -c " + hardware, 2, "", `attestation.kind = "simulated-tdx"`},
		{"nothing listens", "verify https://127.0.0.1:1", 2, "", "connection refused"},
		{"not a URL", "verify ftp://x", 2, "", "is not an https URL"},
		{"no such root file", "verify --ca /nonexistent https://127.0.0.1:1", 2, "", "no such file"},
		{"resolver without an address", "verify --resolver dns https://127.0.0.1:1", 2, "", "is not the address of a resolver"},
		{"no such policy", "verify --policy /nonexistent https://127.0.0.1:1", 2, "", "no such file"},
		{"faults of a policy", "verify --policy " + wrong + " https://127.0.0.1:1", 2, "", "gateway.toml:2: node: no such key"},
		{"a file that is no bundle", "verify " + wrong, 2, "", "gateway.toml: bundle: JSON"},
		{"a time for a URL", "verify --at now https://127.0.0.1:1", 2, "", "--at judges a bundle"},
		{"a bundle of a bundle", "verify --bundle x " + kept, 2, "", "need a URL"},
		{"resolvers for a bundle", "verify --resolver 192.0.2.53 " + kept, 2, "", "need a URL"},
		{"no time", "verify --at yesterday " + kept, 2, "", `--at "yesterday" is no time`},
		{"a bundle at its own time", "verify" + roots + kept, 0, "replayed as of 2026-", ""},
		{"a bundle without its roots", "verify " + kept, 1, "NOT VERIFIED: tls-certificate, gateway-quote", ""},
		{"a bundle long after", "verify --at 2126-01-01T00:00:00Z" + roots + kept, 1, "NOT VERIFIED: ", ""},
		{"a bundle by a policy", "verify --policy " + pinned + roots + kept, 1, "NOT VERIFIED: app-measurements", ""},
		{"an image hash that pins nothing", "verify --policy " + unmeasured + " https://127.0.0.1:1", 2, "", "gateway.os_image_hash: is covered by no quote"},
		{"no exporter mode", "verify --exporter maybe https://127.0.0.1:1", 2, "", "want require, auto or off"},
		{"short nonce", "verify --nonce 00ff https://127.0.0.1:1", 2, "", "want 64 hex digits"},
		{"a nonce for a bundle", "verify --nonce " + strings.Repeat("00", 32) + " " + kept, 2, "", "need a URL"},
		{"DNS asked and not", "verify --skip-dns --dnssec https://127.0.0.1:1", 2, "", "choose"},
		{"a root that can be none", "verify --simulated-root ../../verify/testdata/ca.pem https://127.0.0.1:1", 2, "", "--simulated-root ../../verify/testdata/ca.pem: "},
		{"root file without a root", "verify --simulated-root " + wrong + " https://127.0.0.1:1", 2, "", "holds no certificate in PEM"},
	} {
		t.Run(row.name, func(t *testing.T) {
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

func TestVerifyExitsByItsVerdict(t *testing.T) {
	d, err := demo.Start(t.Context(), demo.Options{Base: demo.DefaultBase})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		d.Stop()
		if err := d.Wait(); err != nil {
			t.Error(err)
		}
	}()
	url := d.Apps()[0].URL
	good := []string{"verify", "--ca", d.CAFile(), "--simulated-root", d.RootFile()}
	for _, row := range []struct {
		name   string
		args   []string
		code   int
		failed string
	}{
		{"everything accepted", append(good, url), 0, ""},
		{"at the instance's name", append(good, strings.Replace(url, d.Apps()[0].ID.String(), d.Apps()[0].Instance.String(), 1)), 0, ""},
		{"the gateway itself", append(good, strings.Replace(url, d.Apps()[0].ID.String(), "gateway", 1)), 0, ""},
		{"the certificate's root unknown", []string{"verify", "--simulated-root", d.RootFile(), url}, 1, "tls-certificate"},
		{"simulated evidence not accepted", []string{"verify", "--ca", d.CAFile(), url}, 1, "gateway-quote"},
		{"no such app", append(good, strings.Replace(url, d.Apps()[0].ID.String(), strings.Repeat("0", 40), 1)), 1, "document"},
	} {
		t.Run(row.name, func(t *testing.T) {
			out, errs, code := program(t, append(row.args, "--json")...)
			var result struct {
				Verdict   string
				Simulated bool
				Checks    []struct{ Name, Status, Detail string }
			}
			if err := json.Unmarshal([]byte(out), &result); err != nil {
				t.Fatalf("%v\n%s\n%s", err, out, errs)
			}
			failed := ""
			for _, c := range result.Checks {
				if c.Status == "fail" {
					failed = c.Name
				}
			}
			if code != row.code || failed != row.failed || (result.Verdict == "pass") != (row.code == 0) {
				t.Errorf("exit %d, verdict %s, failed %q; want %d and %q\n%s", code, result.Verdict, failed, row.code, row.failed, out)
			}
		})
	}
}

func TestABundleIsJudgedAgainWithTheSameVerdict(t *testing.T) {
	d, err := demo.Start(t.Context(), demo.Options{Base: demo.DefaultBase})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		d.Stop()
		if err := d.Wait(); err != nil {
			t.Error(err)
		}
	}()
	file := filepath.Join(t.TempDir(), "seen.json")
	roots := []string{"--ca", d.CAFile(), "--simulated-root", d.RootFile()}
	for _, url := range []string{d.Apps()[0].URL, strings.Replace(d.Apps()[0].URL, d.Apps()[0].ID.String(), "gateway", 1)} {
		first, errs, code := program(t, append([]string{"verify", "--resolver", d.Gateway().DNSAddr().String(), "--bundle", file, url}, roots...)...)
		if code != 0 {
			t.Fatalf("exit %d\n%s\n%s", code, first, errs)
		}
		again, errs, code := program(t, append([]string{"verify", file}, roots...)...)
		lines := strings.SplitN(again, "\n", 3) // the second says what a replay is
		if code != 0 || len(lines) != 3 || lines[0]+"\n"+lines[2] != first {
			t.Errorf("exit %d\n%s\n%s\nfirst\n%s", code, again, errs, first)
		}
	}
}

func TestDemoEndsCleanlyOnInterrupt(t *testing.T) {
	temporary := t.TempDir()
	c := exec.CommandContext(t.Context(), os.Args[0], "demo", "--https", "0", "--dns", "0", "--rpc", "0", "--wireguard", "0")
	c.Env = append(os.Environ(), asProgram+"=1", "TMPDIR="+temporary)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan() && !strings.HasPrefix(lines.Text(), "Ctrl-C"); {
	}
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil || stderr.Len() > 0 {
		t.Errorf("it ended with %v and said %q", err, stderr.String())
	}
	if left, _ := filepath.Glob(temporary + "/dstack-demo-*"); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}
