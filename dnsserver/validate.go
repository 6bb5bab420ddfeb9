package dnsserver

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// RootAnchors are the key signing keys of the root zone, as IANA publishes
// them: those of 2017 and 2024 (https://data.iana.org/root-anchors/root-anchors.xml).
func RootAnchors() []string {
	return []string{
		". IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D",
		". IN DS 38696 8 2 683D2D0ACB8C9B712A1948B27F741219298D0A450D612C483AF444A4C0FB2B16",
	}
}

// Bounds of a validation: a stranger's zone must not make it expensive
// (CVE-2023-50387). A well-run zone has a handful of each.
const (
	maxZoneKeys   = 16 // DNSKEYs of one zone
	maxSignatures = 8  // signatures over one RRset
	maxCuts       = 16 // labels of a name
)

// Validate holds the RRset of a name and type to the DNSSEC chain (RFC 4035
// section 5), from trust anchors, DS records of the root zone in presentation
// form, down to the zone that signed it, which it returns. ask returns the
// response to a question as [Resolve] does; it is asked for DS and DNSKEY
// records of every name on the way.
//
// Only an RRset that is there can be validated, at the name itself: an absent
// one, an alias, a wildcard's expansion, and an answer of an unsigned zone
// are errors. Nothing is taken from ask on trust.
func Validate(ask func(name, qtype string) ([]byte, error), name, qtype string, anchors []string, at time.Time) (zone string, err error) {
	v := validator{ask: ask, at: at}
	trusted, err := parseAnchors(anchors)
	if err != nil {
		return "", err
	}
	name = dns.CanonicalName(name)
	labels := dns.SplitDomainName(name)
	if len(labels) > maxCuts {
		return "", fmt.Errorf("%s has %d labels, at most %d are walked", name, len(labels), maxCuts)
	}
	zone = "."
	keys, err := v.keys(zone, trusted)
	if err != nil {
		return "", err
	}
	for i := len(labels) - 1; i >= 0; i-- {
		child := dns.Fqdn(strings.Join(labels[i:], "."))
		delegation, err := v.delegation(zone, child, keys)
		if err != nil {
			return "", err
		}
		if len(delegation) == 0 {
			continue // no zone begins here, or an unsigned one: then what it says is not signed by zone
		}
		if keys, err = v.keys(child, delegation); err != nil {
			return "", err
		}
		zone = child
	}
	if _, err := v.rrset(zone, name, qtype, keys); err != nil {
		return "", err
	}
	return zone, nil
}

// validator is one validation under way.
type validator struct {
	ask func(name, qtype string) ([]byte, error)
	at  time.Time
}

func parseAnchors(texts []string) ([]*dns.DS, error) {
	var anchors []*dns.DS
	for _, text := range texts {
		rr, err := dns.NewRR(text)
		if err != nil {
			return nil, fmt.Errorf("trust anchor: %w", err)
		}
		ds, ok := rr.(*dns.DS)
		if !ok || ds.Hdr.Name != "." {
			return nil, fmt.Errorf("trust anchor %q is no DS record of the root zone", text)
		}
		anchors = append(anchors, ds)
	}
	if len(anchors) == 0 {
		return nil, errors.New("no trust anchor")
	}
	return anchors, nil
}

// delegation returns the DS records of a child that its parent signed; none
// where the parent has none.
func (v validator) delegation(parent, child string, keys []*dns.DNSKEY) ([]*dns.DS, error) {
	records, signatures, err := v.fetch(child, "DS")
	if err != nil || len(records) == 0 {
		return nil, err
	}
	if err := v.signed(parent, records, signatures, keys); err != nil {
		return nil, fmt.Errorf("DS of %s: %w", child, err)
	}
	var delegation []*dns.DS
	for _, rr := range records {
		if ds, ok := rr.(*dns.DS); ok {
			delegation = append(delegation, ds)
		}
	}
	return delegation, nil
}

// keys returns the DNSKEYs of a zone, signed by one that its delegation names
// (RFC 4035 section 5.2).
func (v validator) keys(zone string, delegation []*dns.DS) ([]*dns.DNSKEY, error) {
	records, signatures, err := v.fetch(zone, "DNSKEY")
	if err != nil {
		return nil, err
	}
	if len(records) == 0 || len(records) > maxZoneKeys {
		return nil, fmt.Errorf("%s has %d DNSKEY records, want 1 to %d", zone, len(records), maxZoneKeys)
	}
	var all, entry []*dns.DNSKEY
	for _, rr := range records {
		key, ok := rr.(*dns.DNSKEY)
		if !ok || key.Flags&dns.REVOKE != 0 { // RFC 5011 section 2.1
			continue
		}
		all = append(all, key)
		if slices.ContainsFunc(delegation, func(ds *dns.DS) bool { return names(ds, key) }) {
			entry = append(entry, key)
		}
	}
	if len(entry) == 0 {
		return nil, fmt.Errorf("no DNSKEY of %s is the one that the zone above names", zone)
	}
	if err := v.signed(zone, records, signatures, entry); err != nil {
		return nil, fmt.Errorf("DNSKEY of %s: %w", zone, err)
	}
	return all, nil
}

// names reports whether a DS record is of a key. SHA-1 is not taken (RFC 8624 section 3.3).
func names(ds *dns.DS, key *dns.DNSKEY) bool {
	if ds.DigestType != dns.SHA256 && ds.DigestType != dns.SHA384 || ds.KeyTag != key.KeyTag() || ds.Algorithm != key.Algorithm {
		return false
	}
	made := key.ToDS(ds.DigestType)
	return made != nil && made.Digest != "" && strings.EqualFold(made.Digest, ds.Digest)
}

// rrset returns an RRset that must be there and be signed.
func (v validator) rrset(zone, name, qtype string, keys []*dns.DNSKEY) ([]dns.RR, error) {
	records, signatures, err := v.fetch(name, qtype)
	if err != nil {
		return nil, err
	}
	if len(records) == 0 {
		return nil, fmt.Errorf("there is no %s at %s", qtype, name)
	}
	if err := v.signed(zone, records, signatures, keys); err != nil {
		return nil, fmt.Errorf("%s of %s: %w", qtype, name, err)
	}
	return records, nil
}

// fetch asks for an RRset and returns it with the signatures over it.
func (v validator) fetch(name, qtype string) (records []dns.RR, signatures []*dns.RRSIG, err error) {
	message, err := v.ask(strings.TrimSuffix(name, "."), qtype)
	if err != nil {
		return nil, nil, err
	}
	m, err := response(message, name, qtype)
	if err != nil {
		return nil, nil, err
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return nil, nil, fmt.Errorf("the answer to %s %s is %s", name, qtype, rcodeName(m.Rcode))
	}
	for _, rr := range m.Answer {
		if dns.CanonicalName(rr.Header().Name) != name || rr.Header().Class != dns.ClassINET {
			continue
		}
		switch signature, ok := rr.(*dns.RRSIG); {
		case ok && signature.TypeCovered == m.Question[0].Qtype:
			signatures = append(signatures, signature)
		case rr.Header().Rrtype == m.Question[0].Qtype:
			records = append(records, rr)
		}
	}
	if len(signatures) > maxSignatures {
		return nil, nil, fmt.Errorf("%d signatures over %s %s, at most %d are tried", len(signatures), name, qtype, maxSignatures)
	}
	return records, signatures, nil
}

// signed reports why none of the signatures makes records an RRset that zone
// says under one of the keys now.
func (v validator) signed(zone string, records []dns.RR, signatures []*dns.RRSIG, keys []*dns.DNSKEY) error {
	owner := records[0].Header().Name
	if !dns.IsSubDomain(zone, owner) {
		return fmt.Errorf("%s is not below %s", owner, zone)
	}
	reason := fmt.Errorf("it is not signed by %s", zone)
	for _, s := range signatures {
		switch {
		case dns.CanonicalName(s.SignerName) != zone:
			continue
		case !s.ValidityPeriod(v.at):
			reason = fmt.Errorf("the signature of %s is of another time than %s", zone, v.at.UTC().Format(time.RFC3339))
			continue
		case int(s.Labels) != dns.CountLabel(owner):
			reason = errors.New("the signature is that of a wildcard, and that the name itself does not exist is not shown")
			continue
		}
		for _, key := range keys {
			if key.KeyTag() != s.KeyTag {
				continue
			}
			err := s.Verify(key, records)
			if err == nil {
				return nil
			}
			reason = fmt.Errorf("the signature of %s does not hold: %w", zone, err)
		}
	}
	return reason
}
