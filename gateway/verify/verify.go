// Package verify is the relying party's side: it connects to a name behind a gateway, asks for the attestation document on
// that very connection, and walks the chain from the roots of trust to the instances.
package verify

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"dstack.host/gateway/registry"
	"dstack.host/ratls"
)

const (
	// AttestationPath is where every name has its document.
	AttestationPath = "/.well-known/attestation"
	exporterLabel   = "EXPORTER-dstack-ra-https"
	maxDocument     = 16 << 20
	dialTimeout     = 10 * time.Second
	// fetchTimeout allows for a queue before the gateway's quoting enclave.
	fetchTimeout = 60 * time.Second
)

// CheckCertificate is the link before the chain: the name's certificate, as a browser sees it.
const CheckCertificate = "tls-certificate"

// Options say what is accepted. The zero value accepts the system's certificate authorities and Intel's root.
type Options struct {
	// CAs are accepted for the TLS certificate; nil is the system's.
	CAs *x509.CertPool
	// Chain is what is accepted as evidence.
	Chain ratls.Chain
}

// Result is the outcome of one verification.
type Result struct {
	URL string `json:"url"`
	// Verdict is "pass" when no check failed.
	Verdict ratls.Status `json:"verdict"`
	ratls.Report
}

// OK reports whether no check failed.
func (r *Result) OK() bool { return r.Verdict == ratls.Pass }

// URL verifies what is behind a URL. An error means that it could not be tried; that something is wrong with what was
// seen is told by the result.
func URL(ctx context.Context, raw string, o Options) (*Result, error) {
	target, err := parseTarget(raw)
	if err != nil {
		return nil, err
	}
	conn, err := connect(ctx, target)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	state := conn.ConnectionState()
	subject := ratls.Subject{Host: target.canonical, ID: target.id, SPKI: state.PeerCertificates[0].RawSubjectPublicKeyInfo}
	if err := challenge(&subject, state); err != nil {
		return nil, err
	}
	result := &Result{URL: raw, Verdict: ratls.Pass}
	certificate := certificateCheck(state.PeerCertificates, target.host, o)
	document, refusal, err := fetch(ctx, conn, target, subject)
	if err != nil {
		return nil, err
	}
	if refusal != "" {
		result.Checks = []ratls.Check{{Name: ratls.LinkDocument, Status: ratls.Fail, Detail: refusal}}
	} else {
		result.Report = o.Chain.Verify(ctx, document, subject)
	}
	result.Checks = append([]ratls.Check{certificate}, result.Checks...)
	if _, failed := result.Failure(); failed {
		result.Verdict = ratls.Fail
	}
	return result, nil
}

// target is a URL, taken apart.
type target struct {
	host, port string
	canonical  string // the host in the one spelling that statements use
	id         string // what the name's label names, as hex; "" for a name of the gateway's own
}

func parseTarget(raw string) (target, error) {
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		return target{}, err
	}
	if u.Scheme != "https" || u.Hostname() == "" {
		return target{}, fmt.Errorf("%q is not an https URL, as https://<id>.dstack.example.com", raw)
	}
	t := target{host: strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), port: u.Port()}
	if t.port == "" {
		t.port = "443"
	}
	t.canonical = t.host
	label, base, _ := strings.Cut(t.host, ".")
	name, err := registry.ParseLabel(label)
	if err != nil {
		return t, nil // not an app's name; if it is none of the gateway's either, no statement will name it
	}
	if name.Passthrough {
		return target{}, fmt.Errorf("%s is a passthrough name: the gateway does not see its TLS session and can't attest it; verify the app's own certificate", t.host)
	}
	t.canonical, t.id = name.ID+"."+base, name.ID
	if name.Kind == registry.KindCompose {
		hash, err := registry.ParseComposeHash(name.ID)
		if err != nil {
			return target{}, err
		}
		t.id = hex.EncodeToString(hash[:])
	}
	return t, nil
}

// connect opens the connection that everything is about. Its certificate is judged later, as one check among others.
func connect(ctx context.Context, t target) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	host := t.host
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		host = "127.0.0.1" // RFC 6761 section 6.3: without asking anybody
	}
	dialer := tls.Dialer{Config: &tls.Config{
		ServerName: t.host, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
	}}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, t.port))
	if err != nil {
		return nil, err
	}
	return conn.(*tls.Conn), nil
}

// challenge makes a nonce and, where the protocol allows it, binds it to the connection.
func challenge(s *ratls.Subject, state tls.ConnectionState) (err error) {
	s.Nonce = make([]byte, ratls.NonceSize)
	if _, err := rand.Read(s.Nonce); err != nil {
		return err
	}
	if state.Version == tls.VersionTLS13 {
		s.Exporter, err = state.ExportKeyingMaterial(exporterLabel, s.Nonce, ratls.ExporterSize)
	}
	return err
}

func certificateCheck(chain []*x509.Certificate, host string, o Options) ratls.Check {
	check := ratls.Check{Name: CheckCertificate, Status: ratls.Pass}
	options := x509.VerifyOptions{DNSName: host, Roots: o.CAs, Intermediates: x509.NewCertPool()}
	if o.Chain.Now != nil {
		options.CurrentTime = o.Chain.Now()
	}
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	verified, err := chain[0].Verify(options)
	if err != nil {
		check.Status, check.Detail = ratls.Fail, err.Error()
		return check
	}
	root := verified[0][len(verified[0])-1]
	check.Detail = fmt.Sprintf("valid for %s until %s, issued below %q", host, chain[0].NotAfter.UTC().Format(time.RFC3339), root.Subject.CommonName)
	return check
}

// fetch asks for the document on the connection. A refusal is the gateway's own word that there is none.
func fetch(ctx context.Context, conn *tls.Conn, t target, s ratls.Subject) (document []byte, refusal string, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	query := url.Values{"nonce": {hex.EncodeToString(s.Nonce)}}
	if s.Exporter != nil {
		query.Set("bind", "tls-exporter")
	}
	where := url.URL{Scheme: "https", Host: net.JoinHostPort(t.host, t.port), Path: AttestationPath, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), nil)
	if err != nil {
		return nil, "", err
	}
	request.Header.Set("Accept", "application/json")
	used := false
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			if used {
				return nil, errors.New("the gateway closed the connection that was to be attested")
			}
			used = true
			return conn, nil
		},
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxDocument+1))
	switch {
	case err != nil:
		return nil, "", err
	case len(body) > maxDocument:
		return nil, fmt.Sprintf("the answer is longer than %d bytes", maxDocument), nil
	case response.StatusCode == http.StatusTooManyRequests:
		return nil, "", fmt.Errorf("the gateway asks to wait %s seconds before another nonce", printable(response.Header.Get("Retry-After")))
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Sprintf("the gateway answers %d%s", response.StatusCode, reason(body)), nil
	}
	return body, "", nil
}

// reason is what problem details (RFC 9457) say.
func reason(body []byte) string {
	var problem struct{ Reason, Title, Detail string }
	if json.Unmarshal(body, &problem) != nil || problem.Title == "" {
		return ""
	}
	return fmt.Sprintf(" %s: %s. %s", printable(problem.Reason), printable(problem.Title), printable(problem.Detail))
}

// maxPrinted bounds a stranger's text on a terminal, in bytes.
const maxPrinted = 2000

// printable makes a stranger's text safe for a terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxPrinted {
		s = strings.ToValidUTF8(s[:maxPrinted], "") + "…"
	}
	return s
}
