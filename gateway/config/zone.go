package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"dstack.host/dnsserver"
)

// GatewayLabel names the gateway itself below each base domain.
const GatewayLabel = "gateway"

// Zone is what the configuration says of the zone of one base domain. What comes and goes, apps before all, the gateway
// adds. Files that can't be read, and records that can't be, are errors; [dnsserver.NewZone] holds the rest to the zone.
func (c *Config) Zone(base string) (dnsserver.ZoneConfig, error) {
	addrs := c.DNS.Addresses
	if len(addrs) == 0 { // no public ones: a gateway for this machine
		addrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	z := dnsserver.ZoneConfig{
		Origin: base,
		NS:     []dnsserver.NameServer{{Name: c.DNS.NameServer + "." + base, Addrs: addrs}},
		Addrs:  addrs,
		Names:  []string{GatewayLabel},
	}
	for _, name := range c.DNS.Secondaries {
		z.NS = append(z.NS, dnsserver.NameServer{Name: name})
	}
	var records []dnsserver.Record
	for i, r := range c.DNS.Records {
		records = append(records, dnsserver.Record{Name: r.Name, Type: r.Type, Data: r.Data, TTL: r.TTL, Source: recordKey(i)})
	}
	var faults []error
	for _, file := range c.DNS.ZoneFiles {
		more, err := readZoneFile(file, base)
		records, faults = append(records, more...), append(faults, err)
	}
	z.Records = slices.DeleteFunc(records, func(r dnsserver.Record) bool { return c.ofOther(r.Name, base) })
	return z, errors.Join(faults...)
}

func recordKey(i int) string { return fmt.Sprintf("dns.records.%d", i+1) }

func readZoneFile(file, base string) ([]dnsserver.Record, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return dnsserver.ParseZoneFile(file, text, base)
}

// ofOther tells whether a full name is another base domain's. A name of none is left for the zone to refuse.
func (c *Config) ofOther(name, base string) bool {
	if !strings.HasSuffix(name, ".") || c.baseOf(name) == "" {
		return false
	}
	return c.baseOf(name) != base
}

// baseOf is the longest base domain that a full name is in, or "".
func (c *Config) baseOf(name string) (longest string) {
	name = "." + strings.ToLower(strings.TrimSuffix(name, "."))
	for _, base := range c.BaseDomains {
		if strings.HasSuffix(name, "."+base) && len(base) > len(longest) {
			longest = base
		}
	}
	return longest
}

// checkZones tells what the DNS server would refuse, at the keys that say it.
func (c *Config) checkZones(f *Faults) {
	if !isLabel(c.DNS.NameServer) {
		return // told already
	}
	told := map[string]bool{}
	for _, base := range c.BaseDomains {
		if !isDomain(base) {
			continue
		}
		zone, err := c.Zone(base)
		if err == nil {
			_, err = dnsserver.NewZone(zone)
		}
		for _, err := range flatten(err) {
			key, text := zoneKey(err)
			if !told[key+text] { // the same of every base domain
				told[key+text] = true
				f.add(key, "%s", text)
			}
		}
	}
}

// KeyPolicy says which keys the zones have. The configuration has been checked.
func (d DNSSEC) KeyPolicy() dnsserver.Policy {
	algorithm, _ := dnsserver.ParseAlgorithm(d.Algorithm)
	return dnsserver.Policy{Algorithm: algorithm, Split: d.Split, KSKLifetime: d.KSKLifetime, ZSKLifetime: d.ZSKLifetime}
}

// minLifetime leaves time for a rollover to end before the next begins.
const minLifetime = 14 * 24 * time.Hour

func (c *Config) checkDNSSEC(f *Faults) {
	d := c.DNS.DNSSEC
	if _, err := dnsserver.ParseAlgorithm(d.Algorithm); err != nil {
		f.add("dns.dnssec.algorithm", "%v", err)
	}
	oneOf(f, "dns.dnssec.denial", d.Denial, string(dnsserver.DenialBlock), string(dnsserver.DenialCompact))
	for key, lifetime := range map[string]time.Duration{"dns.dnssec.ksk_lifetime": d.KSKLifetime, "dns.dnssec.zsk_lifetime": d.ZSKLifetime} {
		if lifetime != 0 && lifetime < minLifetime {
			f.add(key, "%v is shorter than a rollover may take; at least %v", lifetime, minLifetime)
		}
	}
	if d.SigningPercent < 1 || d.SigningPercent > 100 {
		f.add("dns.dnssec.signing_percent", "%d is not between 1 and 100", d.SigningPercent)
	}
	if d.Resolver != "" {
		if _, err := netip.ParseAddrPort(d.Resolver); err != nil {
			f.add("dns.dnssec.resolver", `%q is not address:port, as "9.9.9.9:53"`, d.Resolver)
		}
	}
	for _, base := range c.BaseDomains {
		if above := c.baseOf(base[strings.Index(base, ".")+1:]); d.Sign && above != "" {
			f.add("base_domains", "%q lies in %q, which is signed and does not delegate it; set dns.dnssec.sign = false, or serve one of them elsewhere", base, above)
		}
	}
}

// flatten takes joined errors apart.
func flatten(err error) (all []error) {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	return all
}

// zoneKey is the key that a fault of a zone comes from.
func zoneKey(err error) (key, text string) {
	fault, ok := errors.AsType[*dnsserver.Fault](err)
	if !ok {
		return "dns.zone_files", err.Error()
	}
	text = fmt.Sprintf("%s: %v", fault.Field, fault.Err)
	switch {
	case strings.HasPrefix(fault.Source, "dns.records."):
		return fault.Source, text
	case fault.Source != "":
		return "dns.zone_files", fault.Source + ": " + text
	case strings.HasPrefix(fault.Field, "Addrs"):
		return "dns.addresses", fault.Err.Error()
	case strings.HasPrefix(fault.Field, "NS"):
		return "dns.secondary_name_servers", text
	}
	return "base_domains", text
}
