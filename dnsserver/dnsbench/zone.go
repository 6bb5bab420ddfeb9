//go:build linux

package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// The zone that every server serves.
const (
	origin  = "dstack.host."
	serial  = 1
	service = "_dstack."
)

// appID is the name of app i.
func appID(i int) string {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
	return hex.EncodeToString(sum[:20])
}

// zoneConfig describes the zone with so many apps for our server.
func zoneConfig(apps int) dnsserver.ZoneConfig {
	set := make(map[string]struct{}, apps)
	for i := range apps {
		set[appID(i)] = struct{}{}
	}
	public := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	return dnsserver.ZoneConfig{
		Origin: strings.TrimSuffix(origin, "."), Serial: serial,
		NS:    []dnsserver.NameServer{{Name: "ns1." + origin, Addrs: public}, {Name: "ns2." + origin, Addrs: public}},
		Addrs: public, Names: []string{"gateway"},
		Hosts:   func(label string) bool { _, ok := set[label]; return ok },
		HostTXT: func(label string) []string { return []string{"app=" + label, "instances=1"} },
		Service: &dnsserver.Service{ALPN: []string{"h2", "http/1.1"}},
		TXT:     map[string][]string{"_acme-challenge": {"placeholder"}},
		CAA:     []dnsserver.CAA{{Tag: "issue", Value: "letsencrypt.org; validationmethods=dns-01"}, {Tag: "issuewild", Value: "letsencrypt.org"}},
	}
}

// sign makes the zone of our server a signed one, as a gateway does by default.
func sign(c *dnsserver.ZoneConfig, apps int) error {
	key, err := dnsserver.NewKey(dnsserver.ECDSAP256SHA256, dnsserver.CSK)
	if err != nil {
		return err
	}
	signer, err := dnsserver.NewSigner(dnsserver.SignerConfig{})
	if err != nil {
		return err
	}
	now := time.Now()
	since := now.Add(-48 * time.Hour)
	c.Labels = dnsserver.NewLabels(func(yield func(string) bool) {
		for i := range apps {
			if !yield(appID(i)) {
				return
			}
		}
	})
	c.Signing = &dnsserver.Signing{
		Signer: signer, At: now,
		Keys: dnsserver.Keys{{Key: key, Publish: since, Sign: since, Submit: since}},
	}
	return nil
}

// zoneFile writes as a zone file all that our server answers in that zone, so
// that the others answer the same.
func zoneFile(zones *dnsserver.Zones, apps int) string {
	var out strings.Builder
	write := func(name string, qtype uint16) {
		query := new(dns.Msg).SetQuestion(name, qtype)
		for _, rr := range zones.Answer(query, dnsserver.TCP, dns.MaxMsgSize).Answer {
			fmt.Fprintln(&out, rr)
		}
	}
	for _, qtype := range []uint16{dns.TypeSOA, dns.TypeNS, dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeCAA} {
		write(origin, qtype)
	}
	names := []string{"ns1." + origin, "ns2." + origin, "gateway." + origin}
	for i := range apps {
		names = append(names, appID(i)+"."+origin)
		write(service+appID(i)+"."+origin, dns.TypeTXT)
	}
	for _, name := range names {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS} {
			write(name, qtype)
		}
	}
	write("_acme-challenge."+origin, dns.TypeTXT)
	return out.String()
}

// source gives one query after the other, without end and without allocating.
// The octets are good until the next call; the id is the caller's to set.
type source func() []byte

// packet packs a query, with EDNS and, if so, with DO.
func packet(name string, qtype uint16, do bool) []byte {
	query := new(dns.Msg).SetQuestion(name, qtype)
	query.RecursionDesired = false
	query.SetEdns0(1232, do)
	packed, err := query.Pack()
	if err != nil {
		panic(err) // our own names
	}
	return packed
}

// cycle repeats packets in a random order that is the same each time.
func cycle(packets [][]byte) source {
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(packets), func(i, j int) { packets[i], packets[j] = packets[j], packets[i] })
	next := 0
	return func() []byte {
		if next++; next == len(packets) {
			next = 0
		}
		return packets[next]
	}
}

// hits asks for the address of every app.
func hits(apps int, do bool) source {
	packets := make([][]byte, apps)
	for i := range packets {
		packets[i] = packet(appID(i)+"."+origin, dns.TypeA, do)
	}
	return cycle(packets)
}

// misses asks for as many names that do not exist.
func misses(apps int) source {
	packets := make([][]byte, apps)
	for i := range packets {
		packets[i] = packet(appID(i+apps)+"."+origin, dns.TypeA, false)
	}
	return cycle(packets)
}

// mixed asks as resolvers do: mostly for addresses and HTTPS records, sometimes
// for other types, for what does not exist, and for the zone itself.
func mixed(apps int) source {
	var packets [][]byte
	add := func(name string, qtype uint16) { packets = append(packets, packet(name+origin, qtype, false)) }
	for i := range apps {
		name := appID(i) + "."
		for range 3 {
			add(name, dns.TypeA)
		}
		for _, qtype := range []uint16{dns.TypeAAAA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeHTTPS, dns.TypeMX} {
			add(name, qtype)
		}
		add(service+name, dns.TypeTXT)
		add(appID(i+apps)+".", dns.TypeA)
		add("", []uint16{dns.TypeSOA, dns.TypeNS, dns.TypeCAA, dns.TypeA}[i%4])
		add("_acme-challenge.", dns.TypeTXT)
	}
	return cycle(packets)
}

// strangers asks for random names that have the form of an app's, of which
// there are a million before they repeat.
func strangers(do bool) source {
	const names = 1 << 20
	query := packet(strings.Repeat("0", 40)+"."+origin, dns.TypeA, do)
	label := query[13:53]
	random, n := rand.NewPCG(3, 4), 0
	return func() []byte {
		if n++; n == names {
			random.Seed(3, 4)
			n = 0
		}
		for i := 0; i < len(label); i += 8 {
			var octets [4]byte
			binary.BigEndian.PutUint32(octets[:], uint32(random.Uint64()))
			hex.Encode(label[i:], octets[:])
		}
		return query
	}
}
