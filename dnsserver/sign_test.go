package dnsserver_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

var zoneAt = time.Date(2026, 3, 1, 12, 34, 56, 0, time.UTC)

func newSigner(t testing.TB, c dnsserver.SignerConfig) *dnsserver.Signer {
	t.Helper()
	s, err := dnsserver.NewSigner(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newKeys(t testing.TB, p dnsserver.Policy) dnsserver.Keys {
	t.Helper()
	keys, err := dnsserver.Keys(nil).Advance(zoneAt.Add(-time.Hour), p, dnsserver.Parent{})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// manyHosts are n hosts in order.
func manyHosts(n int) *dnsserver.Labels {
	return dnsserver.NewLabels(func(yield func(string) bool) {
		for _, label := range []string{appID, otherID, compose} {
			if !yield(label) {
				return
			}
		}
		for i := range n {
			sum := sha256.Sum256(fmt.Append(nil, i))
			if !yield(hex.EncodeToString(sum[:20])) {
				return
			}
		}
	})
}

// signedConfig is the test zone with everything, signed.
func signedConfig(t testing.TB, p dnsserver.Policy, d dnsserver.Denial, hosts int) dnsserver.ZoneConfig {
	c := serviceZone()
	c.Labels = manyHosts(hosts)
	c.Hosts = c.Labels.Contains
	c.Prefixes = []string{"0x"}
	c.Signing = &dnsserver.Signing{Signer: newSigner(t, dnsserver.SignerConfig{Share: 1000}), Keys: newKeys(t, p), Denial: d, At: zoneAt}
	return c
}

func askDO(name string, qtype uint16) *dns.Msg {
	m := ask(name, qtype)
	m.SetEdns0(1232, true)
	return m
}

// verifier checks signatures by the keys that a zone publishes.
type verifier struct {
	keys []*dns.DNSKEY
}

func newVerifier(t testing.TB, zs *dnsserver.Zones, origin string) *verifier {
	t.Helper()
	v := &verifier{}
	m := zs.Answer(askDO(origin, dns.TypeDNSKEY), dnsserver.TCP, dns.MaxMsgSize)
	for _, rr := range m.Answer {
		if key, ok := rr.(*dns.DNSKEY); ok {
			v.keys = append(v.keys, key)
		}
	}
	if err := v.message(m); err != nil {
		t.Fatalf("DNSKEY: %v\n%v", err, m)
	}
	return v
}

// message checks that every set of a message is signed, and nothing else is
// wrong with the signatures.
func (v *verifier) message(m *dns.Msg) error {
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		sets := map[string][]dns.RR{}
		signatures := map[string][]*dns.RRSIG{}
		for _, rr := range section {
			switch rr := rr.(type) {
			case *dns.OPT:
			case *dns.RRSIG:
				key := strings.ToLower(rr.Hdr.Name) + dns.TypeToString[rr.TypeCovered]
				signatures[key] = append(signatures[key], rr)
			default:
				key := strings.ToLower(rr.Header().Name) + dns.TypeToString[rr.Header().Rrtype]
				sets[key] = append(sets[key], rr)
			}
		}
		for name, set := range sets {
			if len(signatures[name]) == 0 {
				return fmt.Errorf("%s is not signed", name)
			}
			for _, s := range signatures[name] {
				if err := v.set(s, set); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	}
	return nil
}

func (v *verifier) set(s *dns.RRSIG, set []dns.RR) error {
	if !s.ValidityPeriod(zoneAt) || s.OrigTtl != set[0].Header().Ttl || s.Hdr.Ttl != s.OrigTtl {
		return fmt.Errorf("times of %v", s)
	}
	for _, key := range v.keys {
		if key.KeyTag() == s.KeyTag && key.Algorithm == s.Algorithm {
			return s.Verify(key, set)
		}
	}
	return fmt.Errorf("no key %d", s.KeyTag)
}

// order returns a name's labels in canonical form, the last first.
func order(name string) [][]byte {
	buf := make([]byte, 255)
	end, err := dns.PackDomainName(dns.CanonicalName(name), buf, 0, nil, false)
	if err != nil {
		panic(name)
	}
	var labels [][]byte
	for off := 0; off < end-1; off += 1 + int(buf[off]) {
		label := buf[off+1 : off+1+int(buf[off])]
		for i, c := range label { // bytes.ToLower is for UTF-8
			if 'A' <= c && c <= 'Z' {
				label[i] += 'a' - 'A'
			}
		}
		labels = append(labels, label)
	}
	slices.Reverse(labels)
	return labels
}

// compare is the canonical order of names, RFC 4034 section 6.1.
func compare(a, b string) int { return slices.CompareFunc(order(a), order(b), bytes.Compare) }

// covers tells whether an NSEC record says that nothing is at a name.
func covers(n *dns.NSEC, name string) bool {
	wraps := compare(n.NextDomain, n.Hdr.Name) <= 0
	return compare(n.Hdr.Name, name) < 0 && (wraps || compare(name, n.NextDomain) < 0)
}

// existing are names of the signed zone of every kind.
func existing(c dnsserver.ZoneConfig) []string {
	names := []string{"", "ns1.", "gateway.", "_443._tcp.gateway.", "_tcp.gateway.", "down.", "deep.down.", "_acme-challenge.", "alone.",
		"_acme-challenge.alone.", "_dstack-app-address.", "_validation-persist.", "www.", "lost.", "away.", "old.", "four.", "full.",
		"_dstack-app-address.full.", "_tcp.", "_443._tcp.", "_acme-challenge." + appID + "."}
	for label := range c.Labels.All() {
		names = append(names, label+".", label+"s.", label+"g.", label+"-1.", label+"-65535g.", label+"-443s.", "_tcp."+label+".", "_443._tcp."+label+"-80.")
		if label != otherID {
			names = append(names, "_dstack."+label+".", "_dstack."+label+"s.")
		}
		if len(label) == 40 {
			names = append(names, "0x"+label+".", "0x"+label+"-99s.", "_tcp.0x"+label+".")
		}
	}
	for i := range names {
		names[i] += c.Origin + "."
	}
	return names
}

// strangers are names that nobody has, of the kinds that make a denial hard.
func strangers(c dnsserver.ZoneConfig) []string {
	r := rand.New(rand.NewPCG(1, 2))
	labels := slices.Collect(c.Labels.All())
	letters := []string{`\000`, `!`, `*`, `-`, `\.`, `/`, `0`, `9`, `:`, `\@`, `A`, `Z`, `[`, `_`, "`", `a`, `f`, `g`, `s`, `x`, `z`, `{`, `\127`, `\254`, `\255`}
	names := []string{"*.", "_.", "0.", "0x.", "x.", "_tcp." + appID + "s.", "x." + appID + ".", "*." + appID + ".", "x._tcp." + appID + ".", "y.x." + otherID + "-5.",
		"_8443._tcp." + appID + ".", "_dstack." + otherID + ".", "x.gateway.", "x.down.", "x.deep.down.", "zz._acme-challenge.", "_acme-challenge.nobody.", appID + "-.", appID + "-0.", appID + "-65536.", appID + "x.",
		"gate.", "gatewa.", "gateways.", "gatewax.", strings.Repeat(`\255`, 63) + ".", strings.Repeat("z", 63) + ".", strings.Repeat("0", 63) + ".", `\000.`, `\000\000.`, `\000.gateway.`, `\255.\255.`, "[.", "`."}
	for range 400 {
		host := labels[r.IntN(len(labels))]
		cut := r.IntN(len(host) + 1)
		name := host[:cut]
		for range r.IntN(4) {
			name += letters[r.IntN(len(letters))]
		}
		if name == "" {
			continue
		}
		if r.IntN(4) == 0 {
			name = "0x" + name
		}
		names = append(names, name+".")
		if r.IntN(4) == 0 {
			names = append(names, letters[r.IntN(len(letters))]+"."+name+".", letters[r.IntN(len(letters))]+"."+host+".")
		}
	}
	for i := range names {
		names[i] += c.Origin + "."
	}
	return names
}

// A signed answer proves what it says, and never denies a name that exists.
func TestSignedAnswersProveWhatTheySay(t *testing.T) {
	for _, denial := range []dnsserver.Denial{dnsserver.DenialBlock, dnsserver.DenialCompact} {
		for _, algorithm := range []dnsserver.Algorithm{dnsserver.ECDSAP256SHA256, dnsserver.Ed25519} {
			t.Run(fmt.Sprint(denial, " ", algorithm), func(t *testing.T) {
				t.Parallel()
				c := signedConfig(t, dnsserver.Policy{Algorithm: algorithm, Split: denial == dnsserver.DenialBlock}, denial, 300)
				zs := dnsserver.NewZones(newZone(t, c))
				v := newVerifier(t, zs, "dstack.host.")
				names := existing(c)
				slices.SortFunc(names, compare)
				for _, name := range names[:200] {
					for _, qtype := range []uint16{dns.TypeA, dns.TypeHTTPS, dns.TypeTXT, dns.TypeTLSA, dns.TypeSOA, dns.TypeNS, dns.TypeCDS, dns.TypeCDNSKEY, dns.TypeCAA, dns.TypeDS, dns.TypeANY, dns.TypeNSEC, dns.TypeMX} {
						checkSigned(t, v, zs, name, qtype, denial, names, false)
					}
				}
				for _, name := range strangers(c) {
					checkSigned(t, v, zs, name, dns.TypeA, denial, names, true)
				}
			})
		}
	}
}

func checkSigned(t *testing.T, v *verifier, zs *dnsserver.Zones, name string, qtype uint16, denial dnsserver.Denial, names []string, stranger bool) {
	t.Helper()
	m := zs.Answer(askDO(name, qtype), dnsserver.UDP, dnsserver.MaxUDPPayload)
	packed, err := m.Pack()
	if err != nil || len(packed) > dnsserver.MaxUDPPayload || m.Truncated {
		t.Fatalf("%s: %d octets, %v\n%v", name, len(packed), err, m)
	}
	m = new(dns.Msg)
	if err := m.Unpack(packed); err != nil {
		t.Fatal(err)
	}
	if err := v.message(m); err != nil {
		t.Fatalf("%s %s: %v\n%v", name, dns.Type(qtype), err, m)
	}
	var proofs []*dns.NSEC
	for _, rr := range m.Ns {
		if n, ok := rr.(*dns.NSEC); ok {
			proofs = append(proofs, n)
			checkHarmless(t, n, m, names)
		}
	}
	last := name
	for _, rr := range m.Answer {
		if alias, ok := rr.(*dns.CNAME); ok && qtype != dns.TypeCNAME {
			last = alias.Target
		}
	}
	at := slices.IndexFunc(proofs, func(n *dns.NSEC) bool { return strings.EqualFold(n.Hdr.Name, last) })
	switch {
	case m.Rcode == dns.RcodeNameError:
		if denial != dnsserver.DenialBlock || !denied(proofs, last) {
			t.Fatalf("%s is not proved absent\n%v", last, m)
		}
	case len(m.Ns) > 0:
		nothing := at >= 0 && slices.Contains(proofs[at].TypeBitMap, dns.TypeNXNAME)
		if at < 0 || !nothing && slices.Contains(proofs[at].TypeBitMap, qtype) || slices.Contains(proofs[at].TypeBitMap, dns.TypeCNAME) {
			t.Fatalf("%s %s is not proved absent\n%v", last, dns.Type(qtype), m)
		}
		if stranger && !slices.Contains(names, strings.ToLower(last)) && denial == dnsserver.DenialCompact && !nothing {
			t.Fatalf("%s: no NXNAME\n%v", last, m)
		}
	}
}

// denied tells whether NSEC records prove that a name and the wildcard that
// could stand for it do not exist (RFC 4035 section 5.4): what covers the name
// tells its closest encloser.
func denied(proofs []*dns.NSEC, name string) bool {
	for _, n := range proofs {
		if !covers(n, name) {
			continue
		}
		encloser := max(dns.CompareDomainName(n.Hdr.Name, name), dns.CompareDomainName(n.NextDomain, name))
		labels := dns.SplitDomainName(name)
		wildcard := dns.Fqdn("*." + strings.Join(labels[len(labels)-encloser:], "."))
		return slices.ContainsFunc(proofs, func(n *dns.NSEC) bool { return covers(n, wildcard) })
	}
	return false
}

// checkHarmless holds an NSEC record against all that exists.
func checkHarmless(t *testing.T, n *dns.NSEC, m *dns.Msg, names []string) {
	t.Helper()
	at, found := slices.BinarySearchFunc(names, n.Hdr.Name, compare)
	if found {
		at++
	}
	if at < len(names) && covers(n, names[at]) {
		t.Fatalf("%v denies %s, which exists\n%v", n, names[at], m)
	}
}

// A validator learns nothing from spans but the first octets of hosts.
func TestBlocksTellOnlyTheBeginningOfHosts(t *testing.T) {
	c := signedConfig(t, dnsserver.Policy{}, dnsserver.DenialBlock, 1000)
	zs := dnsserver.NewZones(newZone(t, c))
	hosts := slices.Collect(c.Labels.All())
	for _, host := range hosts[:100] {
		for cut := range len(host) {
			m := zs.Answer(askDO(host[:cut]+"~.dstack.host.", dns.TypeA), dnsserver.UDP, dnsserver.MaxUDPPayload)
			for _, rr := range m.Ns {
				n, ok := rr.(*dns.NSEC)
				if !ok {
					continue
				}
				for _, name := range []string{n.Hdr.Name, n.NextDomain} {
					// 1,003 hosts: two octets of sixteen values are not enough to tell them apart.
					if told := longestCommonPrefix(name, host); told > min(cut, 6)+1 && told > cut {
						t.Fatalf("%s~: %s tells %d octets of %s", host[:cut], name, told, host)
					}
				}
			}
		}
	}
}

func longestCommonPrefix(a, b string) (n int) {
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// Random names cost as many signatures as there are blocks, not as there are names.
func TestSignaturesOfRandomNamesAreShared(t *testing.T) {
	c := signedConfig(t, dnsserver.Policy{}, dnsserver.DenialBlock, 300)
	zs := dnsserver.NewZones(newZone(t, c))
	r := rand.New(rand.NewPCG(3, 4))
	random := func() string {
		var b [20]byte
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return hex.EncodeToString(b[:])
	}
	warm := func(n int) int64 {
		before := c.Signing.Signer.Made()
		for range n {
			zs.Answer(askDO(random()+".dstack.host.", dns.TypeA), dnsserver.UDP, dnsserver.MaxUDPPayload)
		}
		return c.Signing.Signer.Made() - before
	}
	warm(5000)
	if again := warm(5000); again > 250 {
		t.Errorf("5,000 more random names cost %d signatures, want few", again)
	}
}

func TestCompactDenialTellsTheCodeToThoseWhoAsk(t *testing.T) {
	zs := dnsserver.NewZones(newZone(t, signedConfig(t, dnsserver.Policy{}, dnsserver.DenialCompact, 0)))
	for _, row := range []struct {
		name   string
		do, co bool
		want   int
	}{
		{"plain", false, false, dns.RcodeNameError},
		{"DO", true, false, dns.RcodeSuccess},
		{"DO and CO", true, true, dns.RcodeNameError},
		{"CO alone", false, true, dns.RcodeNameError},
	} {
		query := ask("nobody.dstack.host.", dns.TypeA)
		query.SetEdns0(1232, row.do)
		query.IsEdns0().SetCo(row.co)
		m := zs.Answer(query, dnsserver.UDP, dnsserver.MaxUDPPayload)
		if m.Rcode != row.want || m.IsEdns0().Co() != row.co {
			t.Errorf("%s: %v", row.name, m)
		}
	}
}

// All nodes say the same, and an hour later nearly the same.
func TestSignaturesAreTheSameEverywhereAndRenewedOverTheDay(t *testing.T) {
	c := signedConfig(t, dnsserver.Policy{}, dnsserver.DenialBlock, 500)
	hosts := slices.Collect(c.Labels.All())
	all := func(at time.Time) (out []string) {
		n := c
		n.Signing = &dnsserver.Signing{Signer: newSigner(t, dnsserver.SignerConfig{Share: 1000}), Keys: c.Signing.Keys, At: at}
		zs := dnsserver.NewZones(newZone(t, n))
		for _, host := range hosts {
			out = append(out, zs.Answer(askDO(host+".dstack.host.", dns.TypeA), dnsserver.UDP, dnsserver.MaxUDPPayload).Answer[1].String())
		}
		return out
	}
	now := all(zoneAt)
	if diff := cmp.Diff(now, all(zoneAt.Add(25*time.Minute))); diff != "" {
		t.Errorf("another node, within the same hour (-one +other)\n%s", diff)
	}
	changed := 0
	for i, s := range all(zoneAt.Add(time.Hour)) {
		if s != now[i] {
			changed++
		}
	}
	if changed == 0 || changed > len(now)/6 {
		t.Errorf("%d of %d signatures are new after an hour, want a twenty-fourth", changed, len(now))
	}
	if diff := cmp.Diff(now[0], all(zoneAt.Add(24 * time.Hour))[0]); diff == "" {
		t.Error("a signature is not renewed after a day")
	}
}

// Beyond its budget nothing is signed, and nothing goes out unsigned.
func TestSigningBudget(t *testing.T) {
	c := signedConfig(t, dnsserver.Policy{}, dnsserver.DenialCompact, 0)
	clock := zoneAt
	ticks := 0
	c.Signing.Signer = newSigner(t, dnsserver.SignerConfig{Share: 0.25, Now: func() time.Time {
		ticks++
		clock = clock.Add(time.Millisecond) // so that each signature takes one
		return clock
	}})
	zs := dnsserver.NewZones(newZone(t, c))
	truncated := 0
	for i := range 2000 {
		m := zs.Answer(askDO(fmt.Sprintf("nobody%d.dstack.host.", i), dns.TypeA), dnsserver.UDP, dnsserver.MaxUDPPayload)
		switch signed := len(m.Ns) == 4; {
		case m.Truncated && len(m.Answer)+len(m.Ns) == 0 && m.Rcode == dns.RcodeSuccess:
			truncated++
		case !signed || m.Rcode != dns.RcodeSuccess:
			t.Fatal(m)
		}
	}
	if truncated < 500 {
		t.Errorf("%d of 2,000 were truncated", truncated)
	}
	if m := zs.Answer(askDO(appID+".dstack.host.", dns.TypeA), dnsserver.UDP, dnsserver.MaxUDPPayload); m.Truncated {
		t.Error("names that exist pay for those that don't")
	}
	if m := zs.Answer(askDO("nobody1.dstack.host.", dns.TypeA), dnsserver.UDP, dnsserver.MaxUDPPayload); m.Truncated {
		t.Error("what is kept costs nothing, and is refused")
	}
	if m := zs.Answer(ask("nobody9999.dstack.host.", dns.TypeA), dnsserver.UDP, dnsserver.MaxUDPPayload); m.Truncated || m.Rcode != dns.RcodeNameError {
		t.Error("who asks for no signature pays for one")
	}
	if m := zs.Answer(askDO("nobody9999.dstack.host.", dns.TypeA), dnsserver.TCP, dns.MaxMsgSize); m.Truncated || len(m.Ns) != 4 {
		t.Error("TCP does not wait for its signature")
	}
}

func TestSigningReportsFaults(t *testing.T) {
	for _, row := range []struct {
		name string
		edit func(*dnsserver.ZoneConfig)
		want string
	}{
		{"no signer", func(c *dnsserver.ZoneConfig) { c.Signing.Signer = nil }, "Signing: Signer is missing"},
		{"denial", func(c *dnsserver.ZoneConfig) { c.Signing.Denial = "nsec3" }, `Signing: Denial: "nsec3" is neither`},
		{"no time", func(c *dnsserver.ZoneConfig) { c.Signing.At = time.Time{} }, "Signing: At is missing"},
		{"no keys", func(c *dnsserver.ZoneConfig) { c.Signing.Keys = nil }, "Signing: Keys: none signs now"},
		{"keys of the future", func(c *dnsserver.ZoneConfig) { c.Signing.At = zoneAt.Add(-24 * time.Hour) }, "Signing: Keys: none signs now"},
		{"no order", func(c *dnsserver.ZoneConfig) { c.Labels = nil }, "Signing: Labels are missing"},
	} {
		c := signedConfig(t, dnsserver.Policy{}, dnsserver.DenialBlock, 0)
		row.edit(&c)
		if _, err := dnsserver.NewZone(c); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v, want %s", row.name, err, row.want)
		}
	}
}
