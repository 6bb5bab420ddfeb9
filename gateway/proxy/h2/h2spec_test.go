package h2_test

import (
	"context"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// h2spec is built where it can be had rather than required: it would bring its dependencies into go.mod.
const h2spec = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"

// TestH2spec holds the engine to every case of h2spec, strict ones included.
func TestH2spec(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds a tool")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	tool := filepath.Join(t.TempDir(), "h2spec")
	install := exec.CommandContext(ctx, "go", "install", h2spec)
	install.Env = append(install.Environ(), "GOBIN="+filepath.Dir(tool), "GOFLAGS=-mod=mod")
	install.Dir = t.TempDir()
	if out, err := install.CombinedOutput(); err != nil {
		t.Skipf("h2spec cannot be had: %v\n%s", err, out)
	}
	o := handler(t, func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("hello, this is an app")) })
	f := serve(t, h2Config(), to(o))
	host, port, err := net.SplitHostPort(f.addr)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, tool, "-h", host, "-p", port, "--strict", "-o", "5", "--max-header-length", "4000").CombinedOutput()
	summary := regexp.MustCompile(`\d+ tests, \d+ passed, \d+ skipped, \d+ failed`).FindString(string(out))
	if err != nil || !strings.Contains(summary, " 0 skipped, 0 failed") {
		t.Errorf("%v\n%s", err, out)
	}
	t.Log(summary)
}
