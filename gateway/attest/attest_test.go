package attest_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"

	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dstack.host/gateway/attest"
	"dstack.host/ratls"
)

var discard = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// nonce is one of many.
func nonce(i int) []byte {
	return append(make([]byte, 28), byte(i>>24), byte(i>>16), byte(i>>8), byte(i))
}

func TestOneQuoteAnswersAllWhoCameWhileTheLastWasMade(t *testing.T) {
	s := newScene(t, 0, func(_ *attest.Config, p *platform) { p.began, p.gate = make(chan struct{}), make(chan struct{}) })
	const many = 300
	var all sync.WaitGroup
	ask := func(i int) {
		all.Go(func() {
			w := s.from(client(i%4), own, wellKnown("nonce="+hex.EncodeToString(nonce(i))))
			if w.Code != http.StatusOK {
				t.Errorf("challenge %d: %d %s", i, w.Code, w.Body)
				return
			}
			s.verified(t, w.Body.Bytes(), nonce(i))
		})
	}
	ask(0)
	<-s.platform.began // the quote for the first is being made
	for i := 1; i <= many; i++ {
		ask(i)
	}
	for deadline := time.Now().Add(20 * time.Second); attest.Waiting(s.attester) < many; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d stand in line", attest.Waiting(s.attester), many)
		}
	}
	s.platform.gate <- struct{}{}
	<-s.platform.began
	s.platform.gate <- struct{}{}
	all.Wait()
	if got := s.platform.quotes.Load(); got != 2 {
		t.Errorf("%d quotes were made for %d challenges, want 2", got, many+1)
	}
}

func TestADocumentIsHeldUntilItIsNotTrueAnyMore(t *testing.T) {
	s := newScene(t, 0, nil)
	first := s.get(wellKnown(""))
	s.verified(t, first.Body.Bytes(), nil)
	if again := s.get(wellKnown("")); again.Header().Get("Etag") != first.Header().Get("Etag") || s.platform.quotes.Load() != 1 {
		t.Errorf("%d quotes for two readers", s.platform.quotes.Load())
	}
	s.certs.renew(t)
	renewed := s.get(wellKnown(""))
	if renewed.Header().Get("Etag") == first.Header().Get("Etag") {
		t.Error("the key has changed, and the document has not")
	}
	s.verified(t, renewed.Body.Bytes(), nil)
}

func TestFormsAreThoseThatAreAcceptedBest(t *testing.T) {
	for _, row := range []struct {
		accept string
		want   string
	}{
		{"*/*", "application/json"},
		{"application/json", "application/json"},
		{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"},
		{"application/cmw+json", "application/cmw+json"},
		{"application/octet-stream", "application/octet-stream"},
		{"application/*;q=0.5, text/html;q=0.4", "application/json"},
		{"text/html;q=0.4, application/json;q=0.5", "application/json"},
		{"text/html;q=0, */*", "application/json"},
		{"TEXT/HTML", "text/html"},
		{"application/json;q=0, application/cmw+json;q=0.1", "application/cmw+json"},
		{"image/png", ""},
		{"*/*;q=0", ""},
		{"application/json;q=2", ""},
		{"application/json;q=NaN", ""},
		{"", ""},
		{strings.Repeat("x/y,", 5000) + "text/html", ""},
	} {
		if got := attest.Negotiate(row.accept); got != row.want {
			t.Errorf("Accept %.60q gets %q, want %q", row.accept, got, row.want)
		}
	}
	if got := attest.Negotiate(); got != "application/json" {
		t.Errorf("without Accept it is %q", got)
	}
}

func TestEveryFormHoldsTheSameEvidence(t *testing.T) {
	s := newScene(t, 0, nil)
	for _, query := range []string{"", "nonce=" + hex.EncodeToString(nonce(7))} {
		var d ratls.Document
		if err := json.Unmarshal(s.get(wellKnown(query)).Body.Bytes(), &d); err != nil {
			t.Fatal(err)
		}
		raw := s.get(wellKnown(query), "Accept", "application/octet-stream")
		if _, err := ratls.ParseQuote(raw.Body.Bytes()); err != nil || raw.Header().Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%q: raw quote: %v", query, err)
		}
		var cmw map[string]any
		wrapped := s.get(wellKnown(query), "Accept", "application/cmw+json")
		if err := json.Unmarshal(wrapped.Body.Bytes(), &cmw); err != nil {
			t.Fatal(err)
		}
		inner, err := base64.RawURLEncoding.DecodeString(cmw["document"].([]any)[1].(string))
		if err != nil || !bytes.Contains(inner, []byte(ratls.Format)) {
			t.Errorf("%q: the wrapped document is %.60s (%v)", query, inner, err)
		}
		page := s.get(wellKnown(query), "Accept", "text/html")
		if !strings.Contains(page.Body.String(), "<html") || !strings.Contains(page.Header().Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%q: page %.100s with policy %q", query, page.Body, page.Header().Get("Content-Security-Policy"))
		}
	}
}

func TestAQueryThatCannotBeReadIsRefused(t *testing.T) {
	s := newScene(t, 0, nil)
	n := "nonce=" + hex.EncodeToString(nonce(1))
	for query, want := range map[string]int{
		"": 200, n: 200, "&": 200, "other=x": 200, "%6eonce" + n[5:]: 200,
		"nonce=%zz": 400, "nonce=%": 400, n + ";x": 400, n + "%": 400, "%zz=&" + n: 400, "other=%zz": 400, ";": 400,
		n + "&bind=%zz": 400, n + "&bind=tls-exporter;x=1": 400, n + "&bind=tls-exporter": 400, n + "&%62ind%": 400,
		n + "&fresh=app;a": 400, n + "&fresh=%": 400, n + "&bind": 400, n + "&fresh": 400, "nonce": 400,
	} {
		if w := s.get(wellKnown(query)); w.Code != want || want == 400 && reason(w) != "bad_request" {
			t.Errorf("?%s: %d %q, want %d", query, w.Code, reason(w), want)
		}
	}
}

func TestConditionalRequests(t *testing.T) {
	s := newScene(t, 0, nil)
	tag := s.get(wellKnown("")).Header().Get("Etag")
	for condition, want := range map[string]int{tag: 304, "W/" + tag: 304, `"a", ` + tag: 304, "*": 304, `"a"`: 200, "": 200, strings.Trim(tag, `"`): 200} {
		w := s.get(wellKnown(""), "If-None-Match", condition)
		if w.Code != want || w.Code == 304 && w.Body.Len() > 0 || w.Header().Get("Etag") != tag {
			t.Errorf("If-None-Match %s: %d with %d bytes, want %d", condition, w.Code, w.Body.Len(), want)
		}
	}
	if got := s.get(wellKnown("")).Header().Get("Access-Control-Expose-Headers"); got != "ETag, Retry-After" {
		t.Errorf("other origins may read %q", got)
	}
	if html := s.get(wellKnown(""), "Accept", "text/html").Header().Get("Etag"); html == tag || html == "" {
		t.Errorf("page and JSON have tags %s and %s", html, tag)
	}
}

func TestPreflightAllowsEverybodyWithoutCredentials(t *testing.T) {
	w := newScene(t, 0, nil).ask(http.MethodOptions, wellKnown(""), "Origin", "https://example.com")
	if h := w.Header(); w.Code != 204 || h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Credentials") != "" || h.Get("Access-Control-Allow-Methods") != "GET, HEAD" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

func TestDstacksPathsAnswerOnTheGatewaysOwnName(t *testing.T) {
	s := newScene(t, 0, nil)
	for _, prefix := range []string{"", "/.dstack"} {
		if w := s.get(prefix + "/index"); w.Code != 200 || !strings.Contains(w.Body.String(), `"type":"dstack gateway"`) {
			t.Errorf("index: %d %s", w.Code, w.Body)
		}
		var info map[string]any
		if w := s.get(prefix + "/app-info"); w.Code != 200 || json.Unmarshal(w.Body.Bytes(), &info) != nil {
			t.Errorf("app-info: %d %s", w.Code, w.Body)
		}
		var tcb map[string]any
		if err := json.Unmarshal([]byte(info["tcb_info"].(string)), &tcb); err != nil || len(tcb["rtmr3"].(string)) != 96 || len(info["app_id"].(string)) != 40 {
			t.Errorf("app-info: %v %v (%v)", info, tcb, err)
		}
		w := s.get(prefix + "/acme-info")
		for _, member := range []string{`"account_uri":""`, `"hist_keys":[]`, `"quoted_hist_keys":[]`, `"account_quote":""`} {
			if !strings.Contains(w.Body.String(), member) {
				t.Errorf("acme-info lacks %s: %s", member, w.Body)
			}
		}
	}
	if w := s.get("/health"); w.Code != 200 || w.Body.Len() != 0 {
		t.Errorf("health: %d %s", w.Code, w.Body)
	}
	if w := s.ask(http.MethodPost, "/.dstack/index"); w.Code != 405 {
		t.Errorf("POST: %d", w.Code)
	}
	for _, path := range []string{"/x", "/.dstack", "/.dstack/", "/.dstack/.dstack/index", "/index/"} {
		if w := s.get(path); w.Code != 404 && path != "/.dstack/" || w.Code == 200 && path != "/.dstack/" {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

func TestTheImpatientAndTheTooManyAreTold(t *testing.T) {
	s := newScene(t, 0, func(c *attest.Config, p *platform) {
		c.Patience = time.Millisecond
		p.began, p.gate = make(chan struct{}, 10), make(chan struct{}, 10)
	})
	w := s.get(wellKnown("nonce=" + hex.EncodeToString(nonce(1))))
	if w.Code != 503 || reason(w) != "overloaded" || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d %s, Retry-After %q", w.Code, w.Body, w.Header().Get("Retry-After"))
	}
	for range 10 {
		s.platform.gate <- struct{}{}
	}
}

func TestNonceRateIsPerClient(t *testing.T) {
	s := newScene(t, 0, func(c *attest.Config, _ *platform) { c.NonceBurst, c.NonceInterval = 2, time.Hour })
	for i := range 4 {
		w := s.get(wellKnown("nonce=" + hex.EncodeToString(nonce(i))))
		if limited := w.Code == 429; limited != (i >= 2) || limited && (w.Header().Get("Retry-After") == "" || reason(w) != "rate_limited") {
			t.Errorf("request %d: %d %q", i, w.Code, reason(w))
		}
	}
}

func TestNewTellsAllFaults(t *testing.T) {
	_, err := attest.New(attest.Config{})
	for _, want := range []string{"no base domain", "no platform", "no verifier", "no certificates", "no registry", "no way to dial", "validity", "nonce interval"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
}

func TestACachedAnswerAllocatesLittle(t *testing.T) {
	s := newScene(t, 0, nil)
	s.get(wellKnown(""))
	r, w := request(), &sink{header: http.Header{}}
	got := testing.AllocsPerRun(200, func() {
		clear(w.header)
		if err := s.attester.Serve(w, r); err != nil {
			t.Error(err)
		}
	})
	if got > 1 {
		t.Errorf("%v allocations for a held document", got)
	}
}

func request() *http.Request {
	r, err := http.NewRequest(http.MethodGet, "https://"+own+wellKnown(""), nil)
	if err != nil {
		panic(err)
	}
	return r
}

// sink takes an answer and forgets it.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) Write(b []byte) (int, error) { return len(b), nil }
func (s *sink) WriteHeader(int)             {}
