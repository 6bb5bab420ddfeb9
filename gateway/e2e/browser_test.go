package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"dstack.host/gateway/demo"
	"dstack.host/gateway/web"
	"dstack.host/ratls"
)

// lair is a server that pretends to be a gateway: it has the page, passes requests for evidence on to a real one, and tells what
// came back as it likes.
type lair struct {
	t      *testing.T
	demo   *demo.Demo
	root   []byte
	server *httptest.Server
	lie    atomic.Pointer[lie]
}

// lie is one way of a bad gateway.
type lie struct {
	name  string
	fails string // the link at which the page has to fail, "" when nothing was verified at all
	ask   func(url.URL) url.URL
	tell  func(*ratls.Document)
	text  func([]byte) []byte
	code  int
}

func lies(d *demo.Demo) []lie {
	return []lie{
		{name: "tampered-quote", fails: ratls.LinkGatewayQuote, tell: func(d *ratls.Document) { d.Gateway.Quote[700] ^= 1 }},
		{name: "replayed", fails: ratls.LinkChallenge, ask: func(u url.URL) url.URL { u.RawQuery = "nonce=" + strings.Repeat("ab", 32); return u }},
		{name: "cached", fails: ratls.LinkChallenge, ask: func(u url.URL) url.URL { u.RawQuery = ""; return u }},
		{name: "edited-statement", fails: ratls.LinkStatement, tell: func(d *ratls.Document) { d.Statement = strings.Replace(d.Statement, `"demo"`, `"node"`, 1) }},
		{name: "other-app", fails: ratls.LinkHost, ask: func(u url.URL) url.URL {
			u.Host = strings.Replace(u.Host, d.Apps()[0].ID.String(), d.Apps()[1].ID.String(), 1)
			return u
		}},
		{name: "edited-compose", fails: ratls.LinkAppCompose, tell: func(d *ratls.Document) { d.Apps[0].AppCompose += "\n" }},
		{name: "edited-log", fails: ratls.LinkReplay, tell: func(d *ratls.Document) { d.Apps[0].EventLog[1].Digest, d.Apps[0].EventLog[1].Payload = nil, []byte{1} }},
		{name: "no-collateral", fails: ratls.LinkGatewayTCB, tell: func(d *ratls.Document) { d.Collateral = d.Collateral[1:] }},
		{name: "markup", fails: ratls.LinkDocument, text: func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"format":"`), []byte(`"format":"<img src=x onerror=alert(1)>`), 1)
		}},
		{name: "rate-limited", code: http.StatusTooManyRequests},
		{name: "no-evidence", code: http.StatusServiceUnavailable},
	}
}

func openLair(t *testing.T) *lair {
	t.Helper()
	d := start(t, demo.Options{})
	root, err := os.ReadFile(d.RootFile())
	if err != nil {
		t.Fatal(err)
	}
	l := &lair{t: t, demo: d, root: root}
	l.lie.Store(&lie{})
	l.server = httptest.NewTLSServer(l)
	t.Cleanup(l.server.Close)
	return l
}

// url is that of the page about a name.
func (l *lair) url(label string) string {
	_, port, err := net.SplitHostPort(l.server.Listener.Addr().String())
	if err != nil {
		l.t.Fatal(err)
	}
	return "https://" + label + "." + demo.DefaultBase + ":" + port + wellKnown
}

func (l *lair) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != wellKnown {
		http.NotFound(w, r)
		return
	}
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		l.page(w, r)
		return
	}
	w.Header().Set("Access-Control-Allow-Origin", "*")
	lie := l.lie.Load()
	if lie.code != 0 {
		w.Header().Set("Retry-After", "7")
		http.Error(w, "{}", lie.code)
		return
	}
	body, err := l.document(r.Context(), r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	_, _ = w.Write(body)
}

// page is the gateway's page, with a verdict that says what a liar would say.
func (l *lair) page(w http.ResponseWriter, r *http.Request) {
	a := web.Attestation{Host: r.Host, Node: "demo", TEE: string(ratls.KindSimulatedTDX), Simulated: true, SimulatedRoot: l.root}
	for _, c := range (ratls.Chain{}).Verify(r.Context(), nil, ratls.Subject{}).Checks {
		a.Checks = append(a.Checks, web.Check{Hop: c.Hop, Name: c.Name, Status: web.Pass, Detail: "so says the gateway"})
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", web.AttestationPolicy())
	_ = a.Render(w)
}

// document is what the real gateway says, and what becomes of it.
func (l *lair) document(ctx context.Context, r *http.Request) ([]byte, error) {
	lie := l.lie.Load()
	real, err := url.Parse(l.demo.Apps()[0].URL)
	if err != nil {
		return nil, err
	}
	label, _, _ := strings.Cut(r.Host, ".")
	u := url.URL{Scheme: "https", Host: label + "." + demo.DefaultBase + ":" + real.Port(), Path: wellKnown, RawQuery: r.URL.RawQuery}
	if lie.ask != nil {
		u = lie.ask(u)
	}
	client, err := l.demo.Client(true)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%d: %w", response.StatusCode, err)
	}
	if lie.tell != nil {
		doc, err := ratls.ParseDocument(body)
		if err != nil {
			return nil, err
		}
		lie.tell(doc)
		if body, err = json.Marshal(doc); err != nil {
			return nil, err
		}
	}
	if lie.text != nil {
		body = lie.text(body)
	}
	return body, nil
}

// verdict waits until the page has made up its mind, and says how.
const verdict = `(() => { const p = document.getElementById("page"); if (!p || p.dataset.verdict === "wait" || p.dataset.by !== "browser") return "";
return [p.dataset.verdict, p.dataset.failed ?? "", p.dataset.mark ?? ""].join(" ") })()`

// tooWide lists what reaches beyond the window.
const tooWide = `[...document.querySelectorAll("body *")].filter((e) => !e.closest("pre, symbol, .visually-hidden") && e.getBoundingClientRect().right > innerWidth + 1)
.map((e) => e.tagName + "." + e.className).slice(0, 5).join(" ") + (document.documentElement.scrollWidth > innerWidth ? " the page scrolls sideways" : "")`

// faint lists texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3).
const faint = `(() => {
const part = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
const rgb = (s) => s.match(/[\d.]+/g).map(Number);
const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
const bad = new Set();
for (const e of document.querySelectorAll("main *")) {
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
  const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.add(e.tagName + " " + ratio.toFixed(2) + " " + e.textContent.slice(0, 20));
}
return [...bad].slice(0, 5).join("; ");
})()`

// nameless lists what can be reached with the keyboard and has no name.
const nameless = `[...document.querySelectorAll("a, button, summary")].filter((e) => !(e.getAttribute("aria-label") ?? e.textContent).trim()).map((e) => e.outerHTML.slice(0, 60)).join(" ")`

func TestThePageInABrowser(t *testing.T) {
	b := openBrowser(t)
	l := openLair(t)
	app := l.demo.Apps()[0]
	desktop, phone := view{width: 1200, height: 900}, view{width: 360, height: 740}
	in := func(v view, dark bool) view { v.dark = dark; return v }
	for name, row := range map[string]struct {
		label string
		view  view
	}{
		"good-desktop-light": {app.ID.String(), desktop},
		"good-desktop-dark":  {app.ID.String(), in(desktop, true)},
		"good-phone-light":   {app.ID.String(), phone},
		"good-phone-dark":    {app.ID.String(), in(phone, true)},
		"instance-with-port": {app.Instance.String() + "-8080", desktop},
		"gateways-own-name":  {"gateway", desktop},
	} {
		b.t = t
		t.Run(name, func(t *testing.T) {
			b.t = t
			b.open(l.url(row.label), row.view)
			if got := b.await(verdict); got != "pass  simulated" {
				var text string
				b.evaluate(`document.getElementById("verdict").innerText`, &text)
				t.Errorf("verdict %q: %s", got, text)
			}
			looksRight(t, b)
			b.evaluate(`document.querySelectorAll("details").forEach((d) => { d.open = true; }), ""`, new(string))
			looksRight(t, b)
			b.evaluate(`document.querySelectorAll("details").forEach((d, i) => { d.open = i % 3 === 0; }), ""`, new(string))
			b.picture(name)
			quiet(t, b)
		})
	}
	b.t = t
}

// looksRight holds the page to what everybody needs.
func looksRight(t *testing.T, b *browser) {
	t.Helper()
	for what, expression := range map[string]string{"reaches beyond the window": tooWide, "is too faint": faint, "has no name": nameless} {
		var got string
		if b.evaluate(expression, &got); got != "" {
			t.Errorf("%s: %s", what, got)
		}
	}
}

// quiet fails when the page threw something, or tried what its policy forbids.
func quiet(t *testing.T, b *browser) {
	t.Helper()
	for _, fault := range b.faults {
		t.Errorf("the page: %.500s", fault)
	}
}

func TestThePageSeesThroughLies(t *testing.T) {
	b := openBrowser(t)
	l := openLair(t)
	for i, lie := range lies(l.demo) {
		t.Run(lie.name, func(t *testing.T) {
			b.t = t
			l.lie.Store(&lie)
			v := view{width: 1200, height: 900}
			if i%2 == 1 {
				v = view{width: 360, height: 740, dark: i%4 == 1}
			}
			b.open(l.url(l.demo.Apps()[0].ID.String()), v)
			got := b.await(verdict)
			if !strings.HasPrefix(got, "fail "+lie.fails) {
				t.Errorf("verdict %q, want fail %s", got, lie.fails)
			}
			var states struct{ Passed, Failed int }
			b.evaluate(`({passed: document.querySelectorAll("[data-link].pass").length, failed: document.querySelectorAll("[data-link].fail").length})`, &states)
			if lie.fails != "" && states.Failed != 1 || lie.fails == "" && states.Passed+states.Failed != 0 {
				t.Errorf("%d links pass and %d fail", states.Passed, states.Failed)
			}
			looksRight(t, b)
			b.picture("bad-" + lie.name)
		})
	}
	b.t = t
}

func TestThePageWithoutJavaScriptShowsTheServersVerdictAsSuch(t *testing.T) {
	b := openBrowser(t)
	l := openLair(t)
	b.open(l.url(l.demo.Apps()[0].ID.String()), view{width: 360, height: 740, noJS: true})
	b.await(`document.readyState === "complete" && document.getElementById("page") ? "yes" : ""`)
	var text string
	b.evaluate(`document.getElementById("page").dataset.by + ": " + document.getElementById("verdict").innerText`, &text)
	for _, want := range []string{"server: ", "The gateway's own verdict", "Your browser has not checked it"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page says %q, not %q", text, want)
		}
	}
	looksRight(t, b)
	b.picture("without-javascript")
}

func TestHashesAreCopiedWithTheKeyboard(t *testing.T) {
	b := openBrowser(t)
	l := openLair(t)
	b.open(l.url(l.demo.Apps()[0].ID.String()), view{width: 1200, height: 900})
	b.await(verdict)
	b.evaluate(`document.querySelector("#key .copy").focus(), ""`, new(string))
	for _, kind := range []string{"keyDown", "keyUp"} {
		b.call("Input.dispatchKeyEvent", map[string]any{"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}, nil)
	}
	if got := b.await(`document.querySelector("#key .copy").textContent === "Copy" ? "" : document.querySelector("#key .copy").textContent`); got != "Copied" {
		t.Errorf("the button says %q", got)
	}
}

// TestTheRecipeOfThePageWorks runs the page's curl commands: the key of the connection has to be one of those of the statement.
func TestTheRecipeOfThePageWorks(t *testing.T) {
	for _, tool := range []string{"curl", "openssl", "jq"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: the recipe is not run", tool)
		}
	}
	d := start(t, demo.Options{})
	app, err := url.Parse(d.Apps()[0].URL)
	if err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	if err := (web.Attestation{Host: app.Host}).Render(&page); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(page.String(), `id="recipe-curl">`)
	recipe, _, _ := strings.Cut(rest, "</pre>")
	cmd := exec.CommandContext(t.Context(), "sh", "-c", html.UnescapeString(recipe))
	cmd.Dir, cmd.Env = t.TempDir(), append(os.Environ(), "CURL_CA_BUNDLE="+d.CAFile())
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, recipe)
	}
	first, stated, _ := strings.Cut(string(out), "\n")
	if fields := strings.Fields(first); len(fields) == 0 || len(fields[len(fields)-1]) != 64 || !strings.Contains(stated, fields[len(fields)-1]) {
		t.Errorf("the key of the connection is not one of the statement's:\n%s", out)
	}
}

func TestARealGatewaysPageInABrowser(t *testing.T) {
	b := openBrowser(t)
	d := start(t, demo.Options{})
	app := strings.TrimSuffix(d.Apps()[0].URL, "/")
	own := strings.Replace(app, d.Apps()[0].ID.String(), "gateway", 1)
	for name, url := range map[string]string{"app": app + wellKnown, "own": own + "/"} {
		t.Run(name, func(t *testing.T) {
			b.t = t
			b.open(url, view{width: 1200, height: 900})
			if got := b.await(verdict); got != "pass  simulated" {
				var text string
				b.evaluate(`document.getElementById("verdict").innerText`, &text)
				t.Errorf("verdict %q: %s", got, text)
			}
			looksRight(t, b)
			quiet(t, b)
			b.picture("real-" + name)

			b.open(url, view{width: 360, height: 740, noJS: true})
			b.await(`document.readyState === "complete" && document.getElementById("page") ? "yes" : ""`)
			var text string
			b.evaluate(`document.getElementById("page").dataset.by + ": " + document.getElementById("verdict").innerText`, &text)
			if !strings.HasPrefix(text, "server: ") || !strings.Contains(text, "Your browser has not checked it") {
				t.Errorf("without JavaScript the page says %q", text)
			}
			looksRight(t, b)
		})
	}
	b.t = t
}
