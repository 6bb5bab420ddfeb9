package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// launched starts the program and returns it when the first line of its output is there.
func launched(t *testing.T, args ...string) (c *exec.Cmd, lines *bufio.Reader, errs *bytes.Buffer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	c, errs = exec.CommandContext(ctx, os.Args[0], args...), new(bytes.Buffer)
	c.Env, c.Stderr = append(os.Environ(), asProgram+"=1"), errs
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(out), errs
}

// freePorts are flags for a demo beside others.
func freePorts(t *testing.T) []string {
	t.Helper()
	var flags []string
	for _, flag := range []string{"--https", "--dns", "--rpc", "--wireguard"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		flags = append(flags, flag, fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
	}
	return flags
}

// TestAnInterruptIsNoFailure while the demo starts, and when it runs.
func TestAnInterruptIsNoFailure(t *testing.T) {
	for _, until := range []string{"Starting", "Ready", "Ctrl-C ends it"} {
		t.Run(until, func(t *testing.T) {
			c, lines, errs := launched(t, append([]string{"demo"}, freePorts(t)...)...)
			for line := ""; !strings.Contains(line, until); {
				var err error
				if line, err = lines.ReadString('\n'); err != nil {
					t.Fatalf("it ended before %q: %v\n%s", until, err, errs)
				}
			}
			if err := c.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			if err := c.Wait(); err != nil || errs.Len() > 0 {
				t.Errorf("%v\n%s", err, errs)
			}
		})
	}
}
