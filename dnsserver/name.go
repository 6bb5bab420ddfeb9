package dnsserver

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// Limits of a domain name, RFC 1035 section 2.3.4.
const (
	maxNameOctets  = 255
	maxLabelOctets = 63
)

// acmeLabel is the first label of ACME's DNS-01 challenge names, RFC 8555 section 8.4.
const acmeLabel = "_acme-challenge"

// acmeWire is acmeLabel as it begins a name in wire form.
const acmeWire = "\x0f" + acmeLabel

// factsWire is the label below a host's name that tells of it, in wire form.
const factsWire = "\x07_dstack"

// serviceLabels are the labels below the origin at which others look for
// records that come and go. They always exist, as empty non-terminals at
// least, so that nobody remembers them as missing.
var serviceLabels = []string{acmeLabel, "_dstack-app-address", "_validation-persist"}

// wireName packs a name from presentation form, with its escapes, into buf in
// wire form with ASCII letters in lower case (RFC 4343 section 3). The result
// aliases buf and ends with the root label.
func wireName(buf *[maxNameOctets]byte, name string) ([]byte, bool) {
	end, err := dns.PackDomainName(name, buf[:], 0, nil, false)
	if err != nil || end == 0 {
		return nil, false
	}
	wire := buf[:end]
	// A length octet is at most 63, below 'A', so it is never taken for a letter.
	for i, c := range wire {
		if 'A' <= c && c <= 'Z' {
			wire[i] = c + ('a' - 'A')
		}
	}
	return wire, true
}

// relative returns the labels of wire above origin, without a root label, and
// whether wire is origin or below it. Both are in wire form and lower case.
func relative(wire []byte, origin string) ([]byte, bool) {
	for off := 0; off < len(wire); off += 1 + int(wire[off]) {
		if len(wire)-off == len(origin) {
			return wire[:off], string(wire[off:]) == origin
		}
	}
	return nil, false
}

// cutLast splits a relative name before its last label, the one next to the origin.
func cutLast(rel []byte) (before, last []byte) {
	off := 0
	for next := 1 + int(rel[off]); next < len(rel); next += 1 + int(rel[next]) {
		off = next
	}
	return rel[:off], rel[off:]
}

// hostLabel returns the one label of rel as text if rel is a single label of
// letters, digits and hyphens. Everything else can't be a host label.
func hostLabel(rel []byte) (string, bool) {
	if len(rel) < 2 || int(rel[0]) != len(rel)-1 {
		return "", false
	}
	for _, c := range rel[1:] {
		if !isAlphanumeric(c) && c != '-' {
			return "", false
		}
	}
	return string(rel[1:]), true
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
}

var (
	errNotAbsolute = errors.New("not a full domain name")
	errOutside     = errors.New("outside the zone")
)

// checkName reports what is wrong with a name from configuration, given in
// lower case with its trailing dot. Only letters, digits, hyphens and
// underscores are allowed, so presentation and wire form agree. A wildcard
// would make unregistered hosts exist, so "*" is no exception.
func checkName(fqdn string) error {
	if len(fqdn)+1 > maxNameOctets {
		return fmt.Errorf("longer than %d octets", maxNameOctets)
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(fqdn, "."), ".") {
		if err := checkLabel(label); err != nil {
			return err
		}
	}
	return nil
}

func checkLabel(label string) error {
	if label == "" {
		return errors.New("empty label")
	}
	if len(label) > maxLabelOctets {
		return fmt.Errorf("label %.16q… longer than %d octets", label, maxLabelOctets)
	}
	for i := range len(label) {
		if c := label[i]; !isAlphanumeric(c) && c != '-' && c != '_' {
			return fmt.Errorf("label %q has %q; letters, digits, '-' and '_' are possible", label, c)
		}
	}
	return nil
}

// parseOrigin returns the zone's name in lower case with a trailing dot.
func parseOrigin(s string) (string, error) {
	origin := dns.Fqdn(strings.ToLower(s))
	if s == "" || origin == "." {
		return "", errors.New("not a domain")
	}
	if err := checkName(origin); err != nil {
		return "", fmt.Errorf("not a domain: %w", err)
	}
	if strings.Contains(origin, "_") {
		return "", errors.New("not a domain: '_' is not possible in a base domain")
	}
	labels := strings.Split(strings.TrimSuffix(origin, "."), ".")
	if isDigits(labels[len(labels)-1]) {
		return "", errors.New("not a domain: it ends in a number, like an IP address")
	}
	if len(origin)+1+1+maxLabelOctets > maxNameOctets {
		return "", fmt.Errorf("too long: a host label of %d octets must fit before it", maxLabelOctets)
	}
	return origin, nil
}

func isDigits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

// absoluteName returns a name that must be given in full, with or without its
// trailing dot, in lower case with the dot.
func absoluteName(s string) (string, error) {
	if !strings.Contains(strings.TrimSuffix(s, "."), ".") {
		return "", errNotAbsolute
	}
	fqdn := dns.Fqdn(strings.ToLower(s))
	return fqdn, checkName(fqdn)
}

// ownerName resolves a name of the zone's configuration as ZoneConfig
// describes it: "" and "@" are the origin, a name with a trailing dot or
// ending in the origin is absolute, everything else is below the origin.
func ownerName(s, origin string) (string, error) {
	name := strings.ToLower(s)
	if name == "" || name == "@" {
		return origin, nil
	}
	fqdn := dns.Fqdn(name)
	inside := fqdn == origin || strings.HasSuffix(fqdn, "."+origin)
	switch {
	case inside:
	case strings.HasSuffix(name, "."):
		return "", errOutside
	default:
		fqdn = name + "." + origin
	}
	return fqdn, checkName(fqdn)
}
