package certs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// maxResponse bounds what is read of one answer of an ACME server; a chain of ten certificates has some 20 KiB.
const maxResponse = 1 << 20

// acmeIssuer is a certmagic.Issuer over acmez.
//
// It stands in place of certmagic.ACMEIssuer, which cannot be used here: each of its accounts starts a goroutine that
// never ends, its HTTP connections cannot be closed, it takes the contact address of another instance in the process
// when none is configured, it may ask a person on standard input, and it sends retries to Let's Encrypt's staging
// directory first, whose account our CAA records forbid.
type acmeIssuer struct {
	directory string
	email     string
	storage   vault
	attestor  Attestor
	client    *acmez.Client
	transport *http.Transport
	changed   func(account string) // told the account URI when it becomes known and when it changes

	mu      sync.Mutex // held while the account is loaded or registered
	account accountRecord
}

// accountRecord is what storage keeps of the ACME account, as JSON.
type accountRecord struct {
	Directory string `json:"directory"`
	// Key is the account's private key, PKCS #8 PEM.
	Key string `json:"key"`
	// URI is the account URL, empty until the account is registered.
	URI string `json:"uri,omitempty"`
}

var _ issuer = (*acmeIssuer)(nil)

func newACMEIssuer(cfg Config, st vault, changed func(string)) *acmeIssuer {
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: cfg.CARoots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   30 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       time.Minute,
		ForceAttemptHTTP2:     true,
	}
	return &acmeIssuer{
		directory: cfg.Directory,
		email:     cfg.Email,
		storage:   st,
		attestor:  cfg.Attestor,
		transport: transport,
		changed:   changed,
		client: &acmez.Client{
			Client: &acme.Client{
				Directory:  cfg.Directory,
				HTTPClient: &http.Client{Transport: boundedTransport{transport}, Timeout: time.Minute},
				UserAgent:  "dstack-gateway",
				Logger:     cfg.Logger.With(slog.String("logger", "acme")),
			},
			ChallengeSolvers: map[string]acmez.Solver{
				acme.ChallengeTypeDNS01: dns01{provider: provider{cfg.Challenges}, domains: cfg.Domains},
			},
		},
	}
}

// IssuerKey names this issuer's directory in storage after its ACME directory, as certmagic.ACMEIssuer does.
func (a *acmeIssuer) IssuerKey() string {
	u, err := url.Parse(a.directory)
	if err != nil {
		return "acme"
	}
	return strings.TrimRight(u.Host+"-"+strings.ReplaceAll(strings.Trim(u.Path, "/"), "/", "-"), "-")
}

// load reads the account from storage, where an earlier run or another node may have registered it. It asks no server.
func (a *acmeIssuer) load(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	value, err := a.storage.Load(ctx, a.accountKey())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return a.adopt(value)
}

// close ends idle connections to the ACME server.
func (a *acmeIssuer) close() { a.transport.CloseIdleConnections() }

// Issue obtains a certificate for csr, registering the account first when there is none. When the server has lost the
// account, the same key is registered once more.
func (a *acmeIssuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	account, err := a.registered(ctx, "")
	if err != nil {
		return nil, err
	}
	chain, err := a.order(ctx, account, csr)
	if problem := (acme.Problem{}); errors.As(err, &problem) && problem.Type == acme.ProblemTypeAccountDoesNotExist {
		if account, err = a.registered(ctx, account.Location); err != nil {
			return nil, err
		}
		chain, err = a.order(ctx, account, csr)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.directory, err)
	}
	return chain, nil
}

func (a *acmeIssuer) order(ctx context.Context, account acme.Account, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	if err := a.attestor.AttestAccount(ctx, account.Location); err != nil {
		return nil, fmt.Errorf("the account is not attested, so nothing is ordered: %w", err)
	}
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		return nil, err
	}
	chains, err := a.client.ObtainCertificate(ctx, params)
	if err != nil {
		return nil, err
	}
	if len(chains) == 0 {
		return nil, errors.New("the server offered no certificate")
	}
	return &certmagic.IssuedCertificate{Certificate: chains[0].ChainPEM, Metadata: chains[0]}, nil
}

// registered returns the account, after registering it if its URI is unknown or is lost, the URI that the server denied.
func (a *acmeIssuer) registered(ctx context.Context, lost string) (acme.Account, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.account.Key == "" {
		if err := a.newKey(ctx); err != nil {
			return acme.Account{}, fmt.Errorf("ACME account: %w", err)
		}
	}
	key, err := parseAccountKey(a.account.Key)
	if err != nil {
		return acme.Account{}, fmt.Errorf("ACME account: %w", err)
	}
	if a.account.URI == "" || a.account.URI == lost {
		if err := a.register(ctx, key); err != nil {
			return acme.Account{}, fmt.Errorf("register ACME account at %s: %w", a.directory, err)
		}
	}
	return acme.Account{Status: acme.StatusValid, Location: a.account.URI, PrivateKey: key}, nil
}

// newKey makes the account's key, or takes the one that another node made meanwhile.
func (a *acmeIssuer) newKey(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	fresh, err := json.Marshal(accountRecord{Directory: a.directory, Key: string(text)})
	if err != nil {
		return err
	}
	value, err := a.storage.create(ctx, a.accountKey(), fresh)
	if err != nil {
		return err
	}
	return a.adopt(value)
}

// register registers key, which for a key that the server knows only tells its account (RFC 8555 section 7.3), so that
// nodes sharing the key end up with one account. The URI is stored before it is told.
func (a *acmeIssuer) register(ctx context.Context, key *ecdsa.PrivateKey) error {
	request := acme.Account{TermsOfServiceAgreed: true, PrivateKey: key}
	if a.email != "" {
		request.Contact = []string{"mailto:" + a.email}
	}
	got, err := a.client.NewAccount(ctx, request)
	if err != nil {
		return err
	}
	if got.Status != acme.StatusValid {
		return fmt.Errorf("account %s is %q", got.Location, got.Status)
	}
	if err := checkAccountURI(got.Location); err != nil {
		return err
	}
	record := a.account
	record.URI = got.Location
	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	if err := a.storage.Store(ctx, a.accountKey(), value); err != nil {
		return err
	}
	return a.adopt(value)
}

// adopt takes a stored account. One that is damaged or of another directory is refused, never replaced: its URI may
// stand in CAA records and statements. Errors do not show the value.
func (a *acmeIssuer) adopt(value []byte) error {
	var record accountRecord
	if err := json.Unmarshal(value, &record); err != nil {
		return errors.New("the stored account is not readable")
	}
	if record.Directory != a.directory {
		return fmt.Errorf("the stored account belongs to %s", record.Directory)
	}
	if _, err := parseAccountKey(record.Key); err != nil {
		return err
	}
	a.account = record
	if record.URI != "" {
		a.changed(record.URI)
	}
	return nil
}

func (a *acmeIssuer) accountKey() string {
	return "acme/" + certmagic.StorageKeys.Safe(a.IssuerKey()) + "/account.json"
}

func parseAccountKey(text string) (*ecdsa.PrivateKey, error) {
	bad := errors.New("the stored account's key is not an ECDSA key in PKCS #8 PEM")
	block, rest := pem.Decode([]byte(text))
	if block == nil || len(rest) != 0 {
		return nil, bad
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, bad
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, bad
	}
	return ec, nil
}

// checkAccountURI accepts what can stand as accounturi in a CAA record: an https URL of printable ASCII without the
// semicolon that would begin another parameter (RFC 8659 section 4.2, RFC 8657 section 3).
func checkAccountURI(uri string) error {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "https" || u.Host == "" || len(uri) > 200 {
		return fmt.Errorf("account URI %q is not a short https URL", uri)
	}
	for i := range len(uri) {
		if c := uri[i]; c < 0x21 || c > 0x7e || c == ';' || c == '"' || c == '\\' {
			return fmt.Errorf("account URI %q cannot stand in a CAA record", uri)
		}
	}
	return nil
}

// boundedTransport limits the size of responses, which acmez reads whole.
type boundedTransport struct{ http.RoundTripper }

// RoundTrip performs r; reading more than maxResponse of the body is an error.
func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{http.MaxBytesReader(nil, resp.Body, maxResponse), resp.Body}
	}
	return resp, err
}
