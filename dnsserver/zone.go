package dnsserver

import (
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

	// TXT are text records: name to values, each value one character-string of
	// at most 255 octets. Records at _acme-challenge names get a TTL of at
	// most 5 s.
	TXT map[string][]string
	// CAA are the origin's CAA records (RFC 8659, RFC 8657).
	CAA []CAA
	// Records are any other records.
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
}

// Zone is one zone. It is immutable and safe for concurrent use.
type Zone struct {
	origin string // presentation form, lower case, trailing dot
	wire   string // origin in wire form

	nodes map[string]*node // by name relative to origin, wire form, lower case; empty non-terminals too
	host  *node            // what every host name has

	hosts     func(string) bool
	canonical func(string) (string, bool)

	negative  []dns.RR // the SOA as negative answers carry it
	challenge []dns.RR // the same at _acme-challenge names
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

// lookup returns what exists at a name relative to the origin: the static node,
// what it has as a host, or both; both nil if the name does not exist.
func (z *Zone) lookup(rel []byte) (static, host *node) {
	static = z.nodes[string(rel)]
	if z.hosts == nil {
		return static, nil
	}
	if label, ok := hostLabel(rel); ok && z.isHost(label) {
		host = z.host
	}
	return static, host
}

func (z *Zone) isHost(label string) bool {
	if z.canonical != nil {
		canonical, ok := z.canonical(label)
		if !ok {
			return false
		}
		label = canonical
	}
	return z.hosts(label)
}
