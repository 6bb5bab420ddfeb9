package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"dstack.host/gateway/demo"
)

const wellKnown = "/.well-known/attestation"

// fetch sends one request to a name of the demo.
func fetch(t *testing.T, d *demo.Demo, ctx context.Context, method, url string, http2 bool, header http.Header) (*http.Response, string) {
	t.Helper()
	client, err := d.Client(http2)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		request.Header = header
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
	return response, string(body)
}

func TestTheDocumentIsServedInItsForms(t *testing.T) {
	leakless(t)
	d := start(t, demo.Options{})
	app := strings.TrimSuffix(d.Apps()[0].URL, "/")
	own := strings.Replace(app, d.Apps()[0].ID.String(), "gateway", 1)
	nonce := strings.Repeat("ab", 32)
	for _, row := range []struct {
		name, method, url string
		header            http.Header
		status            int
		cache, reason     string
	}{
		{"cached", "GET", app + wellKnown, nil, 200, "public, max-age=", ""},
		{"head", "HEAD", app + wellKnown, nil, 200, "public, max-age=", ""},
		{"the gateway itself", "GET", own + wellKnown, nil, 200, "public, max-age=", ""},
		{"nonce", "GET", app + wellKnown + "?nonce=" + nonce, nil, 200, "no-store", ""},
		{"nonce in upper case", "GET", app + wellKnown + "?nonce=" + strings.ToUpper(nonce), nil, 200, "no-store", ""},
		{"nonce bound to the connection", "GET", app + wellKnown + "?bind=tls-exporter&nonce=" + nonce, nil, 200, "no-store", ""},
		{"nonce too short", "GET", app + wellKnown + "?nonce=ab", nil, 400, "no-store", "bad_request"},
		{"nonce too long", "GET", app + wellKnown + "?nonce=ab" + nonce, nil, 400, "no-store", "bad_request"},
		{"nonce not hex", "GET", app + wellKnown + "?nonce=" + strings.Repeat("zz", 32), nil, 400, "no-store", "bad_request"},
		{"nonce empty", "GET", app + wellKnown + "?nonce=", nil, 400, "no-store", "bad_request"},
		{"two nonces", "GET", app + wellKnown + "?nonce=" + nonce + "&nonce=" + nonce, nil, 400, "no-store", "bad_request"},
		{"unknown binding", "GET", app + wellKnown + "?bind=magic&nonce=" + nonce, nil, 400, "no-store", "bad_request"},
		{"binding without a nonce", "GET", app + wellKnown + "?bind=tls-exporter", nil, 400, "no-store", "bad_request"},
		{"fresh from the app", "GET", app + wellKnown + "?fresh=app&nonce=" + nonce, nil, 200, "no-store", ""},
		{"fresh and bound", "GET", app + wellKnown + "?fresh=app&bind=tls-exporter&nonce=" + nonce, nil, 200, "no-store", ""},
		{"fresh without an app", "GET", own + wellKnown + "?fresh=app&nonce=" + nonce, nil, 400, "no-store", "bad_request"},
		{"fresh without a nonce", "GET", app + wellKnown + "?fresh=app", nil, 400, "no-store", "bad_request"},
		{"fresh from something else", "GET", app + wellKnown + "?fresh=tea&nonce=" + nonce, nil, 400, "no-store", "bad_request"},
		{"escape that is none", "GET", app + wellKnown + "?nonce=%zz", nil, 400, "no-store", "bad_request"},
		{"half an escape", "GET", app + wellKnown + "?nonce=%", nil, 400, "no-store", "bad_request"},
		{"semicolon behind the nonce", "GET", app + wellKnown + "?nonce=" + nonce + ";x", nil, 400, "no-store", "bad_request"},
		{"binding with an escape that is none", "GET", app + wellKnown + "?nonce=" + nonce + "&bind=%zz", nil, 400, "no-store", "bad_request"},
		{"semicolon behind the binding", "GET", app + wellKnown + "?nonce=" + nonce + "&bind=tls-exporter;x=1", nil, 400, "no-store", "bad_request"},
		{"semicolon behind fresh", "GET", app + wellKnown + "?nonce=" + nonce + "&fresh=app;a", nil, 400, "no-store", "bad_request"},
		{"nothing that is accepted", "GET", app + wellKnown, http.Header{"Accept": {"image/png"}}, 406, "no-store", "bad_request"},
		{"other method", "POST", app + wellKnown, nil, 405, "no-store", "bad_request"},
		{"unknown app", "GET", strings.Replace(app, d.Apps()[0].ID.String(), nobody, 1) + wellKnown, nil, 404, "no-store", "unknown_app"},
		{"escaped", "GET", app + "/%2ewell-known/attestation", nil, 200, "public, max-age=", ""},
		{"doubled and mixed case", "GET", app + "//.Well-Known//ATTESTATION", nil, 200, "public, max-age=", ""},
		{"through a dot segment", "GET", app + "/x/../.well-known/attestation", nil, 200, "public, max-age=", ""},
	} {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %t", row.name, http2), func(t *testing.T) {
				response, body := fetch(t, d, t.Context(), row.method, row.url, http2, row.header)
				if response.StatusCode != row.status || !strings.HasPrefix(response.Header.Get("Cache-Control"), row.cache) {
					t.Errorf("%d, Cache-Control %q; want %d, %q\n%.300s", response.StatusCode, response.Header.Get("Cache-Control"), row.status, row.cache, body)
				}
				var got struct{ Format, Reason string }
				if row.method != "HEAD" && json.Unmarshal([]byte(body), &got) != nil {
					t.Fatalf("not JSON: %.300s", body)
				}
				if got.Reason != row.reason || row.status == 200 && row.method == "GET" && got.Format == "" {
					t.Errorf("format %q, reason %q; want reason %q", got.Format, got.Reason, row.reason)
				}
			})
		}
	}
	consistent(t, d)
}

func TestACachedDocumentIsNotSentTwice(t *testing.T) {
	leakless(t)
	d := start(t, demo.Options{})
	url := strings.TrimSuffix(d.Apps()[0].URL, "/") + wellKnown
	first, _ := fetch(t, d, t.Context(), "GET", url, true, nil)
	tag := first.Header.Get("ETag")
	if tag == "" || first.Header.Get("Access-Control-Allow-Origin") != "*" || first.Header.Get("Vary") != "Accept" {
		t.Fatalf("header lacks something: %v", first.Header)
	}
	second, body := fetch(t, d, t.Context(), "GET", url, true, http.Header{"If-None-Match": {tag}})
	if second.StatusCode != http.StatusNotModified || body != "" {
		t.Errorf("%d with %d bytes, want 304 with none", second.StatusCode, len(body))
	}
	other := strings.Replace(url, d.Apps()[0].ID.String(), "0X"+strings.ToUpper(d.Apps()[0].ID.String())+"-80", 1)
	if same, _ := fetch(t, d, t.Context(), "GET", other, false, nil); same.Header.Get("ETag") != tag {
		t.Error("another spelling of the name has another document: each spelling costs a quote")
	}
}

func TestNoncesHaveARate(t *testing.T) {
	leakless(t)
	d := start(t, demo.Options{})
	url := strings.TrimSuffix(d.Apps()[0].URL, "/") + wellKnown + "?nonce=" + strings.Repeat("00", 32)
	var mu sync.Mutex
	statuses := map[int]int{}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 40 {
				response, _ := fetch(t, d, t.Context(), "GET", url, false, nil)
				mu.Lock()
				statuses[response.StatusCode]++
				mu.Unlock()
				if response.StatusCode == http.StatusTooManyRequests && response.Header.Get("Retry-After") == "" {
					t.Error("429 without Retry-After")
				}
			}
		})
	}
	all.Wait()
	if statuses[200] == 0 || statuses[429] == 0 || statuses[200]+statuses[429] != 320 {
		t.Errorf("answers %v, want some 200, some 429 and nothing else", statuses)
	}
}

// A bundle of verify is the largest thing that people bring to the explorer; it has to get through both protocols.
func TestTheExplorerTakesABundle(t *testing.T) {
	leakless(t)
	d := start(t, demo.Options{})
	bundle, err := os.ReadFile("../verify/testdata/bundle.json")
	if err != nil {
		t.Fatal(err)
	}
	url := strings.Replace(d.Apps()[0].URL, d.Apps()[0].ID.String(), "gateway", 1) + "explorer"
	for _, http2 := range []bool{false, true} {
		client, err := d.Client(http2)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range []struct {
			name   string
			input  []byte
			status int
			text   string
		}{
			{"a bundle", bundle, http.StatusOK, "This is: verification bundle"},
			{"nothing of a simulation untold", bundle, http.StatusOK, "Simulated TDX is accepted here"},
			{"half a bundle", bundle[:len(bundle)/2], http.StatusBadRequest, "not JSON"},
			{"more than is taken", make([]byte, 511<<10), http.StatusRequestEntityTooLarge, "larger than 504 KiB"},
		} {
			var body bytes.Buffer
			w := multipart.NewWriter(&body)
			part, err := w.CreateFormFile("file", "bundle.json")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = part.Write(row.input)
			_ = w.Close()
			response, err := client.Post(url, w.FormDataContentType(), &body)
			if err != nil {
				t.Fatal(err)
			}
			page, err := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if err != nil || response.StatusCode != row.status || !strings.Contains(string(page), row.text) {
				t.Errorf("HTTP/2 %t, %s: %d (%v), want %d with %q\n%.300s", http2, row.name, response.StatusCode, err, row.status, row.text, page)
			}
		}
		client.CloseIdleConnections()
	}
}
