package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"dstack.host/dnsserver"
	"dstack.host/gateway"
	"dstack.host/gateway/verify"
	"dstack.host/ratls"
)

// Line is one command that the demo prints to be copied, with what has to come out of it.
type Line struct {
	// Command is what a person types, as the words that a shell makes of it.
	Command []string
	// Want is a text that has to occur in the output.
	Want string
	// Do is the same in this process, for a machine without the tool.
	Do func(context.Context) (string, error)
}

// String is the line as printed.
func (l Line) String() string { return shell(l.Command) }

// shell writes words as a line that a POSIX shell reads as those words.
func shell(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = w
		if w == "" || strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-") != "" {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// Lines are the commands that the demo prints.
func (d *Demo) Lines() []Line {
	var lines []Line
	for _, c := range d.cvms {
		lines = append(lines, d.curl("--http1.1", c))
	}
	first := d.cvms[0]
	return append(lines, d.curl("--http2", first), d.dig(first), d.verify(first))
}

// url is where an app is reached.
func (d *Demo) url(c *cvm) string {
	return fmt.Sprintf("https://%s.%s:%d/", c.app, d.options.Base, d.gateway.HTTPSAddr().Port())
}

func (d *Demo) curl(version string, c *cvm) Line {
	want := "hello from app " + c.app.String()
	if c.name == "echo" {
		want = "Host: " + c.app.String()
	}
	return Line{
		Command: []string{"curl", "-sS", version, "--cacert", d.CAFile(), d.url(c)},
		Want:    want,
		Do: func(ctx context.Context) (string, error) {
			return d.Get(ctx, d.url(c), version == "--http2")
		},
	}
}

func (d *Demo) dig(c *cvm) Line {
	server, name := d.gateway.DNSAddr(), c.app.String()+"."+d.options.Base
	return Line{
		Command: []string{"dig", "+short", "@" + server.Addr().String(), "-p", fmt.Sprint(server.Port()), name, "A"},
		Want:    loopback.String(),
		Do: func(ctx context.Context) (string, error) {
			answer, err := dnsserver.Query(ctx, server.String(), name, "A")
			return strings.Join(answer.Answers, "\n"), err
		},
	}
}

func (d *Demo) verify(c *cvm) Line {
	url := strings.TrimSuffix(d.url(c), "/")
	return Line{
		Command: []string{d.options.Program, "verify", "--ca", d.CAFile(), "--simulated-root", d.RootFile(), "--resolver", d.gateway.DNSAddr().String(), url},
		Want:    "verified, but the TEE is SIMULATED",
		Do: func(ctx context.Context) (string, error) {
			result, err := d.Verify(ctx, url)
			if err != nil {
				return "", err
			}
			var out strings.Builder
			err = result.Print(&out)
			return out.String(), err
		},
	}
}

// Join is the command that puts a web app of this machine, at [PORT=]HOST:PORT, beside the demo's.
func (d *Demo) Join(to string) []string {
	return []string{
		d.options.Program, "join", "--simulated", gateway.SimulatedAuthorityFile(d.dir), "--gateway-app", d.app,
		"--to", to, "--device", "netstack", fmt.Sprintf("https://%s", d.gateway.EnrollAddr()),
	}
}

// Verify walks the chain of a URL with the demo's roots, and asks its DNS server.
func (d *Demo) Verify(ctx context.Context, url string) (*verify.Result, error) {
	cas, err := d.pool()
	if err != nil {
		return nil, err
	}
	root, err := d.simulatedRoot()
	if err != nil {
		return nil, err
	}
	return verify.URL(ctx, url, verify.Options{
		CAs: cas, Chain: ratls.Chain{Roots: []ratls.VerifierConfig{{}, {Root: root}}},
		Resolvers: []string{d.gateway.DNSAddr().String()},
	})
}

func (d *Demo) pool() (*x509.CertPool, error) {
	text, err := os.ReadFile(d.CAFile())
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", d.CAFile())
	}
	return pool, nil
}

func (d *Demo) simulatedRoot() (*x509.Certificate, error) {
	text, err := os.ReadFile(d.RootFile())
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no certificate", d.RootFile())
	}
	return x509.ParseCertificate(block.Bytes)
}

// Client is an HTTP client that knows the demo's certificates and where its names are.
func (d *Demo) Client(http2 bool) (*http.Client, error) {
	pool, err := d.pool()
	if err != nil {
		return nil, err
	}
	var protocols http.Protocols
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	transport := &http.Transport{
		Protocols:         &protocols,
		TLSClientConfig:   &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, d.gateway.HTTPSAddr().String())
		},
	}
	return &http.Client{Transport: transport, Timeout: 15 * time.Second}, nil
}

// Get fetches a URL of the demo in this process. An answer other than 200 is an error.
func (d *Demo) Get(ctx context.Context, url string, http2 bool) (string, error) {
	client, err := d.Client(http2)
	if err != nil {
		return "", err
	}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return string(body), err
}

// Try runs the line in this process and holds its outcome against what it promises.
func (l Line) Try(ctx context.Context) error {
	out, err := l.Do(ctx)
	return l.judge(out, err)
}

// run runs the line as a person would; in this process where the tool is not installed.
func (l Line) run(ctx context.Context) (out, how string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err = exec.LookPath(l.Command[0]); err != nil {
		out, err = l.Do(ctx)
		how = fmt.Sprintf("in this process, because %s is not installed", l.Command[0])
	} else {
		var text []byte
		text, err = exec.CommandContext(ctx, "sh", "-c", l.String()).CombinedOutput()
		out = string(text)
	}
	return out, how, l.judge(out, err)
}

// judge holds an outcome against what the line promises.
func (l Line) judge(out string, err error) error {
	if err != nil {
		return err
	}
	if !strings.Contains(out, l.Want) {
		return errors.New("the output lacks " + fmt.Sprintf("%q", l.Want))
	}
	return nil
}
