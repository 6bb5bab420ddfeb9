package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"dstack.host/tunnel"
)

const (
	// ExporterLabel and ExporterSize define the value of a TLS connection (RFC 8446 section 7.5, RFC 5705) that
	// evidence is made for; there is no context value.
	ExporterLabel = "EXPORTER-dstack-register"
	ExporterSize  = 32

	// dstack 0.6 ra-rpc/src/client.rs.
	connectTimeout = 5 * time.Second
	totalTimeout   = 60 * time.Second

	maxAnswer = 1 << 20
	maxHead   = 64 << 10
	// maxReason bounds the text of the gateway that goes into an error.
	maxReason = 1 << 10

	// wantsQuote in an error asks for the certificate that carries a quote (dstack 0.6 system_setup.rs).
	wantsQuote = "no attestation provided"
)

// PortPolicy says which ports of this CVM the gateway may connect to.
type PortPolicy struct {
	// Ports are listed ports; with RestrictMode no other is allowed.
	Ports        []Port `json:"ports"`
	RestrictMode bool   `json:"restrict_mode"`
}

// Port is one port, and whether it expects a PROXY protocol header.
type Port struct {
	Port uint16 `json:"port"`
	PP   bool   `json:"pp"`
}

// MarshalJSON writes an empty list where there are no ports: dstack reads no null there.
func (p PortPolicy) MarshalJSON() ([]byte, error) {
	type plain PortPolicy
	if p.Ports == nil {
		p.Ports = []Port{}
	}
	return json.Marshal(plain(p))
}

// requestJSON is dstack's RegisterCvmRequest (dstack 0.6 gateway/rpc/proto/gateway_rpc.proto) and the optional member
// evidence, which other gateways ignore.
type requestJSON struct {
	ClientPublicKey tunnel.PublicKey `json:"client_public_key"`
	PortPolicy      PortPolicy       `json:"port_policy"`
	Evidence        json.RawMessage  `json:"evidence,omitempty"`
}

// target is one gateway to register with.
type target struct {
	url  *url.URL // complete
	addr string   // host:port to connect to
	host string   // of the URL, for TLS
}

// parseTarget normalises the URL of a gateway as dstack does: trailing slashes are dropped and /prpc is appended unless
// it is there. Plain HTTP is refused, registration without TLS has no identity.
func parseTarget(s string) (target, error) {
	u, err := url.Parse(s)
	if err != nil {
		return target{}, fmt.Errorf("gateway url: %w", err)
	}
	if u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return target{}, fmt.Errorf("gateway url %q: want https://host[:port][/path]", u.Redacted())
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	path := strings.TrimRight(u.Path, "/")
	if !strings.HasSuffix(path, "/prpc") {
		path += "/prpc"
	}
	u.Path, u.RawPath, u.RawQuery = path+"/RegisterCvm", "", "json"
	return target{url: u, addr: net.JoinHostPort(u.Hostname(), port), host: u.Hostname()}, nil
}

// Register registers with the first gateway that answers, in the order of Config.URLs. If none does, the error is that
// of the first. It configures nothing.
func (a *Agent) Register(ctx context.Context) (Answer, error) {
	var first error
	for i, t := range a.targets {
		answer, err := a.registerAt(ctx, t)
		if err == nil {
			return answer, nil
		}
		if ctx.Err() != nil {
			return Answer{}, err
		}
		if len(a.targets) > 1 { // the only one's error is the whole error
			a.cfg.Logger.Warn("registration refused", "url", t.url.String(), "error", err)
		}
		if i == 0 {
			first = err
		}
	}
	return Answer{}, fmt.Errorf("Failed to register CVM, all dstack-gateway urls are down: %w", first)
}

// registerAt tries one gateway, and again with the certificate that carries a quote if it asks for that.
func (a *Agent) registerAt(ctx context.Context, t target) (Answer, error) {
	answer, err := a.attempt(ctx, t, nil)
	if err == nil || a.cfg.Fallback == nil || !strings.Contains(err.Error(), wantsQuote) {
		return answer, err
	}
	cert, ferr := a.cfg.Fallback(ctx)
	if ferr != nil {
		return Answer{}, fmt.Errorf("%w; certificate with a quote: %w", err, ferr)
	}
	return a.attempt(ctx, t, cert)
}

// attempt is one request on a connection of its own. The TLS handshake is complete before the body is built, because
// evidence is made for the connection.
func (a *Agent) attempt(ctx context.Context, t target, cert *tls.Certificate) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, totalTimeout)
	defer cancel()
	c, err := a.connect(ctx, t, cert)
	if err != nil {
		return Answer{}, fmt.Errorf("connect to %s: %w", t.addr, err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.NetConn().Close() }) // a context may end before its deadline
	defer stop()
	if a.cfg.Trust != nil {
		if err := a.cfg.Trust(ctx, c.ConnectionState()); err != nil {
			return Answer{}, fmt.Errorf("trust %s: %w", t.addr, err)
		}
	}
	body, err := a.request(ctx, c)
	if err != nil {
		return Answer{}, err
	}
	data, err := post(ctx, c, t.url, body)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return Answer{}, fmt.Errorf("register at %s: %w", t.addr, err)
	}
	return ParseAnswer(data)
}

func (a *Agent) connect(ctx context.Context, t target, cert *tls.Certificate) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return nil, err
	}
	cfg := a.cfg.TLS.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	cfg.ClientSessionCache = nil
	if cfg.ServerName == "" {
		cfg.ServerName = t.host
	}
	if cfg.MinVersion < tls.VersionTLS12 {
		cfg.MinVersion = tls.VersionTLS12
	}
	if cert != nil {
		cfg.Certificates = nil
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// request builds the body for the connection c.
func (a *Agent) request(ctx context.Context, c *tls.Conn) ([]byte, error) {
	r := requestJSON{ClientPublicKey: a.public}
	if a.cfg.Ports != nil {
		r.PortPolicy = *a.cfg.Ports
	}
	if a.cfg.Evidence != nil {
		state := c.ConnectionState()
		exporter, err := state.ExportKeyingMaterial(ExporterLabel, nil, ExporterSize)
		if err != nil {
			return nil, fmt.Errorf("evidence: tls exporter: %w", err)
		}
		if r.Evidence, err = a.cfg.Evidence(ctx, exporter, a.public); err != nil {
			return nil, fmt.Errorf("evidence: %w", err)
		}
	}
	return json.Marshal(r)
}

// post sends one request and reads one answer, both on c. Like dstack's client it sets no Content-Type; unlike it, it
// follows no redirect: the evidence was made for this connection.
func post(ctx context.Context, c net.Conn, u *url.URL, body []byte) ([]byte, error) {
	if t, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(t); err != nil {
			return nil, err
		}
	}
	req := &http.Request{
		Method: http.MethodPost, URL: u, Host: u.Host, ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"User-Agent": {"dstack-gateway"}, "Accept": {"application/json"}},
		Body:   io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Close: true,
	}
	if err := req.Write(c); err != nil {
		return nil, err
	}
	in := bufio.NewReader(io.LimitReader(c, maxHead+maxAnswer+1))
	res, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case res.StatusCode < 200 || res.StatusCode > 299:
		return nil, fmt.Errorf("Request failed with status=%s, error=%s", res.Status, reason(data))
	case len(data) > maxAnswer:
		return nil, fmt.Errorf("answer longer than %d octets", maxAnswer)
	case err != nil:
		return nil, err
	}
	return data, nil
}

// reason makes the gateway's text fit for an error and a log: short, without control characters.
func reason(data []byte) string {
	if len(data) > maxReason {
		data = append(bytes.Clone(data[:maxReason]), "…"...)
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(data), "?"))
}
