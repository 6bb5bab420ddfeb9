package certs_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"dstack.host/gateway/certs"
)

func encode(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestECHHidesTheName(t *testing.T) {
	kept := openStore(t, t.TempDir())
	c, _ := start(t, certs.Config{Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: new(attestor), Storage: kept})
	await(t, "certificates", c.Ready())
	one, _ := newSecrets(t, kept, nil)
	other, _ := newSecrets(t, kept, nil)
	list := one.ECHConfigList("dstack.host")
	if !bytes.Equal(list, other.ECHConfigList("dstack.host")) {
		t.Fatal("two nodes publish two configurations")
	}
	if len(list) == 0 || len(list) > 512 {
		t.Fatalf("a list of %d octets", len(list))
	}
	if one.ECHConfigList("other.host") != nil {
		t.Error("a foreign domain has a configuration")
	}
	const secret = "0123456789abcdef0123456789abcdef01234567.dstack.host"
	k := newClient(pool(t, c.Root()), tls.VersionTLS13)
	k.config.EncryptedClientHelloConfigList = list
	state, err := k.connect(t, c, other, secret)
	if err != nil || !state.ECHAccepted || state.ServerName != secret {
		t.Fatalf("accepted %v for %s: %v", state.ECHAccepted, state.ServerName, err)
	}
	if bytes.Contains(k.sent, []byte(secret)) || !bytes.Contains(k.sent, []byte("dstack.host")) {
		t.Error("the network sees the name")
	}
}

func TestECHKeysTurnAndStaleClientsAreGivenTheNew(t *testing.T) {
	kept := openStore(t, t.TempDir())
	c, _ := start(t, certs.Config{Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: new(attestor), Storage: kept})
	await(t, "certificates", c.Ready())
	s, _ := newSecrets(t, kept, nil)
	k := newClient(pool(t, c.Root()), tls.VersionTLS13)
	first := s.ECHConfigList("dstack.host")
	turned := func() []byte {
		before, changed := s.ECHConfigList("dstack.host"), s.Changed()
		turn(t, kept, certs.ECHPrefix+"dstack.host")
		for bytes.Equal(before, s.ECHConfigList("dstack.host")) {
			await(t, "the next configuration", changed)
			changed = s.Changed()
		}
		return s.ECHConfigList("dstack.host")
	}

	turned()
	k.config.EncryptedClientHelloConfigList = first
	if state, err := k.connect(t, c, s, "app.dstack.host"); err != nil || !state.ECHAccepted {
		t.Errorf("with yesterday's configuration: accepted %v, %v", state.ECHAccepted, err)
	}
	current := turned()
	_, err := k.connect(t, c, s, "app.dstack.host")
	var rejected *tls.ECHRejectionError
	if !errors.As(err, &rejected) || !bytes.Equal(rejected.RetryConfigList, current) {
		t.Fatalf("with a configuration of the day before yesterday: %v", err)
	}
	k.config.EncryptedClientHelloConfigList = rejected.RetryConfigList
	if state, err := k.connect(t, c, s, "app.dstack.host"); err != nil || !state.ECHAccepted {
		t.Errorf("with what it was given to try again: accepted %v, %v", state.ECHAccepted, err)
	}
}

// A client that knows no configuration pretends to (GREASE, RFC 9849 section 6.2): an extension that nobody can decrypt beside
// the name it wants. It is served under that name.
func TestECHThatIsOnlyPretendedIsServed(t *testing.T) {
	kept := openStore(t, t.TempDir())
	c, _ := start(t, certs.Config{Domains: []string{"dstack.host"}, Issuer: certs.IssuerInternal, Attestor: new(attestor), Storage: kept})
	await(t, "certificates", c.Ready())
	s, _ := newSecrets(t, kept, nil)
	elsewhere, _ := newSecrets(t, openStore(t, t.TempDir()), nil)
	// To the server, an extension under a key that is not ours is the same; what differs is that this client then gives up.
	k := newClient(pool(t, c.Root()), tls.VersionTLS13)
	k.config.EncryptedClientHelloConfigList = elsewhere.ECHConfigList("dstack.host")
	state, err := k.connect(t, c, s, "app.dstack.host")
	var rejected *tls.ECHRejectionError
	if !errors.As(err, &rejected) || state.ECHAccepted {
		t.Fatalf("accepted %v, %v", state.ECHAccepted, err)
	}
	if !bytes.Equal(rejected.RetryConfigList, s.ECHConfigList("dstack.host")) {
		t.Error("other configurations to try again with")
	}
	// For every domain that a client may name outside, there are keys or none, never an error.
	config := new(tls.Config)
	s.Configure(config)
	for _, name := range []string{"dstack.host", "app.dstack.host", "APP.DSTACK.HOST", "other.host", "", "a.b.c", "."} {
		keys, err := config.GetEncryptedClientHelloKeys(&tls.ClientHelloInfo{ServerName: name})
		ours := slices.Contains([]string{"dstack.host", "app.dstack.host", "APP.DSTACK.HOST"}, name)
		if err != nil || keys == nil || (len(keys) > 0) != ours {
			t.Errorf("%q: %d keys, %v", name, len(keys), err)
		}
	}
}

func TestSecretsAllocateNothingForAHandshakeWithoutThem(t *testing.T) {
	s, _ := newSecrets(t, openStore(t, t.TempDir()), nil)
	config := new(tls.Config)
	s.Configure(config)
	hello := &tls.ClientHelloInfo{ServerName: "app.dstack.host"}
	if n := testing.AllocsPerRun(100, func() { config.GetEncryptedClientHelloKeys(hello) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
