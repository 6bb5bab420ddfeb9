package certs_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/certs"
	"dstack.host/gateway/certs/pebbletest"
)

func newPebble(t *testing.T, a *authority) *pebbletest.Pebble {
	t.Helper()
	p, err := pebbletest.New(pebbletest.Config{DNS: a.addr()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func TestACMEObtainsBaseAndWildcardThroughOurDNS(t *testing.T) {
	dns := newAuthority(t, "dstack.example", "other.example")
	pebble := newPebble(t, dns)
	c, _ := start(t, certs.Config{
		Domains: []string{"dstack.example", "other.example"}, Issuer: certs.IssuerACME,
		Directory: pebble.Directory(), CARoots: pebble.Roots(), Email: "ops@dstack.example", CAAIdentity: pebbletest.CAAIdentity,
		Storage: openStore(t, t.TempDir()), Challenges: dns,
	})
	await(t, "certificates", c.Ready())

	for _, name := range []string{"dstack.example", "app.dstack.example", "other.example", "app.other.example"} {
		handshake(t, c, name, pebble.IssuerRoots())
	}
	want := certs.CAA{Tag: "issue", Value: "pebble.letsencrypt.org;validationmethods=dns-01;accounturi=" + c.Account()}
	wild := certs.CAA{Tag: "issuewild", Value: want.Value}
	if diff := cmp.Diff([]certs.CAA{want, wild}, c.CAA()); diff != "" {
		t.Errorf("CAA (-want +got)\n%s", diff)
	}
	if n := dns.values(); n != 0 {
		t.Errorf("%d challenge values are left behind", n)
	}
}
