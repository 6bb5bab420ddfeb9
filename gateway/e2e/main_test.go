package e2e

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"dstack.host/dnsserver"
	"dstack.host/gateway/demo"
	"dstack.host/gateway/registry"
	"dstack.host/ratls"
)

// testLog shows a component's log lines with the test that caused them.
type testLog struct{ t *testing.T }

func (l testLog) Write(line []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(line), "\n"))
	return len(line), nil
}

func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// leakless fails the test when goroutines are left at its end. It has to be called first: what is deferred later ends
// before.
func leakless(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// start runs a demo on free ports until the test ends.
func start(t *testing.T, o demo.Options) *demo.Demo {
	t.Helper()
	o.Base, o.Program = demo.DefaultBase, "dstack-gateway"
	if o.Logger == nil {
		o.Logger = logger(t)
	}
	d, err := demo.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, d) })
	return d
}

func stop(t *testing.T, d *demo.Demo) {
	t.Helper()
	d.Stop()
	if err := d.Wait(); err != nil {
		t.Errorf("the demo ended with %v", err)
	}
}

// nobody is the id of an app that is not registered.
const nobody = "00000000000000000000000000000000deadbeef"

// consistent holds every view of the state against every other: each registered app answers at all its names, over both
// protocols; nobody else does; DNS, tunnel peers and registry agree; and the attestation verifies on the connection. The peerless are
// instances that the tunnel can't take.
func consistent(t *testing.T, d *demo.Demo, peerless ...registry.InstanceID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	peersAreInstances(t, d, peerless...)
	for _, app := range d.Apps() {
		inst := d.Gateway().Snapshot().Instance(app.Instance)
		if inst == nil {
			t.Fatalf("app %s is not registered", app.Name)
		}
		for _, label := range []string{app.ID.String(), app.Instance.String(), inst.Compose.String(), strings.ToUpper(app.ID.String()), "0x" + app.ID.String(), app.ID.String() + "-80"} {
			url := strings.Replace(app.URL, app.ID.String(), label, 1)
			for _, http2 := range []bool{false, true} {
				body, err := d.Get(ctx, url, http2)
				if err != nil || !strings.Contains(body, app.ID.String()) && !strings.Contains(strings.ToLower(body), "host: "+strings.ToLower(label)) {
					t.Errorf("%s at %s (HTTP/2 %t): %v %q", app.Name, url, http2, err, body)
				}
			}
			resolves(t, d, label, "NOERROR", "127.0.0.1")
		}
		result, err := d.Verify(ctx, app.URL)
		if err != nil {
			t.Fatal(err)
		}
		if !result.OK() || !result.Simulated {
			var out strings.Builder
			_ = result.Print(&out)
			t.Errorf("verify %s:\n%s", app.URL, out.String())
		}
		// A link that is skipped does not fail, and shows nothing.
		for _, link := range []string{ratls.LinkChallenge, ratls.LinkStatement, ratls.LinkKey, ratls.LinkReplay, ratls.LinkAppIdentity, ratls.LinkAppCompose, ratls.LinkAppBinding, ratls.LinkWireGuardKey} {
			if !slices.ContainsFunc(result.Checks, func(c ratls.Check) bool { return c.Name == link && c.Status == ratls.Pass }) {
				t.Errorf("verify %s: %s did not pass", app.URL, link)
			}
		}
	}
	for inst := range d.Gateway().Snapshot().Instances() {
		if !slices.Contains(peerless, inst.ID) && !slices.ContainsFunc(d.Apps(), func(a demo.App) bool { return a.Instance == inst.ID }) {
			t.Errorf("instance %s is registered, and was not asked", inst.ID)
		}
	}
	unknown(t, d, ctx)
}

func peersAreInstances(t *testing.T, d *demo.Demo, peerless ...registry.InstanceID) {
	t.Helper()
	var registered, tunneled []string
	for inst := range d.Gateway().Snapshot().Instances() {
		if !slices.Contains(peerless, inst.ID) {
			registered = append(registered, fmt.Sprint(inst.Key, " ", inst.Addr))
		}
	}
	for _, peer := range d.Gateway().Peers() {
		tunneled = append(tunneled, fmt.Sprint(peer.Key, " ", peer.Addr))
	}
	slices.Sort(registered)
	slices.Sort(tunneled)
	if diff := cmp.Diff(registered, tunneled); diff != "" {
		t.Errorf("registered instances and tunnel peers differ (-registered +peers):\n%s", diff)
	}
}

// resolves asks the gateway's DNS server for a name below the base.
func resolves(t *testing.T, d *demo.Demo, label, rcode string, addrs ...string) {
	t.Helper()
	answer, err := dnsserver.Query(t.Context(), d.Gateway().DNSAddr().String(), label+"."+demo.DefaultBase, "A")
	if err != nil || answer.Rcode != rcode || !slices.Equal(answer.Answers, addrs) {
		t.Errorf("%s resolves to %v %v (%v), want %s %v", label, answer.Rcode, answer.Answers, err, rcode, addrs)
	}
}

// unknown asks for an app that nobody registered: a valid TLS session, and the reason.
func unknown(t *testing.T, d *demo.Demo, ctx context.Context) {
	t.Helper()
	resolves(t, d, nobody+"s", "NXDOMAIN") // TLS would be the app's, so there is nobody to answer over it
	for _, label := range []string{nobody, nobody + "-8080", strings.Repeat("a", 52), d.Apps()[0].ID.String() + "-65536", "www"} {
		resolves(t, d, label, "NXDOMAIN")
		if status, _ := ask(t, d, ctx, "https://"+label+"."+demo.DefaultBase+"/", true); status != http.StatusNotFound {
			t.Errorf("%s answers %d, want 404", label, status)
		}
	}
	for _, http2 := range []bool{false, true} {
		status, problem := ask(t, d, ctx, "https://"+nobody+"."+demo.DefaultBase+"/", http2)
		if status != http.StatusNotFound || problem.Reason != "unknown_app" {
			t.Errorf("an unknown app (HTTP/2 %t): %d %q, want 404 unknown_app", http2, status, problem.Reason)
		}
	}
}

// problem is what the tests look at in problem details (RFC 9457).
type problem struct {
	Reason, Hop, Detail string
	RequestID           string `json:"request_id"`
}

// ask fetches a URL that is expected to fail.
func ask(t *testing.T, d *demo.Demo, ctx context.Context, url string, http2 bool) (int, problem) {
	t.Helper()
	client, err := d.Client(http2)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var p problem
	if got := response.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("%s: content type %q, want problem details", url, got)
	} else if err := json.Unmarshal(body, &p); err != nil {
		t.Error(err)
	}
	if _, err := hex.DecodeString(p.RequestID); err != nil || p.RequestID == "" || p.Detail == "" {
		t.Errorf("%s: problem details lack a request id or what to do: %s", url, body)
	}
	return response.StatusCode, p
}
