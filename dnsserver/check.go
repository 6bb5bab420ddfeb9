package dnsserver

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// staticTypes are the types that a Record may have. Not among them: what the
// zone makes itself (SOA, NS), delegations, DNAME, and everything of DNSSEC.
var staticTypes = map[string]uint16{
	"A": dns.TypeA, "AAAA": dns.TypeAAAA, "CAA": dns.TypeCAA, "CNAME": dns.TypeCNAME,
	"HTTPS": dns.TypeHTTPS, "MX": dns.TypeMX, "PTR": dns.TypePTR, "SRV": dns.TypeSRV,
	"SVCB": dns.TypeSVCB, "TLSA": dns.TypeTLSA, "TXT": dns.TypeTXT,
}

// parse reads the record's data at a checked owner name.
func (r Record) parse(fqdn string, ttl uint32) (dns.RR, error) {
	rrtype, ok := staticTypes[strings.ToUpper(r.Type)]
	if !ok {
		return nil, fmt.Errorf("type is not one of %s", strings.Join(slices.Sorted(maps.Keys(staticTypes)), ", "))
	}
	if strings.TrimSpace(r.Data) == "" {
		return nil, errors.New("no data")
	}
	// One line is one record: no second record, no directive, no comment.
	if strings.ContainsFunc(r.Data, func(c rune) bool { return c < ' ' || c == 0x7f }) {
		return nil, errors.New("data has a control character")
	}
	line := fmt.Sprintf("%s %d IN %s %s\n", fqdn, ttl, dns.TypeToString[rrtype], r.Data)
	parser := dns.NewZoneParser(strings.NewReader(line), "", "")
	rr, ok := parser.Next()
	if err := parser.Err(); err != nil {
		return nil, fmt.Errorf("data %.80q: %w", r.Data, err)
	}
	if !ok || rr.Header().Rrtype != rrtype {
		return nil, fmt.Errorf("data %.80q does not parse", r.Data)
	}
	if _, err := dns.PackRR(rr, make([]byte, dns.Len(rr)+1), 0, nil, false); err != nil {
		return nil, fmt.Errorf("data %.80q: %w", r.Data, err)
	}
	return rr, nil
}

// check holds a CAA record to RFC 8659 sections 4.1 and 4.2.
func (c CAA) check() error {
	tag := strings.ToLower(c.Tag)
	if tag == "" || len(tag) > 15 || strings.ContainsFunc(tag, func(r rune) bool { return r > 0x7f || !isAlphanumeric(byte(r)) }) {
		return fmt.Errorf("tag %.20q: must be 1 to 15 letters and digits", c.Tag)
	}
	if len(c.Value) > maxTXT {
		return fmt.Errorf("%s: value of %d octets is too long: at most %d", tag, len(c.Value), maxTXT)
	}
	if strings.ContainsFunc(c.Value, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fmt.Errorf("%s: value %q has characters other than printable ASCII", tag, c.Value)
	}
	if tag != "issue" && tag != "issuewild" {
		return nil
	}
	return checkIssue(tag, c.Value)
}

// checkIssue checks the issuer and its parameters, RFC 8659 section 4.2. An
// authority that can't parse the value issues nothing, so a typing error would
// stop renewals months later.
func checkIssue(tag, value string) error {
	issuer, parameters, some := strings.Cut(value, ";")
	if issuer = strings.TrimSpace(issuer); issuer != "" {
		fqdn := dns.Fqdn(strings.ToLower(issuer))
		if err := checkName(fqdn); err != nil || strings.Contains(fqdn, "_") {
			return fmt.Errorf("%s: issuer %q is not a domain", tag, issuer)
		}
	}
	if !some || strings.TrimSpace(parameters) == "" {
		return nil
	}
	for parameter := range strings.SplitSeq(parameters, ";") {
		key, val, ok := strings.Cut(strings.TrimSpace(parameter), "=")
		if !ok || checkLabel(strings.ToLower(key)) != nil || strings.ContainsAny(val, " \t") {
			return fmt.Errorf("%s: parameter %q is not key=value", tag, strings.TrimSpace(parameter))
		}
	}
	return nil
}

// checkSets bounds every set, so that every answer fits a TCP message.
func (b *builder) checkSets() {
	for _, key := range slices.Sorted(maps.Keys(b.zone.nodes)) {
		for _, set := range b.zone.nodes[key].sets {
			size := 0
			for _, rr := range set.rrs {
				size += dns.Len(rr)
			}
			if size > maxRRset {
				b.faultf(set.rrs[0].Header().Name, "%s records of %d octets are too many: at most %d",
					dns.TypeToString[set.rrtype], size, maxRRset)
			}
		}
	}
}

// checkAliases reports CNAMEs beside other data (RFC 1034 section 3.6.2), at
// names where hosts can appear, under name servers, and in loops.
func (b *builder) checkAliases() {
	for _, key := range slices.Sorted(maps.Keys(b.zone.nodes)) {
		n := b.zone.nodes[key]
		alias := n.set(dns.TypeCNAME)
		if alias == nil {
			continue
		}
		owner := alias[0].Header().Name
		fault := func(format string, args ...any) {
			b.faultAt(b.sources[owner+"CNAME"], "CNAME "+owner, fmt.Errorf(format, args...))
		}
		if len(n.sets) > 1 || len(alias) > 1 {
			fault("a CNAME with other data at the same name")
		}
		if b.couldBeHost(key) {
			fault("a CNAME at a name that a host can have")
		}
		if !b.ends(key) {
			fault("a loop, or more than %d CNAMEs in a row", maxAliases)
		}
	}
	for _, ns := range b.zone.nodes[""].set(dns.TypeNS) {
		target := ns.(*dns.NS).Ns
		if b.inside(target) && b.zone.nodes[b.rel(target)].set(dns.TypeCNAME) != nil {
			b.faultf("NS "+target, "a name server can't be a CNAME (RFC 2181 section 10.3)")
		}
	}
}

// couldBeHost tells whether Canonical takes the name for a host's. Without
// Canonical every label is one, and the static name is preferred.
func (b *builder) couldBeHost(key string) bool {
	if b.zone.canonical == nil || b.zone.hosts == nil {
		return false
	}
	label, ok := hostLabel([]byte(key))
	if !ok {
		return false
	}
	_, ok = b.zone.canonical(label)
	return ok
}

// ends tells whether the chain of CNAMEs that begins at key ends in time.
func (b *builder) ends(key string) bool {
	var buf [maxNameOctets]byte
	for range maxAliases {
		alias := b.zone.nodes[key].set(dns.TypeCNAME)
		if alias == nil {
			return true
		}
		wire, ok := wireName(&buf, alias[0].(*dns.CNAME).Target)
		if !ok {
			return true
		}
		rel, inside := relative(wire, b.zone.wire)
		if !inside {
			return true
		}
		key = string(rel)
	}
	return b.zone.nodes[key].set(dns.TypeCNAME) == nil
}
