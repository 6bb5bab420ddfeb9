package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"dstack.host/dnsserver"
	"dstack.host/ratls"
)

// memory answers from a bundle what has to be known beside it; when it is live, it asks the world for what is not there yet,
// and puts the answer into the bundle. So what is judged live and what is judged from the bundle is the same.
type memory struct {
	bundle *Bundle
	// live fetches collateral, and says that resolvers may be asked; nil for a replay.
	live      ratls.Getter
	resolvers []string
	stapled   []ratls.Collateral // of the document

	away map[string]error // resolvers that could not be reached; not asked again
	mu   sync.Mutex       // guards bundle.Collateral: quotes' collateral is fetched side by side
}

var (
	// errNobody: no resolver could be asked.
	errNobody = errors.New("no resolver could be reached")
	// errNotRecorded: a replay asks for what the bundle does not have.
	errNotRecorded = errors.New("the bundle does not have the answer")
)

// dnsTimeout bounds one question to one resolver.
const dnsTimeout = 8 * time.Second

// ask returns a resolver's answer to a question, and which one it was. errNobody is that of a network, errNotRecorded that of a
// bundle; that a resolver refuses to answer is an answer.
func (m *memory) ask(ctx context.Context, name, qtype string) (message []byte, resolver string, err error) {
	recorded := func(a DNSAnswer) bool { return a.Name == name && a.Type == qtype }
	i := slices.IndexFunc(m.bundle.DNS, recorded)
	if i < 0 {
		if m.live == nil {
			return nil, "", fmt.Errorf("%w to %s %s", errNotRecorded, cmp.Or(name, "."), qtype)
		}
		m.bundle.DNS = append(m.bundle.DNS, m.resolve(ctx, name, qtype))
		i = len(m.bundle.DNS) - 1
	}
	a := m.bundle.DNS[i]
	if a.Error != "" {
		return nil, a.Resolver, fmt.Errorf("%w: %s", errNobody, a.Error)
	}
	return a.Message, a.Resolver, nil
}

// resolve asks the resolvers one after the other, until one has more to say than that it failed (RFC 1035 section 7.2).
func (m *memory) resolve(ctx context.Context, name, qtype string) DNSAnswer {
	answer := DNSAnswer{Name: name, Type: qtype, Error: "none is configured"}
	for _, r := range m.resolvers {
		if m.away[r] != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
		message, err := dnsserver.Resolve(ctx, r, name, qtype)
		cancel()
		if err != nil {
			m.away[r] = err
			continue
		}
		answer = DNSAnswer{Name: name, Type: qtype, Resolver: r, Message: message}
		if said, err := dnsserver.ParseResolution(message, name, qtype); err == nil && said.Rcode != "SERVFAIL" && said.Rcode != "REFUSED" {
			return answer
		}
	}
	if answer.Message == nil && len(m.away) > 0 {
		answer.Error = m.whyAway()
	}
	return answer
}

// whyAway tells of every resolver why it could not be asked.
func (m *memory) whyAway() string {
	var reasons []string
	for _, r := range m.resolvers {
		if err := m.away[r]; err != nil {
			reasons = append(reasons, printable(err.Error()))
		}
	}
	return strings.Join(reasons, "; ")
}

// silent reports that DNS has nothing to say of the host, because nobody asks it for localhost.
func (m *memory) silent(host string) bool {
	return isLocalhost(host) && len(m.bundle.Resolvers) == 0
}

// Get implements [ratls.Getter]: from the document, from the bundle, and then from the vendor.
func (m *memory) Get(ctx context.Context, url string) (http.Header, []byte, error) {
	m.mu.Lock()
	known := slices.Concat(m.stapled, m.bundle.Collateral)
	m.mu.Unlock()
	header, body, err := ratls.Stapled(known).Get(ctx, url)
	if err == nil || m.live == nil {
		return header, body, err
	}
	if header, body, err = m.live.Get(ctx, url); err != nil {
		return nil, nil, err
	}
	c := ratls.Collateral{URL: url, Headers: map[string]string{}, Body: body}
	for name := range header {
		c.Headers[name] = header.Get(name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bundle.Collateral = append(m.bundle.Collateral, c)
	return header, body, nil
}

// resolvConf is where a Unix system says which resolvers it asks (resolv.conf(5)), at most three.
const (
	resolvConf   = "/etc/resolv.conf"
	maxResolvers = 3
)

func systemResolvers() []string {
	text, err := os.ReadFile(resolvConf)
	if err != nil {
		return nil
	}
	return nameservers(string(text))
}

// nameservers reads a resolv.conf. Lines that it does not understand are left out, as resolvers do.
func nameservers(text string) []string {
	var found []string
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" || len(found) == maxResolvers {
			continue
		}
		if addr, err := netip.ParseAddr(words[1]); err == nil {
			found = append(found, netip.AddrPortFrom(addr, 53).String())
		}
	}
	return found
}

// Resolver reads an address of a resolver, with the port of DNS unless it has one.
func Resolver(text string) (string, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(addr, 53).String(), nil
	}
	if _, err := netip.ParseAddrPort(text); err == nil {
		return text, nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil || host == "" || port == "" {
		return "", fmt.Errorf("%q is not the address of a resolver, as 192.0.2.53 or [2001:db8::53]:5353", text)
	}
	return net.JoinHostPort(host, port), nil
}
