// Package verify is the relying party's side: it connects to a name behind a gateway, asks for the attestation document on
// that very connection, and walks the chain from the roots of trust to the instances. Everything that it saw is a [Bundle],
// which can be judged again later, offline, by the same code.
package verify

import (
	"context"
	"crypto/x509"
	"strings"
	"time"

	"dstack.host/ratls"
)

// Checks beside those of [ratls.Chain]: they are about the TLS certificate, and who else could have one. They have the hop
// [ratls.HopCertificate].
const (
	// CheckCertificate: the name's certificate is valid, as a browser sees it.
	CheckCertificate = "tls-certificate"
	// CheckSCT: the certificate was promised to be published in logs (RFC 6962), so that its owner could notice it.
	CheckSCT = "sct"
	// CheckCAA: DNS forbids certificates from anybody but the account that the statement names (RFC 8659, RFC 8657).
	CheckCAA = "caa"
	// CheckDNSSEC: that answer of DNS is signed.
	CheckDNSSEC = "dnssec"
	// CheckHistory: the certificate's key, and every other that the gateway says it had, was quoted by the gateway's program.
	CheckHistory = "key-history"
)

// Options say what is accepted. The zero value accepts the system's certificate authorities and Intel's root.
type Options struct {
	// CAs are accepted for the TLS certificate; nil is the system's.
	CAs *x509.CertPool
	// Chain is what is accepted as evidence. A nil Now judges by the time at which the evidence was collected.
	Chain ratls.Chain
	// FreshApp asks the instances, not only the gateway, to quote the challenge.
	FreshApp bool
	// Resolvers are asked for the zone's records, each "address:port", in this order; none is what the system is configured with.
	Resolvers []string
	// SkipDNS asks no resolver. Otherwise it is a failure when none can be reached, but for names below localhost.
	SkipDNS bool
	// Nonce is what the gateway is to quote, 32 bytes; nil is a random one. Exporter says whether the answer has to be bound to
	// the connection.
	Nonce    []byte
	Exporter Exporter
	// DNSSEC demands that the CAA records are signed from the root down. Anchors are DS records of the root zone; nil is IANA's.
	DNSSEC  bool
	Anchors []string
	// Collateral is asked for what a quote of the key history needs and the document does not have; nil is Intel's service.
	Collateral ratls.Getter
}

// Exporter says what becomes of an answer that is not bound to the connection that it came on.
type Exporter string

const (
	// ExporterRequire fails it, and is the zero value too: whoever has the certificate's key, and not the gateway's memory, can
	// relay everything but the binding.
	ExporterRequire Exporter = "require"
	// ExporterAuto takes it where the gateway or TLS 1.2 refuse to bind.
	ExporterAuto Exporter = "auto"
	// ExporterOff does not ask for the binding.
	ExporterOff Exporter = "off"
)

// Result is the outcome of one verification.
type Result struct {
	URL string `json:"url"`
	// Verdict is "pass" when no check failed.
	Verdict ratls.Status `json:"verdict"`
	// Time is when everything was judged to be; Replayed says that the evidence is of a bundle and was collected at Collected.
	Time      time.Time `json:"time"`
	Replayed  bool      `json:"replayed"`
	Collected time.Time `json:"collected"`
	ratls.Report
	// Bundle is everything that was seen.
	Bundle *Bundle `json:"-"`
}

// OK reports whether no check failed.
func (r *Result) OK() bool { return r.Verdict == ratls.Pass }

// URL verifies what is behind a URL. An error means that it could not be tried; that something is wrong with what was
// seen is told by the result.
func URL(ctx context.Context, raw string, o Options) (*Result, error) {
	b, err := collect(ctx, raw, o)
	if err != nil {
		return nil, err
	}
	m := &memory{bundle: b, resolvers: o.Resolvers, live: o.Collateral, away: map[string]error{}}
	if m.live == nil {
		m.live = ratls.NewCache(ratls.CacheConfig{})
	}
	if len(m.resolvers) == 0 && !localhost(b.URL) {
		m.resolvers = systemResolvers()
	}
	b.Resolvers = m.resolvers
	return b.judge(ctx, o, m)
}

// Verify judges a bundle once more, from nothing but itself and the options: no network is used. Who made the bundle vouches
// for what only the one who connects can see: the time, that the nonce was fresh, whose connection it was, and what DNS said.
func (b *Bundle) Verify(ctx context.Context, o Options) (*Result, error) {
	r, err := b.judge(ctx, o, &memory{bundle: b})
	if err == nil {
		r.Replayed = true
	}
	return r, err
}

// maxPrinted bounds a stranger's text on a terminal, in bytes.
const maxPrinted = 2000

// printable makes a stranger's text safe for a terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxPrinted {
		s = strings.ToValidUTF8(s[:maxPrinted], "") + "…"
	}
	return s
}
