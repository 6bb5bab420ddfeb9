package enroll_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"dstack.host/gateway/enroll"
	"dstack.host/ratls/simtdx"
)

// TestWhatIsACallOfRegisterCvm sends one good body in all the ways in which it may and may not be addressed.
func TestWhatIsACallOfRegisterCvm(t *testing.T) {
	w := newWorld(t)
	cert := attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	key := newKey()
	text := body(key)
	if a := register(t, w.at, cert, text); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	const ok, bad = http.StatusOK, http.StatusBadRequest
	tests := []struct {
		method, path, contentType string
		status                    int
		text                      string
	}{
		{"POST", "/prpc/RegisterCvm?json", "", ok, ""},
		{"POST", "/prpc/RegisterCvm?json=1", "", ok, ""},
		{"POST", "/prpc/RegisterCvm?json=true", "", ok, ""},
		{"POST", "/prpc/RegisterCvm?a=b&json", "", ok, ""},
		{"POST", "/prpc/RegisterCvm", "application/json", ok, ""},
		{"POST", "/prpc/RegisterCvm", "application/json; charset=utf-8", ok, ""},
		{"POST", "/prpc/Tproxy.RegisterCvm?json", "", ok, ""},
		{"POST", "/prpc/Tproxy.Tproxy.RegisterCvm?json", "", ok, ""},
		{"POST", "//prpc/RegisterCvm?json", "", ok, ""}, // of guests whose URL ends with a slash
		{"POST", "/prpc/Gateway.RegisterCvm?json", "", bad, "Service not found: Gateway.RegisterCvm"},
		{"POST", "/prpc/Tproxy.?json", "", bad, "Service not found: "},
		{"POST", "/prpc/registercvm?json", "", bad, "Service not found: registercvm"},
		{"POST", "/prpc/" + strings.Repeat("x", 4000) + "?json", "", bad, strings.Repeat("x", 64) + "…"},
		{"POST", "/prpc/%ff%00?json", "", bad, "Service not found: ?"},
		{"GET", "/prpc/RegisterCvm?client_public_key=x", "", bad, "client_public_key: "},
		{"GET", "/prpc/RegisterCvm?port_policy[ports][0][port]=0&client_public_key=" + url.QueryEscape(key.String()), "", bad, "port must be between"},
		{"GET", "/prpc/RegisterCvm?client_public_key=" + url.QueryEscape(key.String()) + "&port_policy[restrict_mode]=false", "", ok, "client_ip"},
		{"PUT", "/prpc/RegisterCvm?json", "", http.StatusMethodNotAllowed, "POST"},
		{"POST", "/prpc/RegisterCvm/?json", "", http.StatusNotFound, "/prpc/RegisterCvm"},
		{"POST", "/prpc/a/b?json", "", http.StatusNotFound, "/prpc/RegisterCvm"},
		{"POST", "/prpc?json", "", http.StatusNotFound, "/prpc/RegisterCvm"},
		{"POST", "/RegisterCvm?json", "", http.StatusNotFound, "/prpc/RegisterCvm"},
		{"GET", "/", "", http.StatusNotFound, "/prpc/RegisterCvm"},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%s %.60s %s", test.method, test.path, test.contentType), func(t *testing.T) {
			text := text
			if test.method == "GET" {
				text = ""
			}
			header := fmt.Sprintf("Content-Length: %d\r\n", len(text))
			if test.contentType != "" {
				header += "Content-Type: " + test.contentType + "\r\n"
			}
			w.unchanged(t, func() answer {
				a := dial(t, w.at, cert).send(t, test.method, test.path, header, text)
				if got := a.header.Get("X-App-Version"); got != "v1.2.3 (test)" {
					t.Errorf("X-App-Version %q", got)
				}
				if got := a.header.Get("Content-Type"); got != "application/json" {
					t.Errorf("Content-Type %q", got)
				}
				return a
			}, test.status, test.text)
		})
	}
}

func TestErrorsAreThoseOfPrpc(t *testing.T) {
	w := newWorld(t)
	a := register(t, w.at, tls.Certificate{}, body(newKey()))
	const want = "{\n  \"error\": \"no attestation provided: present a client certificate with a TDX quote, or one of the KMS that this gateway trusts\"\n}"
	if a.status != http.StatusBadRequest || a.body != want {
		t.Errorf("%d %s", a.status, a.body)
	}
	// As serde_json writes it: no escapes for HTML's sake.
	a = dial(t, w.at, tls.Certificate{}).send(t, "POST", "/prpc/%3Ca%26b%3E?json", "", "")
	if want := "{\n  \"error\": \"Service not found: <a&b>\"\n}"; a.body != want {
		t.Errorf("%s", a.body)
	}
}

func TestHealthNeedsNoCertificate(t *testing.T) {
	w := newWorld(t)
	a := dial(t, w.at, tls.Certificate{}).send(t, "GET", "/health", "", "")
	if a.status != http.StatusOK || a.body != "OK" || a.header.Get("X-App-Version") != "v1.2.3 (test)" {
		t.Errorf("%d %v %q", a.status, a.header, a.body)
	}
}

// TestTheHandlerNeedsTLS serves it as a caller might by mistake.
func TestTheHandlerNeedsTLS(t *testing.T) {
	w := newWorld(t)
	s := must(enroll.New(w.config))(t)
	defer s.Close()
	rec := httptest.NewRecorder()
	s.Handler().ServeHTTP(rec, httptest.NewRequest("POST", "/prpc/RegisterCvm?json", strings.NewReader(body(newKey()))))
	if rec.Code != http.StatusBadRequest || !strings.Contains(rec.Body.String(), "no attestation provided") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}
