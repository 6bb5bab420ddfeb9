package dnsserver

import (
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// Lookup returns what is answered to a question, without a network: what
// [Query] would return, but for signatures. The name may end without its dot.
func (zs *Zones) Lookup(name, qtype string) (Response, error) {
	rrtype, ok := dns.StringToType[strings.ToUpper(qtype)]
	if !ok {
		return Response{}, fmt.Errorf("dns type %q: unknown", qtype)
	}
	query := new(dns.Msg).SetQuestion(dns.Fqdn(name), rrtype)
	query.SetEdns0(maxMessage, false)
	return newResponse(zs.Answer(query, TCP, maxMessage), rrtype), nil
}
