// Package guesttest stands in for the CVMs of dstack: it registers with the octets that their releases send, believes and checks what
// they do, writes the file that they write, and refreshes when they do. It is written from dstack's sources (dstack-util/src/system_setup.rs,
// gateway_checker.rs, ra-rpc/src/client.rs, wg-checker.sh), not from ours.
package guesttest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dstack.host/ratls"
	"dstack.host/tunnel"
)

// Version is a release of dstack's guest image.
type Version string

// The releases that differ.
const (
	V054  Version = "0.5.4"
	V058  Version = "0.5.8"
	V0511 Version = "0.5.11"
	V06   Version = "0.6"
)

// Any is the app id of a gateway that guests do not check.
const Any = "any"

// Guest is one CVM. Its fields are what its KMS, its host and its boot gave it.
type Guest struct {
	Version Version
	URLs    []string
	// Root is the KMS's, the only one trusted. GatewayAppID is what the KMS says of gateways: text with the hex of their app id in it, or Any.
	Root         *x509.Certificate
	GatewayAppID string
	// Client is the certificate that is shown first; Fallback, of releases from 0.5.6 on, is shown to a gateway that asks for attestation.
	Client, Fallback tls.Certificate
	Key              tunnel.PrivateKey
	// Ports is the JSON of the port policy in the app's compose file, told from 0.5.9 on; "" is none.
	Ports string
	// Dir is where the interface's configuration is written.
	Dir string

	// Sent are the requests that were sent, octet by octet, and Ran the commands that a change of the configuration runs.
	Sent, Ran []string
}

// Interface is the name of the tunnel's interface.
func (g *Guest) Interface() string {
	if g.Version == V054 {
		return "wg0"
	}
	return "dstack-wg0"
}

// File is the interface's configuration.
func (g *Guest) File() string { return filepath.Join(g.Dir, g.Interface()+".conf") }

// Refresh registers at the first gateway that takes the guest, in the order of URLs, and configures the tunnel. Unless forced, a configuration that is
// the same, octet by octet, is left alone.
func (g *Guest) Refresh(ctx context.Context, force bool) error {
	var first error
	for _, url := range g.URLs {
		wg, err := g.registerAt(ctx, url)
		if err == nil {
			return g.configure(wg, force)
		}
		if first == nil {
			first = err
		}
	}
	return fmt.Errorf("Failed to register CVM, all dstack-gateway urls are down: %w", first)
}

// registerAt registers at one gateway, once more with the other certificate if the first one is not enough.
func (g *Guest) registerAt(ctx context.Context, url string) (*wgConfig, error) {
	wg, err := g.call(ctx, url, g.Client)
	if err != nil && g.Fallback.Certificate != nil && strings.Contains(err.Error(), "no attestation provided") {
		wg, err = g.call(ctx, url, g.Fallback)
	}
	return wg, err
}

// target is the path below a gateway's URL. Only 0.6 looks at how the URL ends.
func (g *Guest) target(path string) string {
	if g.Version != V06 {
		return path + "/prpc/RegisterCvm?json"
	}
	path = strings.TrimRight(path, "/")
	return strings.TrimSuffix(path, "/prpc") + "/prpc/RegisterCvm?json"
}

// body is the request as serde writes it.
func (g *Guest) body() string {
	if g.Version == V054 || g.Version == V058 {
		return fmt.Sprintf(`{"client_public_key":"%s"}`, g.Key.PublicKey())
	}
	ports := g.Ports
	if ports == "" {
		ports = `{"ports":[],"restrict_mode":false}`
	}
	return fmt.Sprintf(`{"client_public_key":"%s","port_policy":%s}`, g.Key.PublicKey(), ports)
}

// call is one request on a connection of its own: HTTP/1.1, without a content type.
func (g *Guest) call(ctx context.Context, base string, certificate tls.Certificate) (*wgConfig, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: g.tls(u.Hostname(), certificate)}
	conn, err := dialer.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	request := fmt.Sprintf("POST %s HTTP/1.1\r\naccept: */*\r\nhost: %s\r\ncontent-length: %d\r\n\r\n%s", g.target(u.Path), u.Host, len(g.body()), g.body())
	g.Sent = append(g.Sent, request)
	if _, err := io.WriteString(conn, request); err != nil {
		return nil, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode/100 != 2 {
		return nil, fmt.Errorf("Request failed with status=%s, error=%s", response.Status, text)
	}
	if err := g.checkGateway(conn.(*tls.Conn).ConnectionState().PeerCertificates[0]); err != nil {
		return nil, err
	}
	return readAnswer(text)
}

// tls trusts the KMS's root and nothing else, or everything for Any.
func (g *Guest) tls(host string, certificate tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(g.Root)
	return &tls.Config{RootCAs: roots, ServerName: host, Certificates: []tls.Certificate{certificate}, InsecureSkipVerify: g.GatewayAppID == Any}
}

// checkGateway looks at the app id of the gateway's certificate, after the answer has come.
func (g *Guest) checkGateway(leaf *x509.Certificate) error {
	if g.GatewayAppID == Any {
		return nil
	}
	carried, err := ratls.ReadCertificate(leaf)
	if err != nil {
		return err
	}
	if carried.AppID == nil {
		return errors.New("Missing app id")
	}
	if id := hex.EncodeToString(carried.AppID); !strings.Contains(strings.ToLower(g.GatewayAppID), id) {
		return fmt.Errorf("Invalid dstack-gateway app id: %s", id)
	}
	return nil
}

// wgConfig is the part of the answer that guests use.
type wgConfig struct {
	ClientIP string   `json:"client_ip"`
	Servers  []wgPeer `json:"servers"`
}

type wgPeer struct {
	Key      string `json:"pk"`
	IP       string `json:"ip"`
	Endpoint string `json:"endpoint"`
}

// readAnswer reads as serde does: members may be missing or unknown, but nothing that is no message may be null.
func readAnswer(text []byte) (*wgConfig, error) {
	var tree map[string]any
	if err := json.Unmarshal(text, &tree); err != nil {
		return nil, err
	}
	for name, value := range tree {
		if err := noNull(name, value); err != nil && value != nil { // wg and agent are messages
			return nil, err
		}
	}
	var answer struct {
		WG *wgConfig `json:"wg"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, err
	}
	if answer.WG == nil {
		return nil, errors.New("Missing wg info")
	}
	return answer.WG, nil
}

func noNull(path string, value any) error {
	switch v := value.(type) {
	case nil:
		return fmt.Errorf("invalid type: null at %s", path)
	case map[string]any:
		for name, member := range v {
			if err := noNull(path+"."+name, member); err != nil {
				return err
			}
		}
	case []any:
		for _, item := range v {
			if err := noNull(path+"[]", item); err != nil {
				return err
			}
		}
	}
	return nil
}

// configure writes the interface's configuration, and runs what makes it count.
func (g *Guest) configure(wg *wgConfig, force bool) error {
	if g.Version == V06 {
		slices.SortFunc(wg.Servers, func(a, b wgPeer) int { return strings.Compare(a.Key, b.Key) })
	}
	key := base64.StdEncoding.EncodeToString(g.Key[:])
	var text bytes.Buffer
	fmt.Fprintf(&text, "[Interface]\nPrivateKey = %s\nListenPort = 9182\nAddress = %s/32\n\n", key, wg.ClientIP)
	for _, s := range wg.Servers {
		ip, _, _ := strings.Cut(s.IP, "/")
		fmt.Fprintf(&text, "[Peer]\nPublicKey = %s\nAllowedIPs = %s/32\nEndpoint = %s\nPersistentKeepalive = 25\n", s.Key, ip, s.Endpoint)
	}
	if before, err := os.ReadFile(g.File()); !force && err == nil && bytes.Equal(before, text.Bytes()) {
		return nil
	}
	if err := os.WriteFile(g.File(), text.Bytes(), 0o600); err != nil {
		return err
	}
	g.run("wg-quick down " + g.Interface())
	g.run("iptables -F DSTACK_WG")
	for _, s := range wg.Servers {
		source, _, _ := strings.Cut(s.Endpoint, ":")
		g.run("iptables -A DSTACK_WG -s " + source + " -j ACCEPT")
	}
	g.run("iptables -A DSTACK_WG -j DROP")
	g.run("wg-quick up " + g.Interface())
	return nil
}

func (g *Guest) run(command string) { g.Ran = append(g.Ran, command) }
