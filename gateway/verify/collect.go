package verify

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"dstack.host/ratls"
)

const (
	// AttestationPath is where every name has its document.
	AttestationPath = "/.well-known/attestation"
	// acmeInfoPath is where the gateway's own name has the history of its certificate keys (dstack 0.6
	// gateway/src/proxy/tls_terminate.rs).
	acmeInfoPath  = "/.dstack/acme-info"
	exporterLabel = "EXPORTER-dstack-ra-https"
	maxDocument   = 16 << 20
	maxACMEInfo   = 8 << 20
	dialTimeout   = 10 * time.Second
	// fetchTimeout allows for a queue before the gateway's quoting enclave.
	fetchTimeout = 60 * time.Second
)

// collect fetches what the gateway says, on a connection that the answer is bound to.
func collect(ctx context.Context, raw string, o Options) (*Bundle, error) {
	t, err := parseTarget(raw)
	if err != nil {
		return nil, err
	}
	fresh := o.FreshApp && t.id != "" // the gateway's own name has no app
	ask := func(bind bool) (*Bundle, string, error) { return attempt(ctx, t, o.Nonce, fresh, bind) }
	b, address, err := ask(o.Exporter != ExporterOff)
	if err != nil {
		return nil, err
	}
	if b.Exporter != nil && b.Document.Status == http.StatusBadRequest {
		refused := "the gateway refused it: " + b.Document.refusal()
		if b, address, err = ask(false); err != nil {
			return nil, err
		}
		b.Unbound = refused
	}
	b.URL = raw
	b.ACMEInfo = acmeInfoOf(ctx, t, address)
	return b, b.check()
}

// attempt asks for the document once, on a connection of its own, and returns the address at its other end.
func attempt(ctx context.Context, t target, chosen []byte, fresh, bind bool) (*Bundle, string, error) {
	conn, err := connect(ctx, t, t.host, address(t))
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = conn.Close() }()
	state := conn.ConnectionState()
	b := &Bundle{Format: BundleFormat, Nonce: chosen, FreshApp: fresh, TLS: session(state)}
	if b.Nonce == nil {
		if b.Nonce, err = nonce(); err != nil {
			return nil, "", err
		}
	}
	switch {
	case state.Version != tls.VersionTLS13:
		b.Unbound = tls.VersionName(state.Version) + " has no exporter that is one connection's alone" // RFC 7627 section 1
	case !bind:
		b.Unbound = "that was not asked for"
	default:
		if b.Exporter, err = state.ExportKeyingMaterial(exporterLabel, b.Nonce, ratls.ExporterSize); err != nil {
			return nil, "", err
		}
	}
	b.Document, err = fetch(ctx, conn, net.JoinHostPort(t.host, t.port), AttestationPath, b.query(), maxDocument)
	b.Time = time.Now().UTC().Round(0)
	return b, conn.RemoteAddr().String(), err
}

func nonce() (ratls.Hex, error) {
	n := make([]byte, ratls.NonceSize)
	_, err := rand.Read(n)
	return n, err
}

// query is what the document is asked with.
func (b *Bundle) query() url.Values {
	query := url.Values{"nonce": {hex.EncodeToString(b.Nonce)}}
	if b.Exporter != nil {
		query.Set("bind", "tls-exporter")
	}
	if b.FreshApp {
		query.Set("fresh", "app")
	}
	return query
}

// acmeInfoOf asks the gateway's own name, at the address that the document came from. Who answers is not looked at: every
// key in the answer has to be quoted.
func acmeInfoOf(ctx context.Context, t target, address string) Answer {
	host := gatewayLabel + "." + t.base
	conn, err := connect(ctx, t, host, address)
	if err != nil {
		return Answer{Error: printable(err.Error())}
	}
	defer func() { _ = conn.Close() }()
	answer, err := fetch(ctx, conn, net.JoinHostPort(host, t.port), acmeInfoPath, nil, maxACMEInfo)
	if err != nil {
		return Answer{Error: printable(err.Error())}
	}
	return answer
}

// address is where a target is dialed.
func address(t target) string {
	host := t.host
	if isLocalhost(host) {
		host = "127.0.0.1" // RFC 6761 section 6.3: without asking anybody
	}
	return net.JoinHostPort(host, t.port)
}

// connect opens a connection. Its certificate is judged later, as one check among others.
func connect(ctx context.Context, t target, name, address string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{
		ServerName: name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
	}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return conn.(*tls.Conn), nil
}

// session is what a connection showed.
func session(state tls.ConnectionState) Session {
	s := Session{Version: tls.VersionName(state.Version), Certificates: []ratls.Base64{}, SCTs: []ratls.Base64{}}
	for _, c := range state.PeerCertificates {
		s.Certificates = append(s.Certificates, c.Raw)
	}
	for _, sct := range state.SignedCertificateTimestamps {
		s.SCTs = append(s.SCTs, sct)
	}
	return s
}

// fetch sends one request on the connection. An answer of any status is no error, but one that asks to wait.
func fetch(ctx context.Context, conn *tls.Conn, authority, path string, query url.Values, limit int64) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	where := url.URL{Scheme: "https", Host: authority, Path: path, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), nil)
	if err != nil {
		return Answer{}, err
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
		return Answer{}, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	switch {
	case err != nil:
		return Answer{}, err
	case int64(len(body)) > limit:
		return Answer{Error: fmt.Sprintf("the answer is longer than %d bytes", limit)}, nil
	case response.StatusCode == http.StatusTooManyRequests:
		return Answer{}, fmt.Errorf("the gateway asks to wait%s before another nonce", waiting(response.Header.Get("Retry-After")))
	}
	return Answer{Status: response.StatusCode, Body: body}, nil
}

// waiting tells how long a Retry-After field says, which may be a date or be missing (RFC 9110 section 10.2.3).
func waiting(field string) string {
	if seconds, err := strconv.Atoi(field); err == nil && seconds >= 0 {
		return fmt.Sprintf(" %d seconds", seconds)
	}
	if _, err := http.ParseTime(field); err == nil {
		return " until " + printable(field)
	}
	return ""
}

// refusal is why an answer is not what was asked for, "" when it is.
func (a Answer) refusal() string {
	switch {
	case a.Error != "":
		return a.Error
	case a.Status != http.StatusOK:
		return fmt.Sprintf("the gateway answers %d%s", a.Status, reason(a.Body))
	}
	return ""
}

// reason is what problem details (RFC 9457) say.
func reason(body []byte) string {
	var problem struct{ Reason, Title, Detail string }
	if json.Unmarshal(body, &problem) != nil || problem.Title == "" {
		return ""
	}
	return fmt.Sprintf(" %s: %s. %s", printable(problem.Reason), printable(problem.Title), printable(problem.Detail))
}
