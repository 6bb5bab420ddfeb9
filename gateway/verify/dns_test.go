package verify_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dstack.host/dnsserver"
	"dstack.host/gateway/demo"
	"dstack.host/gateway/verify"
	"dstack.host/ratls"
)

// resolver answers for a zone as a resolver does that knows nothing else, until the test ends.
func resolver(t *testing.T, origin string, records ...dnsserver.CAA) string {
	t.Helper()
	loopback := netip.MustParseAddr("127.0.0.1")
	zone := must(dnsserver.NewZone(dnsserver.ZoneConfig{
		Origin: origin, Serial: 1, Addrs: []netip.Addr{loopback}, CAA: records,
		NS: []dnsserver.NameServer{{Name: "ns1." + origin, Addrs: []netip.Addr{loopback}}},
	}))(t)
	server := must(dnsserver.New(dnsserver.Config{Listen: []string{"127.0.0.1:0"}}))(t)
	server.SetZones(zone)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return server.Addrs()[0].String()
}

// statusOf is what became of a check.
func statusOf(t *testing.T, r *verify.Result, name string) ratls.Check {
	t.Helper()
	for _, c := range r.Checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %s", name)
	return ratls.Check{}
}

func TestDNSIsHeldToTheStatement(t *testing.T) {
	w := newWorld(t)
	value := "letsencrypt.org; validationmethods=dns-01; accounturi=" + account
	same := []dnsserver.CAA{ // in another spelling and order, and with a record that says nothing about names
		{Tag: "issuewild", Value: "letsencrypt.org;accounturi=" + account + ";validationmethods=dns-01"},
		{Tag: "issue", Value: value}, {Tag: "iodef", Value: "mailto:a@example.org"},
	}
	const nowhere = "127.0.0.1:1" // nothing listens there
	for _, row := range []struct {
		name        string
		resolvers   []string
		skip        bool
		dnssec      bool
		caa, signed ratls.Status
		text        string // in the detail of caa
	}{
		{name: "as stated", resolvers: []string{resolver(t, demo.DefaultBase, same...)}, caa: ratls.Pass, signed: ratls.Skip, text: "publishes what the statement claims"},
		{name: "after one that is away", resolvers: []string{nowhere, resolver(t, demo.DefaultBase, same...)}, caa: ratls.Pass, signed: ratls.Skip},
		{name: "after one that refuses", resolvers: []string{resolver(t, "example.org"), resolver(t, demo.DefaultBase, same...)}, caa: ratls.Pass, signed: ratls.Skip},
		{name: "no records", resolvers: []string{resolver(t, demo.DefaultBase)}, caa: ratls.Fail, signed: ratls.Skip, text: "publishes none"},
		{name: "another issuer too", resolvers: []string{resolver(t, demo.DefaultBase, append(same, dnsserver.CAA{Tag: "issue", Value: "evil.example"})...)}, caa: ratls.Fail, signed: ratls.Skip, text: "evil.example"},
		{name: "another account", resolvers: []string{resolver(t, demo.DefaultBase, dnsserver.CAA{Tag: "issue", Value: value + "2"}, same[0])}, caa: ratls.Fail, signed: ratls.Skip},
		{name: "wildcards left open", resolvers: []string{resolver(t, demo.DefaultBase, same[1])}, caa: ratls.Fail, signed: ratls.Skip},
		{name: "refused", resolvers: []string{resolver(t, "example.org")}, caa: ratls.Fail, signed: ratls.Skip, text: "answers REFUSED"},
		{name: "nobody there", resolvers: []string{nowhere}, caa: ratls.Fail, signed: ratls.Skip, text: "no resolver could be reached"},
		{name: "nobody there, and not to be asked", resolvers: []string{nowhere}, skip: true, caa: ratls.Skip, signed: ratls.Skip, text: "--skip-dns"},
		{name: "nobody to ask", caa: ratls.Skip, signed: ratls.Skip, text: "names below localhost are not in the DNS"},
		{name: "nobody to ask, signatures demanded", dnssec: true, caa: ratls.Skip, signed: ratls.Fail},
		{name: "signatures demanded of a zone without", resolvers: []string{resolver(t, demo.DefaultBase, same...)}, dnssec: true, caa: ratls.Pass, signed: ratls.Fail},
		{name: "signatures demanded, nobody there", resolvers: []string{nowhere}, dnssec: true, caa: ratls.Fail, signed: ratls.Fail},
	} {
		t.Run(row.name, func(t *testing.T) {
			url, _ := w.play(t, attack{statement: accounted, history: attested})
			o := w.options
			o.Resolvers, o.SkipDNS, o.DNSSEC = row.resolvers, row.skip, row.dnssec
			r := must(verify.URL(t.Context(), url, o))(t)
			caa, signed := statusOf(t, r, verify.CheckCAA), statusOf(t, r, verify.CheckDNSSEC)
			if caa.Status != row.caa || signed.Status != row.signed || !strings.Contains(caa.Detail, row.text) {
				t.Errorf("%+v\n%+v\nwant %s and %s, with %q", caa, signed, row.caa, row.signed, row.text)
			}
			if r.OK() != (row.caa != ratls.Fail && row.signed != ratls.Fail) {
				t.Errorf("verdict %s", r.Verdict)
			}
			replayed(t, r, o)
		})
	}
}

// TestABundleHidesNothing takes answers out of a bundle: what is not there is not skipped.
func TestABundleHidesNothing(t *testing.T) {
	w := newWorld(t)
	url, _ := w.play(t, attack{statement: accounted, history: attested})
	o := w.options
	o.Resolvers = []string{resolver(t, demo.DefaultBase, dnsserver.CAA{Tag: "issue", Value: ";"})}
	r := must(verify.URL(t.Context(), url, o))(t)
	for _, row := range []struct {
		name, check string
		change      func(*verify.Bundle)
	}{
		{"DNS", verify.CheckCAA, func(b *verify.Bundle) { b.DNS = nil }},
		{"the history", verify.CheckHistory, func(b *verify.Bundle) { b.ACMEInfo = verify.Answer{} }},
		{"the document", ratls.LinkDocument, func(b *verify.Bundle) { b.Document.Body = nil }},
		{"the exporter", ratls.LinkChallenge, func(b *verify.Bundle) { b.Exporter = nil }},
		{"the nonce's freshness", ratls.LinkChallenge, func(b *verify.Bundle) { b.Nonce = make(ratls.Hex, 32) }},
		{"time", ratls.LinkFreshness, func(b *verify.Bundle) { b.Time = b.Time.Add(10 * time.Minute) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := *r.Bundle
			row.change(&b)
			if c := statusOf(t, must(b.Verify(t.Context(), o))(t), row.check); c.Status != ratls.Fail {
				t.Errorf("%+v", c)
			}
		})
	}
	late := o
	late.Chain.Now = func() time.Time { return r.Time.Add(time.Hour) }
	if c := statusOf(t, must(r.Bundle.Verify(t.Context(), late))(t), ratls.LinkFreshness); c.Status != ratls.Fail {
		t.Errorf("an hour later: %+v", c)
	}
}

// timestamp is a signed certificate timestamp of a log (RFC 6962 section 3.2).
func timestamp(log byte, at time.Time) []byte {
	text := append([]byte{0, log}, make([]byte, 31)...)
	text = binary.BigEndian.AppendUint64(text, uint64(at.UnixMilli()))
	return append(text, 0, 0, 4, 3, 0, 2, 9, 9)
}

// sctList is the extension with timestamps.
func sctList(t testing.TB, texts ...[]byte) pkix.Extension {
	t.Helper()
	var list []byte
	for _, text := range texts {
		list = append(binary.BigEndian.AppendUint16(list, uint16(len(text))), text...)
	}
	list = append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...)
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: must(asn1.Marshal(list))(t)}
}

func TestTimestampsOfLogsAreNeededBelowPublicRoots(t *testing.T) {
	now := time.Now()
	one, two := timestamp(1, now), timestamp(2, now)
	bad := sctList(t, one)
	bad.Value = append(bad.Value, 0)
	for _, row := range []struct {
		name     string
		embedded []pkix.Extension
		sent     [][]byte
		want     ratls.Status
		text     string
	}{
		{"none", nil, nil, ratls.Fail, "needs timestamps of 2 logs; there are none"},
		{"two logs", []pkix.Extension{sctList(t, one, two)}, nil, ratls.Pass, "2 of 2 logs: AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=, AgAA"},
		{"two logs, one in the handshake", []pkix.Extension{sctList(t, one)}, [][]byte{two}, ratls.Pass, "2 of 2 logs"},
		{"one log twice", []pkix.Extension{sctList(t, one, timestamp(1, now.Add(-time.Minute)))}, nil, ratls.Fail, "2 of 1 logs"},
		{"of the future", []pkix.Extension{sctList(t, one, timestamp(2, now.Add(48*time.Hour)))}, nil, ratls.Fail, "yet to come"},
		{"empty list", []pkix.Extension{sctList(t)}, nil, ratls.Fail, "there are none"},
		{"cut short", []pkix.Extension{sctList(t, one, two[:40])}, nil, ratls.Fail, "malformed"},
		{"more than its length", []pkix.Extension{sctList(t, one, append(two, 0))}, nil, ratls.Fail, "malformed"},
		{"trailing byte", []pkix.Extension{bad}, nil, ratls.Fail, "malformed"},
		{"of another version", []pkix.Extension{sctList(t, one, append([]byte{1}, two[1:]...))}, nil, ratls.Fail, "malformed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := issue(t, func(c *x509.Certificate) { c.ExtraExtensions = row.embedded })
			b := &verify.Bundle{Format: verify.BundleFormat, URL: "https://x." + demo.DefaultBase, Time: now, Nonce: make(ratls.Hex, 32),
				TLS: verify.Session{Certificates: []ratls.Base64{c.Certificate[0]}}}
			for _, s := range row.sent {
				b.TLS.SCTs = append(b.TLS.SCTs, s)
			}
			got := statusOf(t, must(b.Verify(t.Context(), verify.Options{}))(t), verify.CheckSCT)
			if got.Status != row.want || !strings.Contains(got.Detail, row.text) {
				t.Errorf("%+v, want %s and %q", got, row.want, row.text)
			}
			private := verify.Options{CAs: x509.NewCertPool()}
			private.CAs.AddCert(publicCA)
			if got := statusOf(t, must(b.Verify(t.Context(), private))(t), verify.CheckSCT); got.Status != ratls.Skip {
				t.Errorf("below a private root: %+v", got)
			}
			b.URL = "https://x.example"
			if got := statusOf(t, must(b.Verify(t.Context(), verify.Options{}))(t), verify.CheckSCT); got.Status != ratls.Skip {
				t.Errorf("below no root: %+v", got)
			}
		})
	}
}

func TestResolverReadsAddresses(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{"192.0.2.53", "192.0.2.53:53"}, {"192.0.2.53:5353", "192.0.2.53:5353"}, {"2001:db8::53", "[2001:db8::53]:53"},
		{"[2001:db8::53]:5353", "[2001:db8::53]:5353"}, {"dns.example:53", "dns.example:53"},
		{"", ""}, {"dns.example", ""}, {":53", ""}, {"192.0.2.53:", ""},
	} {
		got, err := verify.Resolver(row.text)
		if got != row.want || (err != nil) != (row.want == "") {
			t.Errorf("%q: %q %v, want %q", row.text, got, err, row.want)
		}
	}
}
