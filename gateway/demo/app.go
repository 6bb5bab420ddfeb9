package demo

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// app is one of the demo's web apps: what its app-compose.json says, and what it answers.
type app struct {
	name    string
	compose string // exact text of app-compose.json, which its app id is the hash of
	handler func(*cvm) http.Handler
}

// apps are the demo's two, each with an id of its own because their compose files differ.
func apps() []app {
	return []app{
		{name: "hello", compose: compose("hello"), handler: hello},
		{name: "echo", compose: compose("echo"), handler: echo},
	}
}

// compose is an app-compose.json as dstack's tools write it, with the port that the app serves.
func compose(name string) string {
	text, _ := json.Marshal(map[string]any{ // texts and numbers can't fail
		"manifest_version":    2,
		"name":                name,
		"runner":              "docker-compose",
		"docker_compose_file": fmt.Sprintf("services:\n  web:\n    image: example.com/%s@sha256:%064d\n    ports:\n      - 80:80\n", name, 0),
		"gateway_enabled":     true,
		"public_logs":         true,
		"port_policy":         map[string]any{"restrict_mode": true, "ports": []map[string]any{{"port": 80, "pp": false}}},
	})
	return string(text)
}

// hello greets, as a page to people and as a line to programs.
func hello(c *cvm) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		line := fmt.Sprintf("hello from app %s, instance %s\n", c.app, c.instance)
		if !strings.Contains(r.Header.Get("Accept"), "text/html") {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_, _ = fmt.Fprint(w, line)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = fmt.Fprintf(w, `<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">`+
			`<title>hello</title><body style="font:1.1rem system-ui;max-width:40rem;margin:10vh auto;padding:0 1rem;overflow-wrap:anywhere">`+
			`<h1>Hello</h1><p>%s<p>It runs in a simulated TEE, which proves nothing about hardware. <a href="/.well-known/attestation">What the gateway attests</a>.`, html.EscapeString(line))
	})
}

// echo answers with the head of the request that reached it, and echoes WebSocket messages at /ws.
func echo(*cvm) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/ws", echoMessages)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintf(w, "%s %s %s\nHost: %s\n", r.Method, r.URL.RequestURI(), r.Proto, r.Host)
		names := make([]string, 0, len(r.Header))
		for name := range r.Header {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			_, _ = fmt.Fprintf(w, "%s: %s\n", name, strings.Join(r.Header[name], ", "))
		}
	})
	return mux
}

func echoMessages(w http.ResponseWriter, r *http.Request) {
	socket, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer func() { _ = socket.CloseNow() }()
	for {
		kind, message, err := socket.Read(r.Context())
		if err != nil {
			return
		}
		if err := socket.Write(r.Context(), kind, message); err != nil {
			return
		}
	}
}

// server serves one app inside its CVM.
func server(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
}
