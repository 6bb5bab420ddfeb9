package dnsserver_test

import (
	"crypto"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// signedZone is a zone with one key that signs everything.
type signedZone struct {
	name string
	key  *dns.DNSKEY
	sign crypto.Signer
}

func newSignedZone(t testing.TB, name string) *signedZone {
	t.Helper()
	key := &dns.DNSKEY{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: 60},
		Flags: dns.ZONE | dns.SEP, Protocol: 3, Algorithm: dns.ECDSAP256SHA256}
	private, err := key.Generate(256)
	if err != nil {
		t.Fatal(err)
	}
	return &signedZone{name, key, private.(crypto.Signer)}
}

var signedAt = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// rrsig signs an RRset, with a change to the signature before it is made.
func (z *signedZone) rrsig(t testing.TB, set []dns.RR, change ...func(*dns.RRSIG)) []dns.RR {
	t.Helper()
	s := &dns.RRSIG{Hdr: dns.RR_Header{Name: set[0].Header().Name, Rrtype: dns.TypeRRSIG, Class: dns.ClassINET, Ttl: 60},
		Algorithm: z.key.Algorithm, SignerName: z.name, KeyTag: z.key.KeyTag(),
		Inception: uint32(signedAt.Add(-time.Hour).Unix()), Expiration: uint32(signedAt.Add(time.Hour).Unix())}
	for _, f := range change {
		f(s)
	}
	if err := s.Sign(z.sign, set); err != nil {
		t.Fatal(err)
	}
	return append(set, s)
}

// internet answers by "name type".
type internet map[string][]dns.RR

func (i internet) ask(t testing.TB) func(name, qtype string) ([]byte, error) {
	return func(name, qtype string) ([]byte, error) {
		q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.StringToType[qtype])
		m := new(dns.Msg).SetReply(q)
		m.Answer = i[dns.Fqdn(name)+" "+qtype]
		raw, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		return raw, nil
	}
}

func caa(name, value string) dns.RR {
	return &dns.CAA{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeCAA, Class: dns.ClassINET, Ttl: 60}, Tag: "issue", Value: value}
}

func TestValidateWalksFromTheRootOrSaysWhereItBreaks(t *testing.T) {
	root, org, example, other := newSignedZone(t, "."), newSignedZone(t, "org."), newSignedZone(t, "example.org."), newSignedZone(t, "example.org.")
	const name = "apps.example.org"
	ds := func(z *signedZone) dns.RR { return z.key.ToDS(dns.SHA256) }
	good := func() internet {
		return internet{
			". DNSKEY":              root.rrsig(t, []dns.RR{root.key}),
			"org. DS":               root.rrsig(t, []dns.RR{ds(org)}),
			"org. DNSKEY":           org.rrsig(t, []dns.RR{org.key}),
			"example.org. DS":       org.rrsig(t, []dns.RR{ds(example)}),
			"example.org. DNSKEY":   example.rrsig(t, []dns.RR{example.key}),
			"apps.example.org. CAA": example.rrsig(t, []dns.RR{caa("apps.example.org.", ";")}),
		}
	}
	anchors := []string{ds(root).String()}
	for _, row := range []struct {
		name   string
		change func(internet)
		want   string
	}{
		{"all signed", func(internet) {}, ""},
		{"no answer", func(i internet) { delete(i, "apps.example.org. CAA") }, "there is no CAA at apps.example.org."},
		{"unsigned answer", func(i internet) { i["apps.example.org. CAA"] = i["apps.example.org. CAA"][:1] }, "not signed by example.org."},
		{"changed answer", func(i internet) {
			i["apps.example.org. CAA"][0] = caa("apps.example.org.", "letsencrypt.org")
		}, "CAA of apps.example.org.: the signature of example.org. does not hold"},
		{"one record more than was signed", func(i internet) {
			i["apps.example.org. CAA"] = append(i["apps.example.org. CAA"], caa("apps.example.org.", "letsencrypt.org"))
		}, "does not hold"},
		{"signed by the zone above", func(i internet) {
			i["apps.example.org. CAA"] = org.rrsig(t, []dns.RR{caa("apps.example.org.", ";")})
		}, "not signed by example.org."},
		{"expired", func(i internet) {
			i["apps.example.org. CAA"] = example.rrsig(t, []dns.RR{caa("apps.example.org.", ";")}, func(s *dns.RRSIG) { s.Expiration = uint32(signedAt.Unix()) - 1 })
		}, "is of another time"},
		{"not yet valid", func(i internet) {
			i["apps.example.org. CAA"] = example.rrsig(t, []dns.RR{caa("apps.example.org.", ";")}, func(s *dns.RRSIG) { s.Inception = uint32(signedAt.Unix()) + 1 })
		}, "is of another time"},
		{"a wildcard's", func(i internet) {
			wildcard := example.rrsig(t, []dns.RR{caa("*.example.org.", ";")})
			wildcard[0].Header().Name, wildcard[1].Header().Name = "apps.example.org.", "apps.example.org."
			i["apps.example.org. CAA"] = wildcard
		}, "that of a wildcard"},
		{"alias", func(i internet) {
			i["apps.example.org. CAA"] = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: "apps.example.org.", Rrtype: dns.TypeCNAME, Class: dns.ClassINET}, Target: "evil.org."}, caa("evil.org.", ";")}
		}, "there is no CAA at apps.example.org."},
		{"delegation removed", func(i internet) { delete(i, "example.org. DS") }, "not signed by org."},
		{"delegation unsigned", func(i internet) { i["example.org. DS"] = i["example.org. DS"][:1] }, "DS of example.org.: it is not signed by org."},
		{"delegation to another key", func(i internet) { i["example.org. DS"] = org.rrsig(t, []dns.RR{ds(other)}) }, "no DNSKEY of example.org. is the one"},
		{"delegation by SHA-1 alone", func(i internet) {
			i["example.org. DS"] = org.rrsig(t, []dns.RR{example.key.ToDS(dns.SHA1)})
		}, "no DNSKEY of example.org. is the one"},
		{"key added without a signature of the first", func(i internet) {
			i["example.org. DNSKEY"] = other.rrsig(t, []dns.RR{example.key, other.key})
		}, "DNSKEY of example.org."},
		{"no keys", func(i internet) { delete(i, "example.org. DNSKEY") }, "example.org. has 0 DNSKEY records"},
		{"too many keys", func(i internet) {
			set := []dns.RR{}
			for range 17 {
				set = append(set, newSignedZone(t, "example.org.").key)
			}
			i["example.org. DNSKEY"] = set
		}, "has 17 DNSKEY records"},
		{"too many signatures", func(i internet) {
			answer := i["apps.example.org. CAA"]
			for range 8 {
				answer = append(answer, dns.Copy(answer[1]))
			}
			i["apps.example.org. CAA"] = answer
		}, "9 signatures over apps.example.org. CAA"},
		{"another root", func(i internet) {
			z := newSignedZone(t, ".")
			i[". DNSKEY"] = z.rrsig(t, []dns.RR{z.key})
		}, "no DNSKEY of . is the one"},
	} {
		t.Run(row.name, func(t *testing.T) {
			i := good()
			row.change(i)
			zone, err := dnsserver.Validate(i.ask(t), name, "CAA", anchors, signedAt)
			if row.want == "" && (err != nil || zone != "example.org.") {
				t.Errorf("zone %q, %v", zone, err)
			}
			if row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("got %v, want %q in it", err, row.want)
			}
		})
	}
	for _, row := range []struct {
		name    string
		anchors []string
		ask     func(string, string) ([]byte, error)
		want    string
	}{
		{"no anchor", nil, good().ask(t), "no trust anchor"},
		{"anchor of another zone", []string{ds(org).String()}, good().ask(t), "no DS record of the root zone"},
		{"anchor that is none", []string{"x"}, good().ask(t), "trust anchor"},
		{"resolver away", anchors, func(string, string) ([]byte, error) { return nil, errors.New("away") }, "away"},
		{"garbage", anchors, func(string, string) ([]byte, error) { return []byte("x"), nil }, "dns response"},
		{"answer to another question", anchors, func(string, string) ([]byte, error) { return good().ask(t)("x.", "A") }, "is not to . DNSKEY"},
		{"refused", anchors, func(n, q string) ([]byte, error) {
			m := new(dns.Msg).SetQuestion(dns.Fqdn(n), dns.StringToType[q])
			return m.SetRcode(m, dns.RcodeServerFailure).Pack()
		}, "SERVFAIL"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := dnsserver.Validate(row.ask, name, "CAA", row.anchors, signedAt); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q in it", err, row.want)
			}
		})
	}
	if _, err := dnsserver.Validate(good().ask(t), strings.Repeat("a.", 20)+"org", "CAA", anchors, signedAt); err == nil {
		t.Error("a name of 21 labels was walked")
	}
}

func TestTheRootAnchorsAreWellFormed(t *testing.T) {
	for _, text := range dnsserver.RootAnchors() {
		rr, err := dns.NewRR(text)
		if ds, ok := rr.(*dns.DS); err != nil || !ok || len(ds.Digest) != 64 {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestResolveAsksForValidationAndKeepsTheMessage(t *testing.T) {
	server := fake(t, func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		if opt := q.IsEdns0(); !q.RecursionDesired || q.CheckingDisabled || opt == nil || !opt.Do() {
			return m.SetRcode(q, dns.RcodeFormatError)
		}
		m.AuthenticatedData = true
		m.Answer = []dns.RR{
			&dns.CNAME{Hdr: dns.RR_Header{Name: "x.example.org.", Rrtype: dns.TypeCNAME, Class: dns.ClassINET}, Target: "Y.example.org."},
			caa("y.example.org.", `a\"b`), caa("z.example.org.", "not asked for"),
		}
		return m
	})
	raw, err := dnsserver.Resolve(timeout(t), server, "X.example.org", "CAA")
	if err != nil {
		t.Fatal(err)
	}
	r, err := dnsserver.ParseResolution(raw, "x.example.org.", "caa")
	if err != nil || r.Rcode != "NOERROR" || !r.Authenticated || r.Owner != "y.example.org" || len(r.CAA) != 1 || r.CAA[0].Value != `a"b` {
		t.Errorf("%+v %v", r, err)
	}
	if _, err := dnsserver.ParseResolution(raw, "other.example.org", "CAA"); err == nil {
		t.Error("an answer to another question was taken")
	}
	if _, err := dnsserver.Resolve(timeout(t), server, "x.example.org", "NOPE"); err == nil {
		t.Error("an unknown type was asked for")
	}
}

func FuzzParseResolution(f *testing.F) {
	m := new(dns.Msg).SetQuestion("x.", dns.TypeCAA)
	m.Response = true
	m.Answer = []dns.RR{caa("x.", ";")}
	raw, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := dnsserver.ParseResolution(raw, "x", "CAA"); err != nil {
			return
		}
		_, _ = dnsserver.Validate(func(string, string) ([]byte, error) { return raw, nil }, "x", "CAA", dnsserver.RootAnchors(), signedAt)
	})
}
