package join_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/join"
	"dstack.host/tunnel/agent"
)

func TestForwards(t *testing.T) {
	for text, want := range map[string]join.Forward{
		"3000":                {Port: 80, To: "127.0.0.1:3000"},
		"127.0.0.1:3000":      {Port: 80, To: "127.0.0.1:3000"},
		"app:80":              {Port: 80, To: "app:80"},
		"8080=app:80":         {Port: 8080, To: "app:80"},
		"443=[2001:db8::1]:1": {Port: 443, To: "[2001:db8::1]:1"},
		"8080=9090":           {Port: 8080, To: "127.0.0.1:9090"},
	} {
		got, err := join.ParseForward(text)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", text, err, diff)
		}
	}
	for _, text := range []string{
		"", "=", "app", "app:", ":80", "app:0", "app:65536", "app:http", "0=app:80", "65536=app:80", "x=app:80", "-1=app:80", "80=",
		"80=app", "80=81=82", "http://app:80", "80=http://app:80", "2001:db8::1:80", "a b:80", "+80", "0", "unix:/app.sock",
	} {
		if got, err := join.ParseForward(text); err == nil {
			t.Errorf("%q: %+v, want an error", text, got)
		}
	}
}

func TestPorts(t *testing.T) {
	for _, row := range []struct {
		name    string
		ports   join.Ports
		want    string // of the error
		policy  agent.PortPolicy
		inbound []uint16
	}{
		{"nothing", join.Ports{}, "nothing could be reached", agent.PortPolicy{RestrictMode: true, Ports: []agent.Port{}}, []uint16{8091}},
		{"twice", join.Ports{Forwards: []join.Forward{{Port: 80}}, Open: []uint16{80}}, "given twice", agent.PortPolicy{RestrictMode: true, Ports: []agent.Port{{Port: 80}, {Port: 80}}}, []uint16{80, 80, 8091}},
		{"the agent's", join.Ports{Open: []uint16{8091}}, "8091", agent.PortPolicy{RestrictMode: true, Ports: []agent.Port{{Port: 8091}}}, []uint16{8091, 8091}},
		{"two", join.Ports{Forwards: []join.Forward{{Port: 443}}, Open: []uint16{80}}, "", agent.PortPolicy{RestrictMode: true, Ports: []agent.Port{{Port: 80}, {Port: 443}}}, []uint16{443, 80, 8091}},
		{"all", join.Ports{All: true}, "", agent.PortPolicy{Ports: []agent.Port{}}, nil},
	} {
		if err := row.ports.Check(); (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.name, err, row.want)
		}
		if diff := cmp.Diff(row.policy, row.ports.Policy()); diff != "" {
			t.Errorf("%s: policy (-want +got):\n%s", row.name, diff)
		}
		if diff := cmp.Diff(row.inbound, row.ports.Inbound()); diff != "" {
			t.Errorf("%s: inbound (-want +got):\n%s", row.name, diff)
		}
	}
}

func TestURLs(t *testing.T) {
	ports := join.Ports{Forwards: []join.Forward{{Port: 80}}, Open: []uint16{8080}}
	for _, row := range []struct {
		answer agent.Answer
		want   []string
	}{
		{agent.Answer{}, nil},
		{agent.Answer{Domain: "example.com"}, []string{"https://id.example.com/", "https://id-8080.example.com/"}},
		{agent.Answer{Domain: "example.com", ExternalPort: 443}, []string{"https://id.example.com/", "https://id-8080.example.com/"}},
		{agent.Answer{Domain: "example.com", ExternalPort: 8443}, []string{"https://id.example.com:8443/", "https://id-8080.example.com:8443/"}},
	} {
		if diff := cmp.Diff(row.want, ports.URLs("id", row.answer)); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", row.answer, diff)
		}
	}
}
