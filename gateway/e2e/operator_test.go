package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"dstack.host/gateway/demo"
	"dstack.host/ratls"
)

// TestTheOperatorsWordReachesEveryPart overrides a port policy, takes that back, and removes an instance of a running gateway: proxy, DNS, tunnel
// and registry follow.
func TestTheOperatorsWordReachesEveryPart(t *testing.T) {
	leakless(t)
	d := start(t, demo.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	app := d.Apps()[0]
	call := func(method, more string) {
		t.Helper()
		w, body := httptest.NewRecorder(), fmt.Sprintf(`{"instance_id":"%s"%s}`, app.Instance, more)
		d.Gateway().AdminRPC().ServeHTTP(w, httptest.NewRequest("POST", "/prpc/"+method+"?json", strings.NewReader(body)), method)
		if w.Code != http.StatusOK {
			t.Fatalf("%s: %d %s", method, w.Code, w.Body)
		}
	}
	if got := identityOf(t, d, ctx, app.URL); got != ratls.IdentityAttestation {
		t.Errorf("the statement says that the identity rests on %q", got)
	}
	call("SetInstancePortPolicy", `,"policy":{"ports":[{"port":81}],"restrict_mode":true}`)
	if status, p := ask(t, d, ctx, app.URL, true); status != http.StatusForbidden || p.Reason != "port_denied" {
		t.Errorf("a port that the operator closed: %d %s", status, p.Reason)
	}
	call("ClearInstancePortPolicy", "")
	if _, err := d.Get(ctx, app.URL, true); err != nil {
		t.Errorf("a port that is open again: %v", err)
	}
	call("RemoveCvm", "")
	for d.Gateway().TunnelUp(app.Instance) || len(d.Gateway().Peers()) != 1 {
		select {
		case <-ctx.Done():
			t.Fatal("the tunnel keeps the peer")
		case <-time.After(10 * time.Millisecond):
		}
	}
	if status, p := ask(t, d, ctx, app.URL, true); status != http.StatusNotFound || p.Reason != "unknown_app" {
		t.Errorf("an app that was removed: %d %s", status, p.Reason)
	}
	peersAreInstances(t, d)
}

// identityOf is the member identity of the only instance in an app's statement.
func identityOf(t *testing.T, d *demo.Demo, ctx context.Context, url string) string {
	t.Helper()
	_, body := fetch(t, d, ctx, http.MethodGet, strings.TrimSuffix(url, "/")+wellKnown, true, nil)
	var document struct{ Statement string }
	var statement struct {
		App struct{ Instances []struct{ Identity string } }
	}
	if err := json.Unmarshal([]byte(body), &document); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(document.Statement), &statement); err != nil || len(statement.App.Instances) != 1 {
		t.Fatalf("%v: %s", err, document.Statement)
	}
	return statement.App.Instances[0].Identity
}
