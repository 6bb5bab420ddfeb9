package gateway

import (
	"context"
	"fmt"
	"io"
	"strings"

	"dstack.host/dnsserver"
	"dstack.host/gateway/config"
)

// PrintDS asks the DNS server of a gateway that runs with this configuration on this machine which DS records the zones
// above need, prints them, and says what the zones above have.
func PrintDS(ctx context.Context, c config.Config, w io.Writer) error {
	server := reachable(c.DNS.Listen[0]).String()
	resolver, resolverErr := resolverAddr(c.DNS.DNSSEC.Resolver)
	for _, base := range c.BaseDomains {
		answer, err := dnsserver.Query(ctx, server, base, "CDS")
		if err != nil {
			return fmt.Errorf("%w; is the gateway running?", err)
		}
		if len(answer.Answers) == 0 {
			return fmt.Errorf("%s: the DNS server at %s has no key (%s); is dns.dnssec.sign set, and is it ready?", base, server, answer.Rcode)
		}
		for _, data := range answer.Answers {
			fmt.Fprintf(w, "%s. IN DS %s\n", base, data)
		}
		parent, err := dnsserver.Parent{}, resolverErr
		if err == nil {
			parent, err = dnsserver.AskParent(ctx, resolver, base)
		}
		fmt.Fprintf(w, "; %s\n", parentSays(parent, err, answer.Answers))
	}
	return nil
}

// parentSays tells what the zone above has of what it should.
func parentSays(parent dnsserver.Parent, err error, wanted []string) string {
	if err != nil {
		return fmt.Sprintf("the zone above could not be asked: %v", err)
	}
	missing, more := len(wanted), len(parent.DS)
	for _, record := range parent.DS {
		for _, data := range wanted {
			if strings.HasSuffix(strings.ToUpper(record), "\tDS\t"+strings.ToUpper(data)) {
				missing, more = missing-1, more-1
			}
		}
	}
	switch {
	case missing == 0 && more == 0:
		return "the zone above has exactly this"
	case len(parent.DS) == 0:
		return "the zone above has no DS records: nobody checks the signatures until it has these"
	case missing > 0:
		return fmt.Sprintf("the zone above has others; %d of these are missing there", missing)
	}
	return fmt.Sprintf("the zone above has these and %d more, which it should drop", more)
}
