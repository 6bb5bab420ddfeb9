package config

import (
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"dstack.host/ratls"
)

// Measurements say which programs and platforms are expected. An empty list expects nothing; a value has to be on every list
// that is not empty.
type Measurements struct {
	AppID         []string `toml:"app_id" help:"app ids, 40 hex digits"`
	ComposeHash   []string `toml:"compose_hash" help:"SHA-256 of app-compose.json, 64 hex digits"`
	MRAggregated  []string `toml:"mr_aggregated" help:"SHA-256 over MRTD and all RTMRs, as dstack computes it, 64 hex digits"`
	MRSystem      []string `toml:"mr_system" help:"SHA-256 over MRTD, RTMR0 to RTMR2 and the key provider, as dstack computes it, 64 hex digits"`
	OSImageHash   []string `toml:"os_image_hash" help:"hash of the OS image, 64 hex digits; only beside mr_system, mr_aggregated, or mrtd with rtmr1 and rtmr2: the VM configuration says it, and no quote covers it"`
	MRTD          []string `toml:"mrtd" help:"register MRTD, 96 hex digits"`
	RTMR0         []string `toml:"rtmr0" help:"register RTMR0, 96 hex digits"`
	RTMR1         []string `toml:"rtmr1" help:"register RTMR1, 96 hex digits"`
	RTMR2         []string `toml:"rtmr2" help:"register RTMR2, 96 hex digits"`
	KeyProvider   []string `toml:"key_provider" help:"names of key providers, as \"kms\", from the measured event key-provider"`
	KeyProviderID []string `toml:"key_provider_id" help:"ids of key providers, from the same event"`
	FMSPC         []string `toml:"fmspc" help:"families of platforms, 12 hex digits"`
	PPID          []string `toml:"ppid" help:"single processors by their PPID, 32 hex digits"`
}

// hexLists are the lists whose items are hex, with the size of an item in bytes.
func (m *Measurements) hexLists() []struct {
	name  string
	items []string
	size  int
} {
	const id, digest, register = 20, 32, 48
	return []struct {
		name  string
		items []string
		size  int
	}{
		{"app_id", m.AppID, id},
		{"compose_hash", m.ComposeHash, digest},
		{"mr_aggregated", m.MRAggregated, digest},
		{"mr_system", m.MRSystem, digest},
		{"os_image_hash", m.OSImageHash, digest},
		{"mrtd", m.MRTD, register},
		{"rtmr0", m.RTMR0, register},
		{"rtmr1", m.RTMR1, register},
		{"rtmr2", m.RTMR2, register},
		{"fmspc", m.FMSPC, 6},
		{"ppid", m.PPID, 16},
	}
}

func (m *Measurements) check(f *Faults, table string) {
	for _, list := range m.hexLists() {
		for i, item := range list.items {
			if raw, err := hex.DecodeString(item); err != nil || len(raw) != list.size {
				f.add(fmt.Sprintf("%s.%s", table, list.name), "item %d, %q, is not %d hex digits", i+1, item, 2*list.size)
			}
		}
	}
	if len(m.OSImageHash) > 0 && len(m.MRSystem) == 0 && len(m.MRAggregated) == 0 && (len(m.MRTD) == 0 || len(m.RTMR1) == 0 || len(m.RTMR2) == 0) {
		f.add(table+".os_image_hash", "is covered by no quote, so it pins nothing by itself; set mr_system, mr_aggregated, or mrtd with rtmr1 and rtmr2 beside it")
	}
	for _, list := range []struct {
		name  string
		items []string
	}{{"key_provider", m.KeyProvider}, {"key_provider_id", m.KeyProviderID}} {
		if slices.Contains(list.items, "") {
			f.add(table+"."+list.name, "holds an empty text, which would match nothing; remove it")
		}
	}
}

// Pins are the measurements as a verifier takes them. They have to have been checked.
func (m Measurements) Pins() ratls.Pins {
	return ratls.Pins{
		AppIDs: raw(m.AppID), ComposeHashes: raw(m.ComposeHash), MRAggregated: raw(m.MRAggregated), MRSystem: raw(m.MRSystem),
		OSImageHashes: raw(m.OSImageHash), MRTD: raw(m.MRTD), RTMR0: raw(m.RTMR0), RTMR1: raw(m.RTMR1), RTMR2: raw(m.RTMR2),
		KeyProviders: slices.Clone(m.KeyProvider), KeyProviderIDs: slices.Clone(m.KeyProviderID),
		FMSPCs: raw(m.FMSPC), PPIDs: raw(m.PPID),
	}
}

// raw decodes hex. What is not hex becomes a pin that nothing matches.
func raw(list []string) []ratls.Hex {
	out := make([]ratls.Hex, len(list))
	for i, item := range list {
		if b, err := hex.DecodeString(item); err == nil {
			out[i] = b
		}
	}
	return out
}

// Policy is what a relying party accepts: a file of its own for verify.
type Policy struct {
	AcceptedTCB             []string      `toml:"accepted_tcb" help:"TCB statuses accepted beside UpToDate, worst of module, platform and quoting enclave"`
	MinEvaluationDataNumber int           `toml:"min_evaluation_data_number" help:"collateral with a lower tcbEvaluationDataNumber is refused"`
	MaxCollateralAge        time.Duration `toml:"max_collateral_age" help:"collateral issued longer ago is refused; 0s: only its own nextUpdate counts"`
	AllowDebug              bool          `toml:"allow_debug" help:"accept TDs whose debug attribute is set: their memory can be read by the host"`
	RequireWireGuard        bool          `toml:"require_wireguard" help:"refuse instances whose quote does not name their WireGuard key"`
	RequireCompose          bool          `toml:"require_compose" help:"refuse instances without their app-compose text, as stock dstack guests are"`
	MaxAge                  time.Duration `toml:"max_age" help:"a statement that is valid for longer is refused"`
	Gateway                 Measurements  `toml:"gateway" help:"the gateway"`
	Apps                    Measurements  `toml:"apps" help:"the instances behind it"`
}

// DefaultPolicy is that of a file that says nothing: the strict one, with no expectation of any measurement.
func DefaultPolicy() Policy {
	return Policy{AcceptedTCB: []string{"UpToDate"}, MaxAge: time.Hour}
}

// LoadPolicy reads a file over DefaultPolicy, as strictly as a configuration. Its error is Faults when the file could be read.
func LoadPolicy(file string) (Policy, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Policy{}, err
	}
	return ParsePolicy(file, text)
}

// ParsePolicy reads TOML text over DefaultPolicy. file is the name that faults tell.
func ParsePolicy(file string, text []byte) (Policy, error) {
	p := DefaultPolicy()
	lines, faults := decode(text, &p)
	if lines != nil {
		var found Faults
		p.check(&found)
		faults = append(faults, found.beside(faults)...)
	}
	return p, faults.located(file, lines)
}

func (p *Policy) check(f *Faults) {
	checkTCB(f, "accepted_tcb", p.AcceptedTCB)
	if p.MaxAge <= 0 {
		f.add("max_age", `must be longer than nothing, as "1h"`)
	}
	p.Gateway.check(f, "gateway")
	p.Apps.check(f, "apps")
}

// Quotes is the part that quotes are judged by.
func (p Policy) Quotes() ratls.Policy {
	return ratls.Policy{
		AcceptedTCB: p.AcceptedTCB, MinEvaluationDataNumber: uint32(p.MinEvaluationDataNumber),
		MaxCollateralAge: p.MaxCollateralAge, AllowDebug: p.AllowDebug,
	}
}

// Chain puts the policy into a chain: into each of its roots, and beside them.
func (p Policy) Chain(c ratls.Chain) ratls.Chain {
	if len(c.Roots) == 0 {
		c.Roots = []ratls.VerifierConfig{{}}
	}
	c.Roots = slices.Clone(c.Roots)
	for i := range c.Roots {
		c.Roots[i].Policy = p.Quotes()
	}
	c.Gateway, c.Apps = p.Gateway.Pins(), p.Apps.Pins()
	c.RequireWireGuard, c.RequireCompose, c.MaxAge = p.RequireWireGuard, p.RequireCompose, p.MaxAge
	return c
}

// checkTCB holds a list of accepted statuses to those that can be accepted.
func checkTCB(f *Faults, key string, accepted []string) {
	if len(accepted) == 0 {
		f.add(key, `accepts nothing; set at least ["UpToDate"]`)
	}
	for _, status := range accepted {
		if !slices.Contains(tcbStatuses, status) {
			f.add(key, "%q can't be accepted; these can: %s", status, strings.Join(tcbStatuses, ", "))
		}
	}
}
