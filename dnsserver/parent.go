package dnsserver

import (
	"context"
	"fmt"

	"github.com/miekg/dns"
)

// AskParent asks a recursive resolver, "address:port", which keys of a zone the
// zone above it names. The zero Parent comes with an error. The answer is taken
// on trust: use a resolver that validates.
func AskParent(ctx context.Context, resolver, zone string) (Parent, error) {
	message, err := Resolve(ctx, resolver, zone, "DS")
	if err != nil {
		return Parent{}, err
	}
	m, err := response(message, zone, "DS")
	if err != nil {
		return Parent{}, err
	}
	if m.Rcode != dns.RcodeSuccess || m.Truncated {
		return Parent{}, fmt.Errorf("dns: %s DS at %s: %s", zone, resolver, rcodeName(m.Rcode))
	}
	parent := Parent{Asked: true}
	for _, rr := range m.Answer {
		if ds, ok := rr.(*dns.DS); ok && dns.CanonicalName(ds.Hdr.Name) == dns.CanonicalName(zone) {
			parent.DS = append(parent.DS, ds.String())
		}
	}
	return parent, nil
}
