package config

import (
	"crypto/tls"
	"encoding/pem"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

// check tells the impossible values and combinations of keys that were themselves well-formed.
func (c *Config) check(malformed Faults) Faults {
	var f Faults
	c.checkDomains(&f)
	c.checkAttestation(&f)
	c.checkTunnel(&f)
	c.checkFiles(&f)
	c.checkCerts(&f)
	c.checkEnroll(&f)
	c.checkRest(&f)
	c.checkListeners(&f)
	c.checkZones(&f)
	c.checkDNSSEC(&f)
	c.checkTransfer(&f)
	return f.beside(malformed)
}

// beside leaves out the faults of keys that have one already: one fault a key is enough.
func (f Faults) beside(told Faults) Faults {
	return slices.DeleteFunc(f, func(fault Fault) bool {
		return slices.ContainsFunc(told, func(m Fault) bool { return m.Key == fault.Key })
	})
}

func (c *Config) checkDomains(f *Faults) {
	if len(c.BaseDomains) == 0 {
		f.add("base_domains", `names no domain; set it, as base_domains = ["dstack.example.com"]`)
	}
	for i, base := range c.BaseDomains {
		switch {
		case !isDomain(base):
			f.add("base_domains", "%q is not a domain: lower-case labels of letters, digits and hyphens, at least two, no dot at the end", base)
		case slices.Contains(c.BaseDomains[:i], base):
			f.add("base_domains", "%q stands there twice", base)
		}
	}
	switch {
	case !isLabel(c.DNS.NameServer):
		f.add("dns.name_server", "%q is not one DNS label, as ns1", c.DNS.NameServer)
	case strings.HasPrefix(c.DNS.NameServer, "gateway"):
		f.add("dns.name_server", "%q is a name of the gateway itself; take another, as ns1", c.DNS.NameServer)
	}
}

// isDomain accepts what a zone's name may be here (RFC 1035 section 2.3.1), short enough that a 63-octet app label fits.
func isDomain(s string) bool {
	labels := strings.Split(s, ".")
	return len(labels) >= 2 && len(s) <= 253-64 && !slices.ContainsFunc(labels, func(l string) bool { return !isLabel(l) })
}

func isLabel(s string) bool {
	ok := len(s) > 0 && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
	return ok && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// tcbStatuses are the statuses of Intel's TCB info (PCS API v4, "tcbStatus").
var tcbStatuses = []string{"UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"}

func (c *Config) checkAttestation(f *Faults) {
	a := c.Attestation
	oneOf(f, "attestation.kind", a.Kind, "tdx", "simulated-tdx")
	webURL(f, "attestation.pccs", a.PCCS)
	checkTCB(f, "attestation.accepted_tcb", a.AcceptedTCB)
	a.Apps.check(f, "attestation.apps")
	if a.Validity <= 0 {
		f.add("attestation.validity", `must be longer than nothing, as "5m"`)
	}
	if a.NonceInterval <= 0 || a.NonceBurst < 1 {
		f.add("attestation.nonce_interval", `must be longer than nothing, with nonce_burst at least 1`)
	}
}

func (c *Config) checkTunnel(f *Faults) {
	t := c.Tunnel
	oneOf(f, "tunnel.device", t.Device, "auto", "kernel", "tun", "netstack")
	if !t.Address.IsValid() || !t.Address.Addr().Is4() {
		f.add("tunnel.address", "must be an IPv4 address with the length of its network, as 10.0.0.1/16")
		return
	}
	if t.Address.Addr() == t.Address.Masked().Addr() && t.Address.Bits() < 31 {
		f.add("tunnel.address", "%s is the address of the network itself; take the next one, %s", t.Address, netip.PrefixFrom(t.Address.Addr().Next(), t.Address.Bits()))
	}
	if len(t.Name) > 15 || t.Name == "" || strings.ContainsAny(t.Name, "/ \t\n") {
		f.add("tunnel.name", "%q can't be the name of a network interface: 1 to 15 characters without slash and white space", t.Name)
	}
	if t.Clients.IsValid() && slices.ContainsFunc(append(slices.Clone(t.Reserved), netip.PrefixFrom(t.Address.Addr(), 32)), func(r netip.Prefix) bool {
		return r.Contains(t.Clients.Addr()) && r.Bits() <= t.Clients.Bits()
	}) {
		f.add("tunnel.clients", "%s is wholly reserved, so that no CVM could get an address", t.Clients)
	}
	if !t.Clients.IsValid() || !t.Address.Masked().Contains(t.Clients.Addr()) || t.Clients.Bits() < t.Address.Bits() {
		f.add("tunnel.clients", "%s must lie inside the tunnel network %s", t.Clients, t.Address.Masked())
	}
	if a := t.Address6; a != (netip.Prefix{}) {
		if !a.Addr().Is6() || !a.Addr().IsPrivate() || a.Bits() > 96 {
			f.add("tunnel.address6", "%s is not an IPv6 ULA (RFC 4193) in a network of at most 96 bits, as fd12:3456:789a::1/64", a)
		} else if low := a.Addr().As16(); t.Clients.Contains(netip.AddrFrom4([4]byte(low[12:]))) {
			f.add("tunnel.address6", "%s ends like the address of a client in %s; take ::1", a, t.Clients)
		}
	}
	for _, r := range t.Reserved {
		if !r.Overlaps(t.Clients) {
			f.add("tunnel.reserved", "%s is no part of tunnel.clients %s", r, t.Clients)
		}
	}
	if t.MTU < 1280 || t.MTU > 9000 {
		f.add("tunnel.mtu", "%d is not between 1280 (the least of IPv6, RFC 8200 section 5) and 9000", t.MTU)
	}
	if t.HandshakeInterval <= 0 || t.HandshakeStale <= t.HandshakeInterval {
		f.add("tunnel.handshake_stale", "must be longer than handshake_interval, and that longer than nothing")
	}
	c.checkEndpoint(f)
}

// checkEndpoint demands what dstack guests can parse: they split the endpoint at its first colon.
func (c *Config) checkEndpoint(f *Faults) {
	if listen := c.Tunnel.Listen.Addr(); c.Tunnel.Endpoint == "" && listen.Is4() && !listen.IsUnspecified() {
		return // the gateway tells CVMs its listen address
	}
	host, port, err := net.SplitHostPort(c.Tunnel.Endpoint)
	if err != nil {
		f.add("tunnel.endpoint", `%q is not address:port; set what CVMs reach this node by, as "203.0.113.5:51820"`, c.Tunnel.Endpoint)
		return
	}
	if addr, err := netip.ParseAddr(host); err == nil && !addr.Is4() || err != nil && !isDomain(strings.ToLower(host)) {
		f.add("tunnel.endpoint", "%q must be an IPv4 address or a DNS name: dstack guests can't read IPv6 there", host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		f.add("tunnel.endpoint", "port %q is not between 1 and 65535", port)
	}
}

func (c *Config) checkFiles(f *Faults) {
	pair(f, "enroll", c.Enroll.CertFile, c.Enroll.KeyFile)
	pair(f, "store", c.Store.CertFile, c.Store.KeyFile)
	for _, named := range []struct{ key, file string }{
		{"enroll.cert_file", c.Enroll.CertFile}, {"enroll.key_file", c.Enroll.KeyFile}, {"enroll.kms_root", c.Enroll.KMSRoot},
		{"store.ca_file", c.Store.CAFile}, {"store.cert_file", c.Store.CertFile}, {"store.key_file", c.Store.KeyFile},
		{"store.password_file", c.Store.PasswordFile}, {"certs.ca_file", c.Certs.CAFile},
	} {
		if named.file == "" {
			continue
		}
		if text, err := os.ReadFile(named.file); err != nil {
			f.add(named.key, "%v", err)
		} else if block, _ := pem.Decode(text); block == nil && named.key != "store.password_file" {
			f.add(named.key, "%s holds nothing in PEM", named.file)
		}
	}
	keyPair(f, "enroll", c.Enroll.CertFile, c.Enroll.KeyFile)
	keyPair(f, "store", c.Store.CertFile, c.Store.KeyFile)
	if info, err := os.Stat(c.DataDir); c.DataDir == "" {
		f.add("data_dir", "names no folder")
	} else if err == nil && !info.IsDir() {
		f.add("data_dir", "%s is no folder", c.DataDir)
	}
}

func pair(f *Faults, table, cert, key string) {
	if (cert == "") != (key == "") {
		f.add(table+".cert_file", "cert_file and key_file go together; set both or neither")
	}
}

// keyPair demands that a key that can be read is that of its certificate.
func keyPair(f *Faults, table, cert, key string) {
	for _, file := range []string{cert, key} {
		text, err := os.ReadFile(file)
		if block, _ := pem.Decode(text); err != nil || block == nil {
			return // told already, or not set
		}
	}
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		f.add(table+".key_file", "does not go with cert_file: %v", err)
	}
}

// checkListeners tells which listeners are in each other's way.
func (c *Config) checkListeners(f *Faults) {
	type listener struct {
		key  string
		addr netip.AddrPort
	}
	all := []listener{{"proxy.listen", c.Proxy.Listen}, {"enroll.listen", c.Enroll.Listen}}
	for _, group := range []struct {
		key   string
		addrs []netip.AddrPort
	}{{"dns.listen", c.DNS.Listen}, {"dns.listen_tls", c.DNS.ListenTLS}, {"metrics.listen", c.Metrics.Listen}} {
		for _, addr := range group.addrs {
			all = append(all, listener{group.key, addr})
		}
	}
	for i, l := range all {
		for _, other := range all[:i] {
			if l.addr.Port() != 0 && l.addr.Port() == other.addr.Port() && (l.addr.Addr() == other.addr.Addr() || l.addr.Addr().IsUnspecified() || other.addr.Addr().IsUnspecified()) {
				f.add(l.key, "%s has the TCP port of %s (%s); choose another", l.addr, other.key, other.addr)
			}
		}
	}
	if slices.ContainsFunc(c.DNS.Listen, func(a netip.AddrPort) bool {
		l := c.Tunnel.Listen
		return l.Port() != 0 && a.Port() == l.Port() && (a.Addr() == l.Addr() || a.Addr().IsUnspecified() || l.Addr().IsUnspecified())
	}) {
		f.add("tunnel.listen", "%s has the UDP port of dns.listen; choose another", c.Tunnel.Listen)
	}
}

func (c *Config) checkCerts(f *Faults) {
	oneOf(f, "certs.issuer", c.Certs.Issuer, "acme", "internal")
	if c.Certs.Issuer == "acme" {
		webURL(f, "certs.directory", c.Certs.Directory)
		if !isDomain(c.Certs.CAAIdentity) {
			f.add("certs.caa_identity", "%q is not a domain, as letsencrypt.org", c.Certs.CAAIdentity)
		}
		if len(c.DNS.Addresses) == 0 {
			f.add("dns.addresses", "is empty, so the ACME server could not find this DNS server; set this node's public addresses")
		}
	}
}

func (c *Config) checkEnroll(f *Faults) {
	e := c.Enroll
	oneOf(f, "enroll.evidence", e.Evidence, "required", "preferred", "off")
	if e.AuthURL != "" {
		webURL(f, "enroll.auth_url", e.AuthURL)
	}
	for _, name := range e.Names {
		if _, err := netip.ParseAddr(name); err != nil && !isDomain(strings.ToLower(name)) && name != "localhost" {
			f.add("enroll.names", "%q is neither a DNS name nor an IP address", name)
		}
	}
	if e.SourceBurst < 1 || e.InstanceBurst < 1 {
		f.add("enroll.source_burst", "source_burst and instance_burst must be at least 1")
	}
	if e.ReviewInterval <= 0 {
		f.add("enroll.review_interval", `must be longer than nothing, as "10m"`)
	}
	if e.Stale <= c.Tunnel.HandshakeStale {
		f.add("enroll.stale", "must be longer than tunnel.handshake_stale")
	}
}

func (c *Config) checkRest(f *Faults) {
	oneOf(f, "log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf(f, "log.format", c.Log.Format, "text", "json")
	if len(c.DNS.Listen) == 0 {
		f.add("dns.listen", `is empty; set at least [":53"]`)
	}
	if c.DNS.QueryLogSample < 1 {
		f.add("dns.query_log_sample", "must be at least 1, by which every query is logged")
	}
	if c.DNS.DnstapSample < 1 {
		f.add("dns.dnstap_sample", "must be at least 1, by which every query is sent")
	}
	if d := c.DNS.Dnstap; d != "" && !strings.HasPrefix(d, "unix:/") && !strings.HasPrefix(d, "tcp:") {
		f.add("dns.dnstap", "%q is neither unix:/path nor tcp:host:port", d)
	}
	if c.DNS.RateLimitSlip < 1 {
		f.add("dns.rate_limit_slip", "must be at least 1, by which every answer beyond the limit is sent without data")
	}
	if c.Proxy.PublicPort > 65535 {
		f.add("proxy.public_port", "%d is not a port", c.Proxy.PublicPort)
	}
	if !strings.HasPrefix(c.Store.Prefix, "/") || !strings.HasSuffix(c.Store.Prefix, "/") {
		f.add("store.prefix", `%q must begin and end with a slash, as "/dstack-gateway/"`, c.Store.Prefix)
	}
	for _, endpoint := range c.Store.Endpoints {
		webURL(f, "store.endpoints", endpoint)
	}
	if len(c.Store.Endpoints) == 0 && (c.Store.Username != "" || c.Store.CAFile != "" || c.Store.CertFile != "") {
		f.add("store.endpoints", "is empty, so the embedded etcd is used, which takes no user and no certificates; set endpoints or remove those keys")
	}
	if (c.Store.Username == "") != (c.Store.PasswordFile == "") {
		f.add("store.username", "username and password_file go together; set both or neither")
	}
}

func oneOf(f *Faults, key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		f.add(key, "%q is none of %s", value, strings.Join(allowed, ", "))
	}
}

func webURL(f *Faults, key, value string) {
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		f.add(key, `%q is not a URL, as "https://host:port/path"`, value)
	}
}
