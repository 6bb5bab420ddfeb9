package dnsserver

import (
	"context"
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// Resolve asks a recursive resolver, "address:port", one question, with the
// DNSSEC records (DO) and the resolver's own validation (CD clear), and
// returns the response as a message, so that it can be kept as evidence. A
// response of any code is no error; [ParseResolution] reads it. ctx bounds
// the whole.
func Resolve(ctx context.Context, resolver, name, qtype string) ([]byte, error) {
	rrtype, ok := dns.StringToType[strings.ToUpper(qtype)]
	if !ok {
		return nil, fmt.Errorf("dns type %q: unknown", qtype)
	}
	query := new(dns.Msg).SetQuestion(dns.Fqdn(name), rrtype)
	query.SetEdns0(MaxUDPPayload, true)
	m, err := ask(ctx, "udp", resolver, query)
	if err == nil && m.Truncated {
		m, err = ask(ctx, "tcp", resolver, query)
	}
	if err != nil {
		return nil, fmt.Errorf("dns query %s %s at %s: %w", name, qtype, resolver, err)
	}
	return m.Pack()
}

// Resolution is what a resolver answered.
type Resolution struct {
	// Rcode is the response code's name: "NOERROR", "NXDOMAIN", "SERVFAIL", …
	Rcode string
	// Authenticated is the AD flag: the resolver says that it validated the
	// answer (RFC 4035 section 3.2.3). It is its word, over an open channel.
	Authenticated bool
	// Owner is where the answer stands: the name that was asked for, without a
	// trailing dot, or the end of its aliases.
	Owner string
	// CAA are the answer's records of that type, Keys the number of its DNSKEY
	// records.
	CAA  []CAA
	Keys int
	// Error is the extended error (RFC 8914), empty without.
	Error string
}

// ParseResolution reads a response to a question, and refuses one to another.
func ParseResolution(message []byte, name, qtype string) (Resolution, error) {
	m, err := response(message, name, qtype)
	if err != nil {
		return Resolution{}, err
	}
	owner := follow(m.Answer, dns.CanonicalName(name))
	r := Resolution{
		Rcode: rcodeName(m.Rcode), Authenticated: m.AuthenticatedData,
		Owner: strings.TrimSuffix(owner, "."), Error: extendedError(m),
	}
	for _, rr := range m.Answer {
		if dns.CanonicalName(rr.Header().Name) != owner {
			continue
		}
		switch rr := rr.(type) {
		case *dns.CAA:
			r.CAA = append(r.CAA, CAA{Critical: rr.Flag&0x80 != 0, Tag: rr.Tag, Value: unescape(rr.Value)})
		case *dns.DNSKEY:
			r.Keys++
		}
	}
	return r, nil
}

// response reads a message and holds it to its question.
func response(message []byte, name, qtype string) (*dns.Msg, error) {
	m := new(dns.Msg)
	if err := m.Unpack(message); err != nil {
		return nil, fmt.Errorf("dns response: %w", err)
	}
	want := dns.Question{Name: dns.Fqdn(name), Qtype: dns.StringToType[strings.ToUpper(qtype)], Qclass: dns.ClassINET}
	if !m.Response || len(m.Question) != 1 || !sameQuestion(m.Question[0], want) {
		return nil, fmt.Errorf("dns response is not to %s %s", name, qtype)
	}
	return m, nil
}

// follow returns where a name's aliases in an answer end.
func follow(answer []dns.RR, name string) string {
	for range maxAliases {
		next := ""
		for _, rr := range answer {
			if alias, ok := rr.(*dns.CNAME); ok && dns.CanonicalName(alias.Hdr.Name) == name {
				next = dns.CanonicalName(alias.Target)
			}
		}
		if next == "" {
			break
		}
		name = next
	}
	return name
}
