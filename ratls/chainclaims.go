package ratls

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// Where a [Claim] comes from. What is measured or signed is told apart from what somebody merely says.
const (
	FromQuote       = "quote"            // signed by the platform; the PCK certificate in it included
	FromEventLog    = "event log"        // replayed to a register of the quote
	FromCollateral  = "collateral"       // signed by the vendor of the platform
	FromStatement   = "statement"        // said by the program that was quoted
	FromCertificate = "certificate"      // said by the issuer of the TLS certificate
	FromHostName    = "host name"        // what the relying party asked for
	FromDNS         = "DNS"              // said by a resolver
	FromVMConfig    = "vm configuration" // said by the host or the gateway, covered by nothing
)

// Claim is one thing that is known of a hop, and how.
type Claim struct {
	Hop    string `json:"hop"`
	Name   string `json:"name"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

// claims collects those of one hop. Values that are empty say nothing and are left out.
type claims struct {
	hop string
	all []Claim
}

func (c *claims) add(source, name, value string) {
	if value != "" {
		c.all = append(c.all, Claim{Hop: c.hop, Name: name, Value: value, Source: source})
	}
}

func (c *claims) hex(source, name string, value []byte) {
	c.add(source, name, hex.EncodeToString(value))
}

// quoteClaims is what a verified quote, its event log and the vendor say of a domain and its platform.
func quoteClaims(hop string, q *Quote, info AppInfo) []Claim {
	c := &claims{hop: hop}
	c.add(FromQuote, "kind", string(q.Kind))
	c.add(FromQuote, "quote_version", fmt.Sprint(q.Version))
	c.hex(FromQuote, "mrtd", q.MRTD[:])
	for i, rtmr := range q.RTMR {
		c.hex(FromQuote, fmt.Sprintf("rtmr%d", i), rtmr[:])
	}
	for _, m := range []struct {
		name  string
		value Measurement
	}{{"mr_config_id", q.MRConfigID}, {"mr_owner", q.MROwner}, {"mr_owner_config", q.MROwnerConfig}} {
		if m.value != (Measurement{}) {
			c.hex(FromQuote, m.name, m.value[:])
		}
	}
	c.hex(FromQuote, "td_attributes", q.TDAttributes[:])
	c.hex(FromQuote, "tee_tcb_svn", q.TEETCBSVN[:])
	c.add(FromQuote, "fmspc", q.FMSPC)
	c.hex(FromQuote, "ppid", q.PPID)
	c.status("tcb_platform", q.TCB.Platform)
	c.status("tcb_module", q.TCB.Module)
	c.status("tcb_qe", q.TCB.QE)
	c.add(FromCollateral, "tcb_evaluation_data_number", fmt.Sprint(q.TCB.EvaluationDataNumber))
	c.info(info)
	return c.all
}

// status tells one half of a TCB with the advisories that it is open to.
func (c *claims) status(name string, s TCBStatus) {
	c.add(FromCollateral, name, s.Status)
	if !s.Date.IsZero() {
		c.add(FromCollateral, name+"_date", s.Date.UTC().Format(time.DateOnly))
	}
	c.add(FromCollateral, name+"_advisories", strings.Join(s.Advisories, " "))
}

// info tells the application. The two digests are of registers and of the measured key provider.
func (c *claims) info(info AppInfo) {
	c.hex(FromQuote, "mr_aggregated", info.MRAggregated)
	c.hex(FromQuote, "mr_system", info.MRSystem)
	c.hex(FromEventLog, "app_id", info.AppID)
	c.hex(FromEventLog, "instance_id", info.InstanceID)
	c.hex(FromEventLog, "compose_hash", info.ComposeHash)
	p := keyProvider(info)
	c.add(FromEventLog, "key_provider", p.Name)
	c.add(FromEventLog, "key_provider_id", p.ID)
	c.hex(FromVMConfig, "os_image_hash", info.OSImageHash)
}

// statementClaims is what the gateway says.
func statementClaims(s *Statement) []Claim {
	c := &claims{hop: HopStatement}
	c.add(FromStatement, "host", s.Host)
	c.add(FromStatement, "node", s.Node)
	for _, k := range s.TLS {
		c.add(FromStatement, "tls_key_"+k.Use, k.SPKI.String())
	}
	c.add(FromStatement, "acme_account", s.ACMEAccount)
	for _, record := range s.CAA {
		c.add(FromStatement, "caa", record)
	}
	c.add(FromStatement, "issued_at", stamp(s.IssuedAt))
	c.add(FromStatement, "expires_at", stamp(s.ExpiresAt))
	return c.all
}

// claims is what is known of an instance: by its own evidence, and by the gateway's word.
func (a *appWalk) claims() []Claim {
	c := &claims{hop: a.hop(), all: quoteClaims(a.hop(), a.quote, a.info)}
	c.add(FromHostName, "named_id", strings.ToLower(a.subject.ID))
	c.add(FromStatement, "tunnel_wg_public_key", a.stated.WGPublicKey)
	if a.bound {
		c.add(FromQuote, "binding", string(a.evidence.Binding))
	}
	if a.said != nil {
		c.add(FromQuote, "wg_public_key", a.said.WGPublicKey)
		c.add(FromQuote, "quoted_at", stamp(a.said.IssuedAt))
	}
	return c.all
}
