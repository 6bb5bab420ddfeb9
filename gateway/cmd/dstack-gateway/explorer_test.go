package main

import (
	"bytes"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestTheExplorerServesUntilItIsInterrupted looks at the kept bundle with the program, whose roots are given by flags.
func TestTheExplorerServesUntilItIsInterrupted(t *testing.T) {
	c, lines, errs := launched(t, strings.Fields("explorer --listen 127.0.0.1:0"+roots)...)
	line, err := lines.ReadString('\n')
	_, url, found := strings.Cut(strings.TrimSpace(line), "The explorer is at ")
	if err != nil || !found {
		t.Fatalf("it prints %q (%v)", line, err)
	}
	bundle, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	part, err := w.CreateFormFile("file", "bundle.json")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = part.Write(bundle)
	_ = w.Close()
	response, err := http.Post(url, w.FormDataContentType(), &body)
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if err != nil || !strings.Contains(string(page), "This is: verification bundle") || strings.Contains(string(page), "✗ fail") {
		t.Errorf("%d (%v)\n%.2000s", response.StatusCode, err, page)
	}
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("interrupted: %v\n%s", err, errs)
	}
}
