package dnsserver

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	queryAttempts = 3
	queryTimeout  = 2 * time.Second // of one attempt
)

// Response is what a server answered to [Query].
type Response struct {
	// Rcode is the response code's name: "NOERROR", "NXDOMAIN", "REFUSED", …
	Rcode string
	// Authoritative is the AA flag.
	Authoritative bool
	// Answers is the data of the answers of the asked type: addresses and other
	// data in presentation form; of TXT records the strings joined, octet by
	// octet as they are in the record.
	Answers []string
	// Records are the whole answer section in presentation form, aliases included.
	Records []string
	// TTL is the least of the answers' TTLs, or without answers the negative TTL.
	TTL time.Duration
	// Error is the extended error (RFC 8914), such as "Not Ready: zones are not
	// loaded yet"; empty without.
	Error string
}

// Query asks one server one question, over UDP with EDNS, and over TCP when the
// answer is truncated. The server is "address:port", the type a name such as
// "TXT". A lost packet is repeated; ctx bounds the whole. It asks the server
// itself, without recursion: it is meant for one's own name servers.
func Query(ctx context.Context, server, name, qtype string) (Response, error) {
	rrtype, ok := dns.StringToType[strings.ToUpper(qtype)]
	if !ok {
		return Response{}, fmt.Errorf("dns type %q: unknown", qtype)
	}
	query := new(dns.Msg).SetQuestion(dns.Fqdn(name), rrtype)
	query.RecursionDesired = false
	query.SetEdns0(MaxUDPPayload, false)
	m, err := ask(ctx, "udp", server, query)
	if err == nil && m.Truncated {
		m, err = ask(ctx, "tcp", server, query)
	}
	if err != nil {
		return Response{}, fmt.Errorf("dns query %s %s at %s: %w", name, qtype, server, err)
	}
	return newResponse(m, rrtype), nil
}

// ask sends the query until it is answered.
func ask(ctx context.Context, network, server string, query *dns.Msg) (m *dns.Msg, err error) {
	client := dns.Client{Net: network, Timeout: queryTimeout, Dialer: &net.Dialer{Timeout: queryTimeout}}
	for range queryAttempts {
		m, err = exchange(ctx, &client, server, query)
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil && err != nil {
		return nil, context.Cause(ctx)
	}
	return m, err
}

// exchange does it once. The connection is closed when ctx ends, for the
// library watches only its deadline.
func exchange(ctx context.Context, client *dns.Client, server string, query *dns.Msg) (*dns.Msg, error) {
	conn, err := client.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	m, _, err := client.ExchangeWithConnContext(ctx, query, conn)
	if err != nil {
		return nil, err
	}
	if !m.Response || len(m.Question) > 1 || len(m.Question) == 1 && !sameQuestion(m.Question[0], query.Question[0]) {
		return nil, fmt.Errorf("the response is to another question")
	}
	return m, nil
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

func newResponse(m *dns.Msg, rrtype uint16) Response {
	r := Response{Rcode: rcodeName(m.Rcode), Authoritative: m.Authoritative}
	ttl := ^uint32(0)
	for _, rr := range m.Answer {
		r.Records = append(r.Records, rr.String())
		ttl = min(ttl, rr.Header().Ttl)
		if rr.Header().Rrtype == rrtype {
			r.Answers = append(r.Answers, data(rr))
		}
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok && len(m.Answer) == 0 {
			ttl = min(soa.Hdr.Ttl, soa.Minttl)
		}
	}
	if ttl != ^uint32(0) {
		r.TTL = time.Duration(ttl) * time.Second
	}
	r.Error = extendedError(m)
	return r
}

// rcodeName names a response code. 16 is BADVERS, but for TSIG (RFC 6895 section 2.3).
func rcodeName(rcode int) string {
	if rcode == dns.RcodeBadVers {
		return "BADVERS"
	}
	if name, ok := dns.RcodeToString[rcode]; ok {
		return name
	}
	return "RCODE" + strconv.Itoa(rcode)
}

// data returns a record's data as Response describes it.
func data(rr dns.RR) string {
	txt, ok := rr.(*dns.TXT)
	if !ok {
		return strings.TrimPrefix(rr.String(), rr.Header().String())
	}
	return unescape(strings.Join(txt.Txt, ""))
}

// unescape undoes the library's escapes, RFC 1035 section 5.1.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		if i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 10, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		i++
		b.WriteByte(s[i])
	}
	return b.String()
}

func extendedError(m *dns.Msg) string {
	opt := m.IsEdns0()
	if opt == nil {
		return ""
	}
	for _, option := range opt.Option {
		if ede, ok := option.(*dns.EDNS0_EDE); ok {
			name := dns.ExtendedErrorCodeToString[ede.InfoCode]
			if name == "" {
				name = "code " + strconv.Itoa(int(ede.InfoCode))
			}
			return strings.TrimSuffix(name+": "+ede.ExtraText, ": ")
		}
	}
	return ""
}
