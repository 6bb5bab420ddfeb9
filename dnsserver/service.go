package dnsserver

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/miekg/dns"
)

// httpsPort is the port that https URLs mean when they name none.
const httpsPort = 443

// maxECH is the largest ECHConfigList that is published: with it an answer
// still fits one packet.
const maxECH = 512

// service adds the HTTPS and TLSA records.
func (b *builder) service() {
	s := b.config.Service
	if s == nil {
		return
	}
	if err := s.check(); err != nil {
		b.fault("Service", err)
		return
	}
	b.httpsAt(b.zone.origin)
	b.tlsaAt(b.zone.origin, s.OriginKeys)
	for _, name := range b.config.Names {
		if fqdn, err := ownerName(name, b.zone.origin); err == nil { // else it was told
			b.httpsAt(fqdn)
			b.tlsaAt(fqdn, s.Keys)
		}
	}
	b.serviceOfHosts()
}

func (s *Service) check() error {
	var faults []error
	for _, protocol := range s.ALPN {
		if len(protocol) == 0 || len(protocol) > 255 {
			faults = append(faults, fmt.Errorf("ALPN %.20q: must have 1 to 255 octets", protocol))
		}
	}
	if len(s.ECH) > maxECH {
		faults = append(faults, fmt.Errorf("ECH: %d octets are too long: at most %d", len(s.ECH), maxECH))
	}
	return errors.Join(faults...)
}

func (s *Service) port() uint16 {
	if s.Port == 0 {
		return httpsPort
	}
	return s.Port
}

// httpsAt adds the records of one name and those who ask with the port.
func (b *builder) httpsAt(fqdn string) {
	s := b.config.Service
	if len(s.ALPN) == 0 {
		return
	}
	b.add(b.https(fqdn, "."))
	if s.port() != httpsPort {
		b.add(b.https(fmt.Sprintf("_%d._https.%s", s.port(), fqdn), fqdn))
	}
}

// https makes an HTTPS record in ServiceMode (RFC 9460): AliasMode has no place
// here, for every name has its own addresses.
func (b *builder) https(owner, target string) *dns.HTTPS {
	s := b.config.Service
	rr := &dns.HTTPS{SVCB: dns.SVCB{Hdr: b.header(owner, dns.TypeHTTPS, b.ttl), Priority: 1, Target: target}}
	rr.Value = append(rr.Value, &dns.SVCBAlpn{Alpn: slices.Clone(s.ALPN)})
	if s.port() != httpsPort {
		rr.Value = append(rr.Value, &dns.SVCBPort{Port: s.port()})
	}
	var v4, v6 []net.IP
	for _, addr := range b.config.Addrs {
		if addr = addr.Unmap(); addr.Is4() {
			v4 = append(v4, addr.AsSlice())
		} else {
			v6 = append(v6, addr.AsSlice())
		}
	}
	if len(v4) > 0 {
		rr.Value = append(rr.Value, &dns.SVCBIPv4Hint{Hint: v4})
	}
	if len(s.ECH) > 0 {
		rr.Value = append(rr.Value, &dns.SVCBECHConfig{ECH: slices.Clone(s.ECH)})
	}
	if len(v6) > 0 {
		rr.Value = append(rr.Value, &dns.SVCBIPv6Hint{Hint: v6})
	}
	return rr
}

// tlsaAt adds the keys of one name.
func (b *builder) tlsaAt(fqdn string, keys [][32]byte) {
	for _, rr := range b.tlsa(fmt.Sprintf("_%d._tcp.%s", b.config.Service.port(), fqdn), keys) {
		b.add(rr)
	}
}

// tlsa makes records that name keys and leave everything else of a certificate
// aside: DANE-EE, SubjectPublicKeyInfo, SHA-256 (RFC 7671 section 5.1).
func (b *builder) tlsa(owner string, keys [][32]byte) (rrs []dns.RR) {
	for _, key := range keys {
		rrs = append(rrs, &dns.TLSA{
			Hdr: b.header(owner, dns.TypeTLSA, b.ttl), Usage: 3, Selector: 1, MatchingType: 1,
			Certificate: hex.EncodeToString(key[:]),
		})
	}
	return rrs
}

// serviceOfHosts makes what every host's name has, and what is below it. The
// owners are set for each answer, and so is the target of the record for a port.
func (b *builder) serviceOfHosts() {
	s, z := b.config.Service, b.zone
	if len(s.ALPN) > 0 {
		z.host.sets = append(z.host.sets, rrset{dns.TypeHTTPS, []dns.RR{b.https(z.origin, ".")}})
		if s.port() != httpsPort {
			b.belowHost(fmt.Sprintf("_%d", s.port()), "_https", []dns.RR{b.https(z.origin, z.origin)})
		}
	}
	if len(s.Keys) > 0 {
		b.belowHost(fmt.Sprintf("_%d", s.port()), "_tcp", b.tlsa(z.origin, s.Keys))
	}
}

// belowHost puts a set two labels below every host's name, and an empty
// non-terminal in between.
func (b *builder) belowHost(label, parent string, rrs []dns.RR) {
	p := string(rune(len(parent))) + parent
	b.zone.below[p] = &node{}
	b.zone.below[string(rune(len(label)))+label+p] = &node{sets: []rrset{{rrs[0].Header().Rrtype, rrs}}}
}

// serviceBelow returns what there is at a name below a host's, or nil.
func (z *Zone) serviceBelow(below []byte, label string) *node {
	n := z.below[string(below)]
	rrs := n.set(dns.TypeHTTPS)
	if rrs == nil {
		return n
	}
	rr := *rrs[0].(*dns.HTTPS)
	rr.Target = label + "." + z.origin
	return &node{sets: []rrset{{dns.TypeHTTPS, []dns.RR{&rr}}}}
}
