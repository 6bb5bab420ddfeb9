package dnsserver

import (
	"crypto/sha256"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// ZoneConfig describes one zone. [NewZone] checks it and builds the zone.
//
// Names of the zone (keys of TXT, Names, Record.Name) are relative to Origin;
// "" and "@" are the origin itself. A name that ends with the origin, or with
// a dot, is taken as absolute. They consist of letters, digits, '-' and '_'.
type ZoneConfig struct {
	// Origin is the base domain, such as "dstack.host". Required.
	Origin string
	// Serial is the SOA's serial (RFC 1982). It never goes back: the caller
	// follows the revision of its state.
	Serial uint32
	// NS are the zone's name servers, at least one.
	NS []NameServer
	// SOA has usable zero values.
	SOA SOA
	// Addrs are the addresses of the origin, of Names and of every host. At
	// least one. IPv4-mapped addresses become IPv4.
	Addrs []netip.Addr
	// Names are static names with Addrs, such as "gateway".
	Names []string

	// Hosts tells whether the host of a canonical label exists. Nil: no host does.
	//
	// It is the set itself and is not copied: NewZone costs the same with ten
	// and with 100,000 hosts. So it must answer the same for as long as the
	// zone is used: close over an immutable snapshot, and make a new zone for
	// the next one. It is called on the path of a query, by many goroutines at
	// once; it takes no lock, does no I/O and does not panic.
	Hosts func(canonical string) bool
	// Canonical maps the label of a query to the canonical label that Hosts
	// knows ("0xab…-8080s" to "ab…"), or says that it can't be a host's. The
	// label is in lower case, 1 to 63 letters, digits and hyphens. Nil: labels
	// are canonical as they are. The rules of Hosts hold for it too.
	Canonical func(label string) (canonical string, ok bool)

	// Passthrough tells of a host's label that the host itself terminates TLS
	// there ("ab…s"): then nothing is said of Service. Nil: of none. The rules
	// of Hosts hold for it too.
	Passthrough func(label string) bool
	// HostTXT returns the strings, of at most 255 octets each, of the one TXT
	// record at _dstack below a host; none: there is no such record. Nil: there
	// are none. It is asked for hosts that exist, and the rules of Hosts hold
	// for it too.
	HostTXT func(canonical string) []string
	// Service is the HTTPS service at the origin, at Names and at every host.
	// Nil: nothing is said of it.
	Service *Service

	// Labels are the canonical labels of all hosts, in order: those that Hosts
	// knows. Needed to prove that a name does not exist (DenialBlock), and to
	// list the zone in transfers.
	Labels *Labels
	// Prefixes are what may stand before a canonical label ("0x"). Labels of
	// hosts begin with a canonical label, or with one behind a prefix.
	Prefixes []string
	// Signing makes the zone signed. Nil: it is not.
	Signing *Signing

	// TXT are text records: name to values, each value one character-string of
	// at most 255 octets. Records at _acme-challenge names get a TTL of at
	// most 5 s.
	TXT map[string][]string
	// CAA are the origin's CAA records (RFC 8659, RFC 8657).
	CAA []CAA
	// Records are any other records. One at a name and of a type that the
	// fields above make too joins those.
	Records []Record

	// TTL of the records, whole seconds. Zero: 60 s.
	TTL time.Duration
	// NSTTL is the TTL of the NS records and of the name servers' addresses.
	// Zero: 1 h.
	NSTTL time.Duration
}

// NameServer is one name server of the zone.
type NameServer struct {
	// Name is the full name, with or without trailing dot.
	Name string
	// Addrs are its addresses: required when Name is inside the zone (glue),
	// impossible when it is outside.
	Addrs []netip.Addr
}

// SOA holds the start of authority's fields (RFC 1035 section 3.3.13).
type SOA struct {
	// Primary is the full name of the primary name server. Empty: the first of NS.
	Primary string
	// Contact is a mail address. Empty: hostmaster at the origin.
	Contact string
	// Refresh, Retry and Expire time secondaries. Zero: 1 h, 10 min, 14 days.
	Refresh, Retry, Expire time.Duration
	// NegativeTTL is the minimum field: how long a missing name stays missing
	// in caches (RFC 2308), so how late a new host may appear to somebody who
	// asked too early. Zero: 10 s. At _acme-challenge names it is at most 5 s.
	NegativeTTL time.Duration
}

// CAA is one certification authority authorisation, RFC 8659 section 4.
type CAA struct {
	// Critical is the issuer critical flag.
	Critical bool
	// Tag is the property, such as "issue", "issuewild" or "iodef".
	Tag string
	// Value is the property's value, such as
	// "letsencrypt.org; validationmethods=dns-01; accounturi=https://…" (RFC 8657).
	Value string
}

// Record is one static record with its data as in a zone file.
type Record struct {
	// Name is the owner; ZoneConfig says how it is read.
	Name string
	// Type is one of A, AAAA, CAA, CNAME, HTTPS, MX, PTR, SRV, SVCB, TLSA, TXT.
	Type string
	// Data is the record data in zone-file form, names in it absolute with trailing dot.
	Data string
	// TTL, whole seconds. Zero: ZoneConfig.TTL.
	TTL time.Duration
	// Source is where the record comes from, such as "static.zone:7", for the
	// [Fault] of a bad one. May be empty.
	Source string
}

// Service is what clients learn of the HTTPS service before they connect. All
// fields are optional.
type Service struct {
	// ALPN are the protocols of the HTTPS records (RFC 9460 section 7.1), best
	// first, such as "h2". None: there are no HTTPS records.
	ALPN []string
	// Port is where the service listens. Zero: 443. Another one is said in the
	// HTTPS record, and those who ask for it by number find the record at
	// _<port>._https too (RFC 9460 section 9.1).
	Port uint16
	// ECH is the ECHConfigList of the HTTPS records (RFC 9848). Empty: none.
	ECH []byte
	// OriginKeys and Keys are the SHA-256 of the SubjectPublicKeyInfo of the TLS
	// keys at the origin and at all other names, those in use and those that
	// come next: TLSA records 3 1 1 (RFC 6698, RFC 7671) at _<port>._tcp.
	OriginKeys, Keys [][sha256.Size]byte
}

// Zone is one zone. It is immutable and safe for concurrent use.
type Zone struct {
	origin string // presentation form, lower case, trailing dot
	wire   string // origin in wire form

	nodes       map[string]*node // by name relative to origin, wire form, lower case; empty non-terminals too
	host        *node            // what every host name has
	passthrough *node            // what a host name has where the host terminates TLS
	below       map[string]*node // what there is below every host name but those: by name relative to it
	ttl         uint32           // of records that are made for a query

	signing                 *signing // nil: the zone is not signed
	denials                 *denials // nil: none are kept
	labels                  *Labels
	prefixes                []string
	children, childrenBelow map[string][]string // labels below each name of nodes and of below, sorted

	hosts         func(string) bool
	canonical     func(string) (string, bool)
	isPassthrough func(string) bool
	hostTXT       func(string) []string

	negative  dns.RR // the SOA as negative answers carry it
	challenge dns.RR // the same at _acme-challenge names
}

// Origin returns the zone's name in lower case with trailing dot.
func (z *Zone) Origin() string { return z.origin }

// node is what exists at one name. A node without sets is an empty
// non-terminal (RFC 8499 section 7).
type node struct {
	sets []rrset
}

// rrset is the records of one type at one name.
type rrset struct {
	rrtype uint16
	rrs    []dns.RR
}

// set returns the records of one type, or nil.
func (n *node) set(rrtype uint16) []dns.RR {
	if n == nil {
		return nil
	}
	for i := range n.sets {
		if n.sets[i].rrtype == rrtype {
			return n.sets[i].rrs
		}
	}
	return nil
}

// lookup returns what exists at a name relative to the origin: what the zone
// has for it alone, what it has as a host's name or one below, or both; both nil
// if the name does not exist.
func (z *Zone) lookup(rel []byte) (static, host *node) {
	static = z.nodes[string(rel)]
	if z.hosts == nil || len(rel) == 0 {
		return static, nil
	}
	return static, z.lookupHost(rel)
}

// lookupHost returns what a name has for being a host's or below one.
func (z *Zone) lookupHost(rel []byte) *node {
	below, last := cutLast(rel)
	label, ok := hostLabel(last)
	if !ok {
		return nil
	}
	canonical, ok := z.hostOf(label)
	if !ok {
		return nil
	}
	passthrough := z.isPassthrough != nil && z.isPassthrough(label)
	switch {
	case len(below) == 0 && passthrough:
		return z.passthrough
	case len(below) == 0:
		return z.host
	case string(below) == factsWire:
		return z.facts(canonical)
	case passthrough:
		return nil
	}
	return z.serviceBelow(below, label)
}

// hostOf returns the canonical label of a host that exists.
func (z *Zone) hostOf(label string) (canonical string, ok bool) {
	if canonical = label; z.canonical != nil {
		if canonical, ok = z.canonical(label); !ok {
			return "", false
		}
	}
	return canonical, z.hosts(canonical)
}

// facts makes what is said of one host at _dstack below it, or nil.
func (z *Zone) facts(canonical string) *node {
	if z.hostTXT == nil {
		return nil
	}
	txt := &dns.TXT{Hdr: dns.RR_Header{Name: z.origin, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: z.ttl}}
	size := 0
	for _, s := range z.hostTXT(canonical) {
		if size += 1 + len(s); len(s) > maxTXT || size > maxFacts {
			break
		}
		txt.Txt = append(txt.Txt, escape(s))
	}
	if len(txt.Txt) == 0 {
		return nil
	}
	return &node{sets: []rrset{{rrtype: dns.TypeTXT, rrs: []dns.RR{txt}}}}
}
