package enroll_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/prpc"
	"dstack.host/gateway/registry"
	"dstack.host/ratls/simtdx"
)

func adminCall(t *testing.T, s *prpc.Service, method, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("POST", "/prpc/"+method+"?json", strings.NewReader(body)), method)
	return w.Code, w.Body.String()
}

// TestTheOperatorsPortPolicyComesFirst sets one, registers over it, and takes it back.
func TestTheOperatorsPortPolicyComesFirst(t *testing.T) {
	w := newWorld(t)
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	cert := attested(t, td)
	register(t, w.at, cert, body(key))
	id, s := idOf(t, td).ID, enroll.Admin(w.registry)
	policy := func() *registry.PortPolicy { return w.registry.Snapshot().Instance(id).Policy() }
	named := `{"instance_id":"` + id.String() + `"`
	const reported = `{"ports":[],"restrict_mode":false}`
	for _, step := range []struct{ method, body, want string }{
		{"GetInstancePortPolicy", named + "}", `{"effective":` + reported + `,"source":"instance","instance_reported":` + reported + `,"admin_override":null}`},
		{"Admin.SetInstancePortPolicy", named + `,"policy":{"ports":[{"port":443,"pp":true}],"restrict_mode":true}}`, "null"},
		{"GetInstancePortPolicy", named + "}", `{"effective":{"ports":[{"port":443,"pp":true}],"restrict_mode":true},"source":"admin","instance_reported":` + reported + `,"admin_override":{"ports":[{"port":443,"pp":true}],"restrict_mode":true}}`},
	} {
		if code, got := adminCall(t, s, step.method, step.body); code != http.StatusOK || got != step.want {
			t.Errorf("%s: %d %s, want %s", step.method, code, got, step.want)
		}
	}
	want := &registry.PortPolicy{Restrict: true, Ports: []registry.Port{{Port: 443, Proxy: true}}}
	for name, again := range map[string]func(){
		"a refresh": func() { register(t, w.at, cert, body(key)) },
		"a reboot":  func() { register(t, w.at, cert, body(newKey())) },
	} {
		again()
		if diff := cmp.Diff(want, policy()); diff != "" {
			t.Errorf("after %s (-want +got):\n%s", name, diff)
		}
	}
	if code, got := adminCall(t, s, "ClearInstancePortPolicy", named+"}"); code != http.StatusOK || got != "null" {
		t.Errorf("%d %s", code, got)
	}
	if diff := cmp.Diff(&registry.PortPolicy{}, policy()); diff != "" {
		t.Errorf("after it was cleared (-want +got):\n%s", diff)
	}
}

func TestTheOperatorRemovesAnInstance(t *testing.T) {
	w := newWorld(t)
	td, key := w.boot(t, simtdx.VM{AppCompose: "{}"}), newKey()
	cert := attested(t, td)
	first := register(t, w.at, cert, body(key))
	id, s := idOf(t, td).ID.String(), enroll.Admin(w.registry)
	for _, want := range []string{`{"record_existed":true,"removed_locally":true}`, `{"record_existed":false,"removed_locally":false}`} {
		if code, got := adminCall(t, s, "RemoveCvm", `{"instance_id":"`+id+`"}`); code != http.StatusOK || got != want {
			t.Errorf("%d %s, want %s", code, got, want)
		}
	}
	if n := w.registry.Snapshot().Len(); n != 0 {
		t.Errorf("%d instances are left", n)
	}
	// It may come back, with the address that is free again.
	if a := register(t, w.at, cert, body(key)); a.status != http.StatusOK || a.body != first.body {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestAdminCallsThatAreRefused(t *testing.T) {
	w := newWorld(t)
	resident := w.resident(t)
	known := `{"instance_id":"` + idOf(t, resident).ID.String() + `"`
	nobody := `{"instance_id":"` + strings.Repeat("ab", 20) + `"`
	s := enroll.Admin(w.registry)
	before := w.state(t)
	for _, row := range []struct{ method, body, want string }{
		{"RemoveCvm", "", "instance_id: an id is 40 hex digits"},
		{"RemoveCvm", `{"instance_id":1}`, "cannot unmarshal number"},
		{"GetInstancePortPolicy", nobody + "}", "not found"},
		{"SetInstancePortPolicy", nobody + `,"policy":{}}`, "not found"},
		{"ClearInstancePortPolicy", nobody + "}", "not found"},
		{"SetInstancePortPolicy", known + "}", "no policy"},
		{"SetInstancePortPolicy", known + `,"policy":{"ports":[{"port":65536}]}}`, "port 65536 out of u16 range"},
		{"RegisterCvm", "{}", "Service not found: RegisterCvm"},
	} {
		if code, got := adminCall(t, s, row.method, row.body); code != http.StatusBadRequest || !strings.Contains(got, row.want) {
			t.Errorf("%s %s: %d %s, want %q", row.method, row.body, code, got, row.want)
		}
	}
	if diff := cmp.Diff(before, w.state(t)); diff != "" {
		t.Errorf("something changed (-before +after):\n%s", diff)
	}
}
