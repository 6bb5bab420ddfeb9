package gateway

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"time"

	"dstack.host/dnsserver"
	"dstack.host/gateway/config"
	"dstack.host/gateway/registry"
)

// gatewayLabel names the gateway itself below each base domain.
const gatewayLabel = config.GatewayLabel

// openZones reads what the configuration says of the zones, and refuses what the DNS server would refuse later.
func (g *Gateway) openZones() error {
	for _, base := range g.config.BaseDomains {
		zone, err := g.config.Zone(base)
		if err != nil {
			return err
		}
		g.static = append(g.static, zone)
	}
	_, err := g.zones(listing{Snapshot: new(registry.Snapshot)}, time.Now())
	return err
}

// zones are everything that the DNS server says.
func (g *Gateway) zones(listed listing, at time.Time) ([]*dnsserver.Zone, error) {
	g.names.follow(listed.Snapshot)
	zones := make([]*dnsserver.Zone, len(g.static))
	for i, static := range g.static {
		zone, err := dnsserver.NewZone(g.zone(static, listed, at))
		if err != nil {
			return nil, err
		}
		zones[i] = zone
	}
	return zones, nil
}

// zone adds to what the configuration says of a zone what is registered and certified.
func (g *Gateway) zone(c dnsserver.ZoneConfig, listed listing, at time.Time) dnsserver.ZoneConfig {
	c.Serial = serial(listed.Snapshot, at)
	c.Hosts = func(label string) bool { return len(listed.resolve(label)) > 0 }
	c.Canonical = registry.CanonicalLabel
	c.Labels, c.Prefixes = g.names.labels, []string{"0x"}
	c.Signing = g.zoneSigning(c.Origin, at)
	c.Passthrough = passthrough
	c.HostTXT = func(label string) []string { return g.facts(listed, label, c.Origin) }
	c.TXT = map[string][]string{}
	if g.certs != nil { // else this is only a check of the configuration
		c.Service = g.service(c.Origin)
		for _, record := range g.certs.CAA() {
			c.CAA = append(c.CAA, dnsserver.CAA{Critical: record.Flag&0x80 != 0, Tag: record.Tag, Value: record.Value})
		}
	}
	const challenge = "_acme-challenge"
	if values := listed.Challenges()[challenge+"."+c.Origin]; len(values) > 0 {
		c.TXT[challenge] = values
	}
	return c
}

// serial grows with the state, and with every hour, at which some signatures are new. All nodes have the same.
func serial(snapshot *registry.Snapshot, at time.Time) uint32 {
	hours := at.Unix() / int64(dnsserver.ResignInterval/time.Second)
	return uint32(snapshot.Revision() + hours) // RFC 1982 arithmetic wraps as the truncation does
}

// names are the labels of all apps in order. It follows one snapshot to the next. Used by one goroutine at a time.
type names struct {
	of     *registry.Snapshot
	labels *dnsserver.Labels
}

func (n *names) follow(snapshot *registry.Snapshot) {
	if n.of == nil {
		n.labels = dnsserver.NewLabels(snapshot.Labels())
	} else if n.of != snapshot {
		if added, removed := snapshot.ChangedLabels(n.of); len(added)+len(removed) > 0 {
			n.labels = n.labels.With(added, removed)
		}
	}
	n.of = snapshot
}

// service is what clients learn of the HTTPS front: its protocols, its port, what they encrypt their ClientHello to, and the keys of
// the certificates that it serves and is going to serve.
func (g *Gateway) service(base string) *dnsserver.Service {
	s := &dnsserver.Service{ALPN: []string{"h2", "http/1.1"}, Port: uint16(g.publicPort()), ECH: g.secrets.ECHConfigList(base)}
	for _, key := range g.certs.Keys() {
		sum := sha256.Sum256(key.SPKI)
		if slices.Contains(key.Names, base) {
			s.OriginKeys = append(s.OriginKeys, sum)
		}
		if slices.Contains(key.Names, "*."+base) {
			s.Keys = append(s.Keys, sum)
		}
	}
	return s
}

func passthrough(label string) bool {
	name, err := registry.ParseLabel(label)
	return err == nil && name.Passthrough
}

// maxComposes is how many compose hashes of one app DNS tells; the attestation document has all.
const maxComposes = 4

// facts is what DNS says of an app: which it is, the code that it runs, how many instances there are, and where all of
// that is proved. It is a hint for people and monitors: the proof is the document.
func (g *Gateway) facts(listed listing, label, base string) []string {
	instances := listed.resolve(label)
	if len(instances) == 0 {
		return nil
	}
	facts := []string{"v=dstack1", "app=" + instances[0].App.String()}
	var composes []string
	for _, inst := range instances {
		if hash := fmt.Sprintf("compose=%x", inst.Compose[:]); !slices.Contains(composes, hash) && len(composes) < maxComposes {
			composes = append(composes, hash)
		}
	}
	port := ""
	if p := g.publicPort(); p != 443 {
		port = ":" + strconv.Itoa(p)
	}
	return append(append(facts, composes...), fmt.Sprintf("instances=%d", len(instances)),
		"verify=https://"+label+"."+base+port+"/.well-known/attestation")
}
