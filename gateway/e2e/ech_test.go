package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"dstack.host/dnsserver"
	"dstack.host/gateway/demo"
)

var echParameter = regexp.MustCompile(`ech="([A-Za-z0-9+/=]+)"`)

// echOf is the ECHConfigList that DNS publishes for a name; nil for none.
func echOf(t *testing.T, d *demo.Demo, name string) []byte {
	t.Helper()
	g := d.Gateway()
	answer, err := dnsserver.Query(t.Context(), g.DNSAddr().String(), fmt.Sprintf("_%d._https.%s", g.HTTPSAddr().Port(), name), "HTTPS")
	if err != nil {
		t.Fatal(err)
	}
	found := echParameter.FindStringSubmatch(strings.Join(answer.Answers, "\n"))
	if found == nil {
		return nil
	}
	list, err := base64.StdEncoding.DecodeString(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestTheNameOfAnAppIsHidden goes from the HTTPS record to the app with the name encrypted.
func TestTheNameOfAnAppIsHidden(t *testing.T) {
	leakless(t)
	d := start(t, demo.Options{})
	text, err := os.ReadFile(d.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	label := d.Apps()[0].ID.String()
	name := label + "." + demo.DefaultBase
	list := echOf(t, d, name)
	if list == nil {
		t.Fatalf("the HTTPS record of %s has no ech", name)
	}
	if echOf(t, d, label+"s."+demo.DefaultBase) != nil {
		t.Error("a name that the app terminates itself has ech")
	}
	config := &tls.Config{RootCAs: roots, ServerName: name, EncryptedClientHelloConfigList: list, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for _, resumed := range []bool{false, true} {
		conn, err := tls.Dial("tcp", d.Gateway().HTTPSAddr().String(), config)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", name)
		answer, err := io.ReadAll(conn)
		state := conn.ConnectionState()
		_ = conn.Close()
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200") || !state.ECHAccepted || state.DidResume != resumed {
			t.Errorf("accepted %v, resumed %v (want %v), %v\n%s", state.ECHAccepted, state.DidResume, resumed, err, answer)
		}
	}
	// What the gateway does not terminate, or does not serve, is not reached by hiding it behind a name that it does.
	for _, inner := range []string{label + "s." + demo.DefaultBase, "example.com"} {
		config := &tls.Config{InsecureSkipVerify: true, ServerName: inner, EncryptedClientHelloConfigList: list}
		conn, err := tls.Dial("tcp", d.Gateway().HTTPSAddr().String(), config)
		if err != nil {
			continue // no certificate for it
		}
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", inner)
		if answer, _ := io.ReadAll(conn); len(answer) > 0 {
			t.Errorf("%s is answered: %s", inner, answer)
		}
		_ = conn.Close()
	}
	response, _ := fetch(t, d, t.Context(), http.MethodGet, d.Apps()[0].URL, false, nil)
	if response.StatusCode != http.StatusOK {
		t.Errorf("without ECH: %s", response.Status)
	}
}
