package config

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"dstack.host/dnsserver"
)

// Transfer says who may have whole zones.
type Transfer struct {
	KeyName     string           `toml:"key_name" help:"name of the TSIG key (hmac-sha256) that secondaries sign AXFR and IXFR with, as \"transfer.example\"; empty: no transfers"`
	KeyFile     string           `toml:"key_file" help:"file with the key's secret in base64, at least 16 bytes"`
	Secondaries []netip.AddrPort `toml:"secondaries" help:"address:port of each secondary, which gets a NOTIFY when a zone changes"`
}

// Key is the key that transfers are signed with; none without a name.
func (t Transfer) Key() (key dnsserver.TransferKey, err error) {
	if t.KeyName == "" {
		return key, nil
	}
	text, err := os.ReadFile(t.KeyFile)
	if err != nil {
		return key, err
	}
	secret, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		return key, fmt.Errorf("%s holds no base64", t.KeyFile) // and what it holds is nobody's business
	}
	key = dnsserver.TransferKey{Name: t.KeyName, Secret: secret}
	return key, key.Check()
}

func (c *Config) checkTransfer(f *Faults) {
	t := c.DNS.Transfer
	if (t.KeyName == "") != (t.KeyFile == "") || t.KeyName == "" && len(t.Secondaries) > 0 {
		f.add("dns.transfer.key_name", "key_name and key_file go together, and secondaries need them")
	} else if _, err := t.Key(); err != nil {
		f.add("dns.transfer.key_file", "%v", err)
	}
}
