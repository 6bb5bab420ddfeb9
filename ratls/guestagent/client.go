package guestagent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	// AddressEnv names the variable by which dstack tells its clients where the agent is.
	AddressEnv = "DSTACK_AGENT_ADDRESS"

	// timeout bounds one call. A quote takes about a second and waits for those before it; a key may come from a KMS.
	timeout   = 60 * time.Second
	maxAnswer = 16 << 20
	// maxReason bounds the agent's text that goes into an error.
	maxReason = 1 << 10
)

// sockets are where the agent listens inside a CVM, in the order of preference (dstack 0.6 guest-agent/dstack.toml).
var sockets = []string{"/var/run/dstack/dstack.sock", "/var/run/dstack.sock"}

// Find returns the address of this CVM's agent: what [AddressEnv] says, else the first of its sockets that exists; "" where
// there is none.
func Find() string {
	if address := os.Getenv(AddressEnv); address != "" {
		return address
	}
	for _, socket := range sockets {
		if info, err := os.Stat(socket); err == nil && info.Mode().Type() == fs.ModeSocket {
			return socket
		}
	}
	return ""
}

// client calls the agent's methods.
type client struct {
	http *http.Client
	base string // URL that a method's name is appended to
}

// newClient reads the address: the path of a socket, which may begin with unix:, or an http URL as dstack's simulator has.
func newClient(address string) (*client, error) {
	if strings.HasPrefix(address, "http://") {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("%q: want http://host:port or the path of a socket", address)
		}
		return &client{http: &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}, base: strings.TrimRight(address, "/") + "/"}, nil
	}
	path := strings.TrimPrefix(address, "unix:")
	if strings.HasPrefix(path, "//") {
		path = path[2:]
	}
	if path == "" || strings.Contains(path, "://") {
		return nil, fmt.Errorf("%q: want http://host:port or the path of a socket", address)
	}
	transport := &http.Transport{
		DisableKeepAlives: true, // a call every few minutes: nothing to gain, and the agent may restart
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}
	return &client{http: &http.Client{Timeout: timeout, Transport: transport}, base: "http://dstack/"}, nil
}

// call posts a request and reads the answer into response. Members that it does not know are passed over, as prpc wants it.
func (c *client) call(ctx context.Context, method string, request, response any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+method+"?json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("guest agent: %s: %w", method, unwrapURL(err))
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("guest agent: %s: %w", method, err)
	case answer.StatusCode != http.StatusOK: // exactly, as dstack's own clients want it
		return fmt.Errorf("guest agent: %s: %s: %s", method, answer.Status, reason(text))
	case len(text) > maxAnswer:
		return fmt.Errorf("guest agent: %s: the answer has more than %d bytes", method, maxAnswer)
	}
	if err := json.Unmarshal(text, response); err != nil {
		return fmt.Errorf("guest agent: %s: %w", method, err)
	}
	return nil
}

// unwrapURL drops the method and the URL, which say nothing here.
func unwrapURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// reason is the agent's word on a failure, short and printable.
func reason(text []byte) string {
	var failure struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(text, &failure) == nil && failure.Error != "" {
		text = []byte(failure.Error)
	}
	if len(text) > maxReason {
		text = append(bytes.Clone(text[:maxReason]), "…"...)
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(text), "?"))
}
