package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"dstack.host/gateway"
)

// addressQuery is a DNS query for the A records of a name (RFC 1035 section 4.1).
func addressQuery(name string) []byte {
	packet := []byte("\x12\x34\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00")
	for label := range strings.SplitSeq(name, ".") {
		packet = append(append(packet, byte(len(label))), label...)
	}
	return append(packet, "\x00\x00\x01\x00\x01"...)
}

// answers tells whether a message is the answer to that query, with one address.
func answers(message []byte) bool {
	return len(message) > 12 && bytes.HasPrefix(message, []byte("\x12\x34\x84\x00\x00\x01\x00\x01"))
}

// privateDNS asks the gateway for its own address over TLS and over HTTPS, with the certificates of its front.
func privateDNS(t *testing.T, g *gateway.Gateway, base string, roots *x509.CertPool) {
	t.Helper()
	query := addressQuery("gateway." + base)
	for _, name := range []string{"ns1." + base, ""} { // some resolvers know no name to check
		conn, err := tls.Dial("tcp", g.DNSOverTLSAddr().String(), &tls.Config{ServerName: name, RootCAs: roots, NextProtos: []string{"dot"}, InsecureSkipVerify: name == ""})
		if err != nil {
			t.Errorf("DNS over TLS at %q: %v", name, err)
			continue
		}
		length := make([]byte, 2)
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(conn, length); err != nil {
			t.Error(err)
		}
		answer := make([]byte, binary.BigEndian.Uint16(length))
		if _, err := io.ReadFull(conn, answer); err != nil || !answers(answer) {
			t.Errorf("DNS over TLS at %q: %v, %x", name, err, answer)
		}
		_ = conn.Close()
	}
	for _, http2 := range []bool{false, true} {
		transport := &http.Transport{
			ForceAttemptHTTP2: http2, TLSClientConfig: &tls.Config{RootCAs: roots},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, g.HTTPSAddr().String())
			},
		}
		client := &http.Client{Transport: transport}
		post, err := client.Post("https://gateway."+base+"/dns-query", "application/dns-message", bytes.NewReader(query))
		overHTTPS(t, post, err)
		get, err := client.Get("https://" + base + "/dns-query?dns=" + base64.RawURLEncoding.EncodeToString(query))
		overHTTPS(t, get, err)
		transport.CloseIdleConnections()
	}
}

func overHTTPS(t *testing.T, r *http.Response, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
		return
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Header.Get("Content-Type") != "application/dns-message" || !answers(body) {
		t.Errorf("%s %s over HTTP/%d: %v, %s %q", r.Request.Method, r.Request.URL.Path, r.ProtoMajor, err, r.Status, body)
	}
}

// logged waits until one line of a file has all of it.
func logged(t *testing.T, file string, want ...string) {
	t.Helper()
	for range 500 {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if !slices.ContainsFunc(want, func(s string) bool { return !strings.Contains(line, s) }) {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s has no line with %q", file, want)
}
