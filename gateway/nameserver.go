package gateway

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"dstack.host/dnsserver"
	"dstack.host/gateway/store"
)

func (g *Gateway) openDNS(ctx context.Context, metrics prometheus.Registerer) error {
	if err := g.openSigning(ctx); err != nil {
		return err
	}
	if err := g.openZones(); err != nil {
		return err
	}
	key, err := g.cookieKey(ctx)
	if err != nil {
		return fmt.Errorf("key of DNS cookies: %w", err)
	}
	c := g.config.DNS
	queries, err := g.openQueryLog()
	if err != nil {
		return fmt.Errorf("dns.query_log: %w", err)
	}
	transferKey, err := c.Transfer.Key()
	if err != nil {
		return fmt.Errorf("dns.transfer.key_file: %w", err)
	}
	g.dns, err = dnsserver.New(dnsserver.Config{
		Listen: addresses(c.Listen), ListenTLS: addresses(c.ListenTLS), TLS: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: g.dnsCertificate},
		NSID: g.config.Node, CookieKey: key, RateLimit: dnsserver.RateLimit{PerSecond: c.RateLimit, Slip: c.RateLimitSlip},
		QueryLog: queries, QueryLogSample: c.QueryLogSample, Dnstap: dnsserver.DnstapConfig{Socket: c.Dnstap, Sample: c.DnstapSample, Identity: g.config.Node},
		Transfer: dnsserver.TransferConfig{Key: transferKey, Secondaries: addresses(c.Transfer.Secondaries)},
		Metrics:  metrics, Logger: g.log,
	})
	return err
}

// openQueryLog opens the file that is told of queries; nil without.
func (g *Gateway) openQueryLog() (log *slog.Logger, err error) {
	if g.config.DNS.QueryLog == "" {
		return nil, nil
	}
	g.queries, err = os.OpenFile(g.config.DNS.QueryLog, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return slog.New(slog.NewJSONHandler(g.queries, nil)), nil
}

func addresses(addrs []netip.AddrPort) (out []string) {
	for _, addr := range addrs {
		out = append(out, addr.String())
	}
	return out
}

// cookieKeyPath holds what the secrets of DNS cookies are made from, the same for all nodes, so that resolvers may move between them.
const cookieKeyPath = "dns/cookie-key"

// cookieKey is made once by whichever node comes first.
func (g *Gateway) cookieKey(ctx context.Context) ([]byte, error) {
	const size = 32
	for {
		entry, err := g.store.Get(ctx, cookieKeyPath)
		switch {
		case err == nil && len(entry.Value) == size:
			return entry.Value, nil
		case err == nil:
			return nil, fmt.Errorf("%s holds %d bytes, no key", cookieKeyPath, len(entry.Value))
		case !errors.Is(err, store.ErrNotFound):
			return nil, err
		}
		key := make([]byte, size)
		_, _ = rand.Read(key) // never fails
		_, err = g.store.Commit(ctx, []store.Cond{{Path: cookieKeyPath}}, []store.Op{store.Put(cookieKeyPath, key)})
		if err != nil && !errors.Is(err, store.ErrConflict) {
			return nil, err
		}
	}
}

// dnsCertificate is the certificate for DNS over TLS. Resolvers that only know an address name no server; they get that of the first
// base domain's name server.
func (g *Gateway) dnsCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if hello.ServerName == "" {
		named := *hello
		named.ServerName = g.config.DNS.NameServer + "." + g.config.BaseDomains[0]
		hello = &named
	}
	return g.certs.GetCertificate(hello)
}

// serveOwn answers for the gateway's own names: DNS over HTTPS (RFC 8484), and for everything else the attester.
func (g *Gateway) serveOwn(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Path == dnsserver.DoHPath {
		g.dns.ServeHTTP(w, r)
		return nil
	}
	return g.attester.Serve(w, r)
}

// DNSOverTLSAddr is the first address of DNS over TLS; not valid when there is none.
func (g *Gateway) DNSOverTLSAddr() netip.AddrPort {
	for _, addr := range g.dns.AddrsTLS() {
		return addr
	}
	return netip.AddrPort{}
}
