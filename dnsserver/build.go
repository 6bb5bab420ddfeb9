package dnsserver

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Defaults and bounds of a zone.
const (
	defaultTTL         = time.Minute
	defaultNSTTL       = time.Hour
	defaultRefresh     = time.Hour
	defaultRetry       = 10 * time.Minute
	defaultExpire      = 7 * 24 * time.Hour // before the signatures of a transfer do
	defaultNegativeTTL = 10 * time.Second

	acmeTTL     = 5 * time.Second
	maxTTL      = 7 * 24 * time.Hour  // what resolvers cap at, RFC 8767 section 4
	maxTimer    = 30 * 24 * time.Hour // of the SOA's fields for secondaries
	maxRRset    = 32 << 10            // octets, so that every answer fits a TCP message
	maxTXT      = 255                 // octets of a character-string, RFC 1035 section 3.3
	maxFacts    = 1024                // octets of what is told of one host
	maxAliases  = 8                   // CNAMEs in a row inside the zone
	maxContact  = 128
	caaCritical = 128 // RFC 8659 section 4.1
)

// Fault is one thing that is wrong with the description of a zone.
type Fault struct {
	Zone   string // the zone's name without trailing dot
	Field  string // of ZoneConfig, with what it names
	Source string // Record.Source of the record at fault; empty if it is none, or has none
	Err    error
}

func (f *Fault) Error() string {
	source := ""
	if f.Source != "" {
		source = f.Source + ": "
	}
	return fmt.Sprintf("%szone %s: %s: %v", source, f.Zone, f.Field, f.Err)
}

func (f *Fault) Unwrap() error { return f.Err }

// NewZone checks a description and builds the zone. The error joins the [Fault]
// of everything that is wrong. The configuration is not retained, except for
// its functions.
func NewZone(c ZoneConfig) (*Zone, error) {
	origin, err := parseOrigin(c.Origin)
	if err != nil {
		return nil, &Fault{Zone: strconv.Quote(c.Origin), Field: "Origin", Err: err}
	}
	var buf [maxNameOctets]byte
	wire, ok := wireName(&buf, origin)
	if !ok {
		return nil, &Fault{Zone: strconv.Quote(c.Origin), Field: "Origin", Err: errors.New("not a domain")}
	}
	b := &builder{config: c, zone: &Zone{
		origin: origin,
		wire:   string(wire),
		nodes:  map[string]*node{"": {}},
		below:  map[string]*node{},

		labels: c.Labels, prefixes: slices.Clone(c.Prefixes),

		hosts: c.Hosts, canonical: c.Canonical, isPassthrough: c.Passthrough, hostTXT: c.HostTXT,
	}}
	b.build()
	if len(b.faults) > 0 {
		return nil, errors.Join(b.faults...)
	}
	return b.zone, nil
}

// builder fills a zone and collects the faults of its description.
type builder struct {
	config     ZoneConfig
	zone       *Zone
	faults     []error
	ttl, nsTTL uint32
	sources    map[string]string // of records that have one, by owner and type
}

func (b *builder) fault(field string, err error) { b.faultAt("", field, err) }

func (b *builder) faultAt(source, field string, err error) {
	b.faults = append(b.faults, &Fault{Zone: strings.TrimSuffix(b.zone.origin, "."), Field: field, Source: source, Err: err})
}

func (b *builder) faultf(field, format string, args ...any) {
	b.fault(field, fmt.Errorf(format, args...))
}

func (b *builder) build() {
	b.ttl = b.seconds("TTL", b.config.TTL, defaultTTL, maxTTL)
	b.zone.ttl = b.ttl
	b.nsTTL = b.seconds("NSTTL", b.config.NSTTL, defaultNSTTL, maxTTL)
	b.nameServers()
	b.startOfAuthority()
	b.addresses()
	b.service()
	b.texts()
	b.authorisations()
	b.records()
	b.sign()
	b.emptyNonTerminals()
	b.zone.children, b.zone.childrenBelow = childrenOf(b.zone.nodes), childrenOf(b.zone.below)
	b.checkSets()
	b.checkAliases()
}

// seconds checks a duration and returns it in seconds.
func (b *builder) seconds(field string, d, unset, limit time.Duration) uint32 {
	if d == 0 {
		d = unset
	}
	if d < time.Second || d > limit || d%time.Second != 0 {
		b.faultf(field, "%v: must be whole seconds from 1s to %v", d, limit)
	}
	return uint32(min(max(d/time.Second, 1), math.MaxInt32))
}

func (b *builder) header(fqdn string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: fqdn, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// rel returns the key of a checked name of the zone.
func (b *builder) rel(fqdn string) string {
	var buf [maxNameOctets]byte
	wire, ok := wireName(&buf, fqdn)
	if !ok {
		return ""
	}
	rel, _ := relative(wire, b.zone.wire)
	return string(rel)
}

// inside tells whether a checked absolute name is in the zone.
func (b *builder) inside(fqdn string) bool {
	return fqdn == b.zone.origin || strings.HasSuffix(fqdn, "."+b.zone.origin)
}

// add puts a record into the zone. Records of one set share the least of their
// TTLs (RFC 2181 section 5.2); an equal record is there once.
func (b *builder) add(rr dns.RR) {
	h := rr.Header()
	key := b.rel(h.Name)
	n := b.zone.nodes[key]
	if n == nil {
		n = &node{}
		b.zone.nodes[key] = n
	}
	i := slices.IndexFunc(n.sets, func(s rrset) bool { return s.rrtype == h.Rrtype })
	if i < 0 {
		n.sets = append(n.sets, rrset{rrtype: h.Rrtype, rrs: []dns.RR{rr}})
		return
	}
	set := &n.sets[i]
	ttl := min(h.Ttl, set.rrs[0].Header().Ttl)
	if !slices.ContainsFunc(set.rrs, func(have dns.RR) bool { return dns.IsDuplicate(have, rr) }) {
		set.rrs = append(set.rrs, rr)
	}
	for _, rr := range set.rrs {
		rr.Header().Ttl = ttl
	}
}

func (b *builder) nameServers() {
	if len(b.config.NS) == 0 {
		b.faultf("NS", "at least one name server is needed")
	}
	for i, ns := range b.config.NS {
		field := fmt.Sprintf("NS[%d] %q", i, ns.Name)
		fqdn, err := absoluteName(ns.Name)
		if err != nil {
			b.fault(field, err)
			continue
		}
		switch inside := b.inside(fqdn); {
		case inside && len(ns.Addrs) == 0:
			b.faultf(field, "glue missing: a name server inside the zone needs addresses")
		case !inside && len(ns.Addrs) > 0:
			b.faultf(field, "addresses given, but the name is %w", errOutside)
			continue
		}
		b.add(&dns.NS{Hdr: b.header(b.zone.origin, dns.TypeNS, b.nsTTL), Ns: fqdn})
		b.addAddrs(field, fqdn, ns.Addrs, b.nsTTL)
	}
}

func (b *builder) startOfAuthority() {
	c := b.config.SOA
	soa := &dns.SOA{
		Hdr:     b.header(b.zone.origin, dns.TypeSOA, b.ttl),
		Ns:      b.primary(),
		Mbox:    b.contact(),
		Serial:  b.config.Serial,
		Refresh: b.seconds("SOA.Refresh", c.Refresh, defaultRefresh, maxTimer),
		Retry:   b.seconds("SOA.Retry", c.Retry, defaultRetry, maxTimer),
		Expire:  b.seconds("SOA.Expire", c.Expire, defaultExpire, 2*maxTimer),
		Minttl:  b.seconds("SOA.NegativeTTL", c.NegativeTTL, defaultNegativeTTL, maxTTL),
	}
	b.add(soa)
	b.zone.negative = negativeSOA(soa, soa.Minttl)
	b.zone.challenge = negativeSOA(soa, min(soa.Minttl, uint32(acmeTTL/time.Second)))
}

// negativeSOA returns the SOA with the TTL of a negative answer: the least of
// its own TTL and the negative TTL (RFC 2308 section 5).
func negativeSOA(soa *dns.SOA, ttl uint32) dns.RR {
	negative := *soa
	negative.Hdr.Ttl = min(soa.Hdr.Ttl, ttl)
	return &negative
}

func (b *builder) primary() string {
	name := b.config.SOA.Primary
	if name == "" && len(b.config.NS) > 0 {
		name = b.config.NS[0].Name
	}
	fqdn, err := absoluteName(name)
	if err != nil && b.config.SOA.Primary != "" {
		b.fault(fmt.Sprintf("SOA.Primary %q", name), err)
	}
	return fqdn
}

// contact turns the mail address into a domain name, RFC 1035 section 8.
func (b *builder) contact() string {
	contact := b.config.SOA.Contact
	if contact == "" {
		contact = "hostmaster@" + strings.TrimSuffix(b.zone.origin, ".")
	}
	local, domain, _ := strings.Cut(contact, "@")
	fqdn, err := absoluteName(domain)
	valid := strings.Trim(strings.ToLower(local), "abcdefghijklmnopqrstuvwxyz0123456789-_+.") == ""
	if strings.EqualFold(dns.Fqdn(domain), b.zone.origin) {
		fqdn, err = b.zone.origin, nil // also an origin of one label
	}
	if err != nil || !valid || local == "" || len(local) > maxLabelOctets || len(contact) > maxContact {
		b.faultf("SOA.Contact", "%.150q is not a mail address", contact)
	}
	return strings.ReplaceAll(local, ".", `\.`) + "." + fqdn
}

func (b *builder) addresses() {
	if len(b.config.Addrs) == 0 {
		b.faultf("Addrs", "at least one address is needed")
	}
	b.addAddrs("Addrs", b.zone.origin, b.config.Addrs, b.ttl)
	for i, name := range b.config.Names {
		field := fmt.Sprintf("Names[%d] %q", i, name)
		fqdn, err := ownerName(name, b.zone.origin)
		if err != nil {
			b.fault(field, err)
			continue
		}
		b.addAddrs("", fqdn, b.config.Addrs, b.ttl)
	}
	b.zone.passthrough = &node{sets: slices.DeleteFunc(slices.Clone(b.zone.nodes[""].sets), func(s rrset) bool {
		return s.rrtype != dns.TypeA && s.rrtype != dns.TypeAAAA
	})}
	b.zone.host = &node{sets: slices.Clone(b.zone.passthrough.sets)}
}

// addAddrs adds address records. Faults are told once, where field is given.
func (b *builder) addAddrs(field, fqdn string, addrs []netip.Addr, ttl uint32) {
	for _, addr := range addrs {
		addr = addr.Unmap()
		if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() || addr.Zone() != "" {
			if field != "" {
				b.faultf(field, "%v is not the address of a host", addr)
			}
			continue
		}
		if addr.Is4() {
			b.add(&dns.A{Hdr: b.header(fqdn, dns.TypeA, ttl), A: net.IP(addr.AsSlice())})
		} else {
			b.add(&dns.AAAA{Hdr: b.header(fqdn, dns.TypeAAAA, ttl), AAAA: net.IP(addr.AsSlice())})
		}
	}
}

func (b *builder) texts() {
	for _, name := range slices.Sorted(maps.Keys(b.config.TXT)) {
		field := fmt.Sprintf("TXT %q", name)
		fqdn, err := ownerName(name, b.zone.origin)
		if err != nil {
			b.fault(field, err)
			continue
		}
		for _, value := range b.config.TXT[name] {
			if len(value) > maxTXT {
				b.faultf(field, "value of %d octets is too long: at most %d", len(value), maxTXT)
				continue
			}
			b.add(&dns.TXT{Hdr: b.header(fqdn, dns.TypeTXT, b.nameTTL(fqdn)), Txt: []string{escape(value)}})
		}
	}
}

// escape makes a raw character-string what the library unescapes when packing.
func escape(value string) string { return strings.ReplaceAll(value, `\`, `\\`) }

// nameTTL is the TTL of ordinary records at a name.
func (b *builder) nameTTL(fqdn string) uint32 {
	if strings.HasPrefix(fqdn, acmeLabel+".") {
		return min(b.ttl, uint32(acmeTTL/time.Second))
	}
	return b.ttl
}

func (b *builder) authorisations() {
	for i, c := range b.config.CAA {
		if err := c.check(); err != nil {
			b.fault(fmt.Sprintf("CAA[%d]", i), err)
			continue
		}
		rr := &dns.CAA{Hdr: b.header(b.zone.origin, dns.TypeCAA, b.ttl), Tag: strings.ToLower(c.Tag), Value: escape(c.Value)}
		if c.Critical {
			rr.Flag = caaCritical
		}
		b.add(rr)
	}
}

func (b *builder) records() {
	b.sources = map[string]string{}
	for i, r := range b.config.Records {
		field := fmt.Sprintf("Records[%d] %q %s", i, r.Name, r.Type)
		fqdn, err := ownerName(r.Name, b.zone.origin)
		if err != nil {
			b.faultAt(r.Source, field, err)
			continue
		}
		ttl := b.nameTTL(fqdn)
		if r.TTL != 0 {
			ttl = b.seconds(field, r.TTL, 0, maxTTL)
		}
		rr, err := r.parse(fqdn, ttl)
		if err != nil {
			b.faultAt(r.Source, field, err)
			continue
		}
		b.sources[fqdn+dns.TypeToString[rr.Header().Rrtype]] = r.Source
		b.add(rr)
	}
}

// emptyNonTerminals makes every name exist that has a name below it, and the
// names of serviceLabels.
func (b *builder) emptyNonTerminals() {
	for _, label := range serviceLabels {
		b.exist(string(rune(len(label))) + label)
	}
	for _, key := range slices.Collect(maps.Keys(b.zone.nodes)) {
		for key != "" {
			key = key[1+int(key[0]):]
			b.exist(key)
		}
	}
}

func (b *builder) exist(key string) {
	if b.zone.nodes[key] == nil {
		b.zone.nodes[key] = &node{}
	}
}
