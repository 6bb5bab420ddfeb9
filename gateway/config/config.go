package config

import (
	"fmt"
	"net/netip"
	"os"
	"time"
)

// Config is the whole configuration of a gateway. Default fills in everything but the base domains and, outside a demo,
// the public addresses. The help tags are what the reference in configs/README.md is made of.
type Config struct {
	BaseDomains []string    `toml:"base_domains" help:"domains whose one-label names are apps; each is a zone of the DNS server and has its wildcard certificate"`
	Node        string      `toml:"node" help:"name of this node in the attestation document and the logs; the host's name when empty"`
	DataDir     string      `toml:"data_dir" help:"folder for everything that has to outlive a restart; must lie on the TEE's encrypted disk"`
	Attestation Attestation `toml:"attestation" help:"the TEE that the gateway runs in, and what it asks of others"`
	Proxy       Proxy       `toml:"proxy" help:"the HTTPS front"`
	Enroll      Enroll      `toml:"enroll" help:"registration of CVMs over RA-TLS"`
	DNS         DNS         `toml:"dns" help:"the authoritative DNS server"`
	Tunnel      Tunnel      `toml:"tunnel" help:"WireGuard towards the CVMs"`
	Store       Store       `toml:"store" help:"etcd, which holds all state"`
	Certs       Certs       `toml:"certs" help:"certificates of the HTTPS front"`
	Metrics     Metrics     `toml:"metrics" help:"Prometheus series"`
	Log         Log         `toml:"log" help:"the program's own log, on standard error"`
}

// Attestation says which TEE this gateway runs in and which evidence it accepts from CVMs.
type Attestation struct {
	Kind                    string        `toml:"kind" help:"\"tdx\" (quotes from the kernel's configfs-tsm) or \"simulated-tdx\" (software, proves nothing, says so everywhere)"`
	PCCS                    string        `toml:"pccs" help:"base URL of the provisioning certificate service that collateral is fetched from"`
	EventLog                string        `toml:"event_log" help:"dstack's runtime event log, which replays to RTMR3"`
	AppCompose              string        `toml:"app_compose" help:"app-compose.json of the gateway itself, published in its evidence when it exists"`
	VMConfig                string        `toml:"vm_config" help:"vm_config JSON of the gateway itself, published in its evidence when it exists"`
	AcceptedTCB             []string      `toml:"accepted_tcb" help:"TCB statuses accepted from CVMs beside UpToDate, worst of module, platform and quoting enclave"`
	MinEvaluationDataNumber int           `toml:"min_evaluation_data_number" help:"collateral with a lower tcbEvaluationDataNumber is refused"`
	MaxCollateralAge        time.Duration `toml:"max_collateral_age" help:"collateral issued longer ago is refused; 0s: only its own nextUpdate counts"`
	AllowDebug              bool          `toml:"allow_debug" help:"accept TDs whose debug attribute is set: their memory can be read by the host"`
	Validity                time.Duration `toml:"validity" help:"how long a document without a nonce is valid; it is quoted anew on demand when half of it has gone"`
	NonceInterval           time.Duration `toml:"nonce_interval" help:"a client address may ask for one document with a nonce per interval"`
	NonceBurst              int           `toml:"nonce_burst" help:"that many at once before the interval counts"`
	Apps                    Measurements  `toml:"apps" help:"what a CVM has to be to register; every list that is not empty counts"`
}

// Proxy configures the HTTPS front.
type Proxy struct {
	Listen       netip.AddrPort `toml:"listen" help:"TCP address of the HTTPS listener"`
	PublicPort   int            `toml:"public_port" help:"port that clients use, when something in between maps it; 0: that of listen"`
	DrainTimeout time.Duration  `toml:"drain_timeout" help:"how long running requests may take to finish at shutdown"`
}

// Enroll configures registration.
type Enroll struct {
	Listen           netip.AddrPort `toml:"listen" help:"TCP address of the registration RPC, TLS with optional client certificates"`
	Names            []string       `toml:"names" help:"DNS names and IP addresses in the self-made RA-TLS server certificate; gateway.<base> when empty"`
	CertFile         string         `toml:"cert_file" help:"server certificate chain in PEM, as the dstack KMS issues it; empty: a self-made RA-TLS certificate"`
	KeyFile          string         `toml:"key_file" help:"private key of cert_file"`
	KMSRoot          string         `toml:"kms_root" help:"PEM file with the root certificate of the dstack KMS; its certificates identify CVMs without a quote"`
	Evidence         string         `toml:"evidence" help:"\"required\" (no quote, no registration), \"preferred\" (CVMs of the KMS are asked for their quote once, and taken without) or \"off\" (the KMS's word is enough)"`
	AuthURL          string         `toml:"auth_url" help:"webhook that is asked for each registration, with the app's identity as JSON: 2xx is a yes; empty: nobody is asked"`
	SourceInterval   time.Duration  `toml:"source_interval" help:"an address may register once per interval; 0s: any number"`
	SourceBurst      int            `toml:"source_burst" help:"that many at once before the interval counts"`
	InstanceInterval time.Duration  `toml:"instance_interval" help:"an instance may register once per interval; 0s: any number"`
	InstanceBurst    int            `toml:"instance_burst" help:"that many at once before the interval counts"`
	ReviewInterval   time.Duration  `toml:"review_interval" help:"how often a registered instance is judged again: its evidence by today's collateral, the policy for apps, the webhook"`
	Drain            time.Duration  `toml:"drain" help:"how long an instance that is refused keeps its connections before it is removed; it gets no new ones"`
	Stale            time.Duration  `toml:"stale" help:"an instance whose last handshake and last new key are older is forgotten"`
}

// DNS configures the authoritative server.
type DNS struct {
	Listen         []netip.AddrPort `toml:"listen" help:"UDP and TCP addresses of the server"`
	ListenTLS      []netip.AddrPort `toml:"listen_tls" help:"addresses for DNS over TLS, as [\":853\"], with the wildcard certificate; DNS over HTTPS is at /dns-query on the gateway's own names"`
	RateLimit      int              `toml:"rate_limit" help:"answers over UDP a second, of one kind (data, denials, refusals), to one network (IPv4 /24, IPv6 /56) that shows no valid cookie; 0: all"`
	RateLimitSlip  int              `toml:"rate_limit_slip" help:"every so many of the answers beyond rate_limit are sent without data, so that true clients come back over TCP; the others are not sent"`
	QueryLog       string           `toml:"query_log" help:"file that gets a line of JSON for queries, with the client's address; empty: none"`
	QueryLogSample int              `toml:"query_log_sample" help:"only one query of so many is logged"`
	Dnstap         string           `toml:"dnstap" help:"socket of a dnstap collector, \"unix:/path\" or \"tcp:host:port\", which gets queries and answers; empty: none"`
	DnstapSample   int              `toml:"dnstap_sample" help:"only one query of so many is sent there"`
	Addresses      []netip.Addr     `toml:"addresses" help:"public addresses of this node: what the base, the gateway's and every app's name resolve to"`
	NameServer     string           `toml:"name_server" help:"label of the zone's name server below each base domain"`
	Secondaries    []string         `toml:"secondary_name_servers" help:"full names of further name servers, outside the base domains, that serve the zones from transfers (dns.transfer); they know apps under their ids only, not the forms with a port"`
	Records        []Record         `toml:"records" help:"static records, as [[dns.records]] tables with name, type, data and, if they like, ttl"`
	ZoneFiles      []string         `toml:"zone_files" help:"files of static records in zone-file form; relative names are meant in every base domain"`
	DNSSEC         DNSSEC           `toml:"dnssec" help:"signatures of the zones; dstack-gateway ds prints what the zone above has to be told"`
	Transfer       Transfer         `toml:"transfer" help:"transfers of whole zones to secondary servers"`
}

// DNSSEC says how the zones are signed.
type DNSSEC struct {
	Sign           bool          `toml:"sign" help:"sign the zones; without the DS records in the zone above it is of no effect, and does no harm"`
	Algorithm      string        `toml:"algorithm" help:"\"ecdsap256sha256\" or \"ed25519\"; a change begins an algorithm rollover, which takes about ten days"`
	Split          bool          `toml:"split_keys" help:"a key signing key and a zone signing key in place of one combined key"`
	KSKLifetime    time.Duration `toml:"ksk_lifetime" help:"how long a key signing key, or a combined one, is used before its successor takes its place; the zone above then needs the new DS records; 0s: for ever"`
	ZSKLifetime    time.Duration `toml:"zsk_lifetime" help:"the same for a zone signing key, which the zone above does not know; 0s: for ever"`
	Denial         string        `toml:"denial" help:"how it is proved that a name does not exist: \"block\" (NXDOMAIN, shared by many names, tells the first digits of ids) or \"compact\" (RFC 9824, tells nothing, costs a signature a name)"`
	SigningPercent int           `toml:"signing_percent" help:"percent of one CPU that signing may take, for names that exist and as much again for those that don't; answers beyond come over TCP"`
	Resolver       string        `toml:"resolver" help:"address:port of the recursive resolver that is asked what the zone above has; empty: the first of /etc/resolv.conf"`
}

// Record is one static record of the zones.
type Record struct {
	Name string        `toml:"name" help:"owner; one that ends with a dot is full, any other is meant in every base domain; \"@\" is the base domain itself"`
	Type string        `toml:"type" help:"as \"MX\""`
	Data string        `toml:"data" help:"as in a zone file, names in it full with their trailing dot"`
	TTL  time.Duration `toml:"ttl" help:"0s: that of the zone"`
}

// Tunnel configures WireGuard.
type Tunnel struct {
	Device            string         `toml:"device" help:"\"kernel\", \"tun\" (userspace), \"netstack\" (in the process, needs no privilege) or \"auto\": the first of these that works"`
	Name              string         `toml:"name" help:"name of the network interface"`
	Listen            netip.AddrPort `toml:"listen" help:"UDP address of WireGuard"`
	Endpoint          string         `toml:"endpoint" help:"address:port that CVMs send to; IPv4 or a DNS name, because dstack guests split it at the first colon; empty: listen, when that names an IPv4 address"`
	Address           netip.Prefix   `toml:"address" help:"the gateway's address inside the tunnel, with the length of the tunnel network"`
	Address6          netip.Prefix   `toml:"address6" help:"an IPv6 ULA of the gateway inside the tunnel, as \"fd12:3456:789a::1/64\"; guests that ask for IPv6 get the address of that network that ends with their IPv4 address; empty: none"`
	Clients           netip.Prefix   `toml:"clients" help:"CVMs get their addresses from here, inside the tunnel network"`
	Reserved          []netip.Prefix `toml:"reserved" help:"parts of clients that are never given out"`
	MTU               int            `toml:"mtu" help:"MTU inside the tunnel, bytes"`
	HandshakeInterval time.Duration  `toml:"handshake_interval" help:"how often the handshakes of all peers are read"`
	HandshakeStale    time.Duration  `toml:"handshake_stale" help:"an instance whose last handshake is older gets no requests"`
}

// Store configures etcd.
type Store struct {
	Endpoints      []string `toml:"endpoints" help:"URLs of an existing etcd cluster; empty: an embedded etcd in data_dir"`
	CAFile         string   `toml:"ca_file" help:"PEM roots for https endpoints; empty: the system's"`
	CertFile       string   `toml:"cert_file" help:"client certificate for etcd"`
	KeyFile        string   `toml:"key_file" help:"private key of cert_file"`
	Username       string   `toml:"username" help:"etcd user"`
	PasswordFile   string   `toml:"password_file" help:"file with that user's password"`
	Prefix         string   `toml:"prefix" help:"every key of the gateway begins with it"`
	ClusterKeyFile string   `toml:"cluster_key_file" help:"file of 32 bytes, the key that seals every value; made when absent; empty: cluster.key in data_dir"`
}

// Certs configures the certificates of the HTTPS front.
type Certs struct {
	Issuer      string `toml:"issuer" help:"\"acme\" or \"internal\" (an own CA, for closed networks and trying out; its root is written to ca.pem in data_dir)"`
	Directory   string `toml:"directory" help:"ACME directory URL"`
	CAFile      string `toml:"ca_file" help:"PEM roots to trust the ACME directory by; empty: the system's"`
	Email       string `toml:"email" help:"contact of the ACME account"`
	CAAIdentity string `toml:"caa_identity" help:"domain by which that CA knows itself in CAA records (RFC 8659)"`
}

// Metrics configures the Prometheus endpoint.
type Metrics struct {
	Listen []netip.AddrPort `toml:"listen" help:"TCP addresses of GET /metrics, plain HTTP without a password: keep it private, as 127.0.0.1:9090; empty: none"`
}

// Log configures the program's log.
type Log struct {
	Level  string `toml:"level" help:"\"debug\", \"info\", \"warn\" or \"error\""`
	Format string `toml:"format" help:"\"text\" or \"json\""`
}

// Default is the configuration of a file that says nothing.
func Default() Config {
	return Config{
		DataDir: "/var/lib/dstack-gateway",
		Attestation: Attestation{
			Kind:          "tdx",
			PCCS:          "https://api.trustedservices.intel.com",
			EventLog:      "/run/log/dstack/runtime_events.log",
			AppCompose:    "/dstack/.host-shared/app-compose.json",
			AcceptedTCB:   []string{"UpToDate"},
			Validity:      5 * time.Minute,
			NonceInterval: 2 * time.Second,
			NonceBurst:    5,
		},
		Proxy: Proxy{Listen: everywhere(443), DrainTimeout: 30 * time.Second},
		Enroll: Enroll{
			Listen: everywhere(8000), Evidence: "preferred",
			SourceInterval: 20 * time.Millisecond, SourceBurst: 500, InstanceInterval: 5 * time.Second, InstanceBurst: 10,
			ReviewInterval: 10 * time.Minute, Drain: time.Minute, Stale: 10 * time.Hour,
		},
		DNS: DNS{Listen: []netip.AddrPort{everywhere(53)}, RateLimit: 500, RateLimitSlip: 1, QueryLogSample: 1, DnstapSample: 1, NameServer: "ns1", DNSSEC: DNSSEC{
			Sign: true, Algorithm: "ecdsap256sha256", ZSKLifetime: 90 * 24 * time.Hour, Denial: "block", SigningPercent: 25,
		}},
		Tunnel: Tunnel{
			Device:            "auto",
			Name:              "dstack-wg0",
			Listen:            everywhere(51820),
			Address:           netip.MustParsePrefix("10.0.0.1/16"),
			Clients:           netip.MustParsePrefix("10.0.0.0/16"),
			MTU:               1420,
			HandshakeInterval: 10 * time.Second,
			HandshakeStale:    30 * time.Minute,
		},
		Store: Store{Prefix: "/dstack-gateway/"},
		Certs: Certs{
			Issuer:      "acme",
			Directory:   "https://acme-v02.api.letsencrypt.org/directory",
			CAAIdentity: "letsencrypt.org",
		},
		Log: Log{Level: "info", Format: "text"},
	}
}

func everywhere(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.IPv6Unspecified(), port) }

// Load reads a file over Default. Its error is Faults when the file could be read.
func Load(file string) (Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("%w; name the configuration with -c FILE", err)
	}
	return Parse(file, text)
}

// Parse reads TOML text over Default. file is the name that faults tell.
func Parse(file string, text []byte) (Config, error) {
	c := Default()
	lines, faults := decode(text, &c)
	if lines != nil {
		faults = append(faults, c.check(faults)...)
	}
	return c, faults.located(file, lines)
}

// Check tells everything that is wrong with a configuration that came from no file. Its error is Faults.
func (c *Config) Check() error { return c.check(nil).located("", nil) }
