package config_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/config"
	"dstack.host/ratls"
)

func TestAnEmptyPolicyIsTheStrictOne(t *testing.T) {
	p, err := config.ParsePolicy("p.toml", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := ratls.Chain{Roots: []ratls.VerifierConfig{{Policy: ratls.Policy{AcceptedTCB: []string{"UpToDate"}}}}, MaxAge: time.Hour}
	got := p.Chain(ratls.Chain{})
	if !got.Gateway.Empty() || !got.Apps.Empty() {
		t.Errorf("it pins %+v and %+v", got.Gateway, got.Apps)
	}
	got.Gateway, got.Apps = ratls.Pins{}, ratls.Pins{}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("chain (-want +got):\n%s", diff)
	}
}

func TestAPolicyReachesItsChain(t *testing.T) {
	p, err := config.ParsePolicy("p.toml", []byte(`
accepted_tcb = ["UpToDate", "SWHardeningNeeded"]
min_evaluation_data_number = 17
max_collateral_age = "720h"
allow_debug = true
require_wireguard = true
require_compose = true
max_age = "10m"
gateway.mr_system = ["`+strings.Repeat("AB", 32)+`"]
[apps]
app_id = ["`+strings.Repeat("01", 20)+`", "`+strings.Repeat("02", 20)+`"]
key_provider = ["kms"]
ppid = ["`+strings.Repeat("0f", 16)+`"]
`))
	if err != nil {
		t.Fatal(err)
	}
	c := p.Chain(ratls.Chain{Roots: make([]ratls.VerifierConfig, 2)})
	quotes := ratls.Policy{AcceptedTCB: []string{"UpToDate", "SWHardeningNeeded"}, MinEvaluationDataNumber: 17, MaxCollateralAge: 720 * time.Hour, AllowDebug: true}
	for i, root := range c.Roots {
		if diff := cmp.Diff(quotes, root.Policy); diff != "" {
			t.Errorf("root %d (-want +got):\n%s", i, diff)
		}
	}
	if !c.RequireWireGuard || !c.RequireCompose || c.MaxAge != 10*time.Minute || len(c.Gateway.MRSystem) != 1 || c.Gateway.MRSystem[0][0] != 0xab {
		t.Errorf("chain %+v", c)
	}
	if len(c.Apps.AppIDs) != 2 || len(c.Apps.PPIDs) != 1 || c.Apps.KeyProviders[0] != "kms" {
		t.Errorf("pins of apps %+v", c.Apps)
	}
}

func TestFaultsOfAPolicyNameFileLineAndKey(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"unknown key", "\nacepted_tcb = []", `p.toml:2: acepted_tcb: no such key; did you mean "accepted_tcb"?`},
		{"unknown pin", "[gateway]\nmrdt = []", `p.toml:2: gateway.mrdt: no such key; did you mean "mrtd"?`},
		{"unknown table", "[[apps]]\nmrtd = []", `p.toml:1: apps: wants a table, [apps]; is a list`},
		{"a text for a list", "apps.app_id = \"00\"", `p.toml:1: apps.app_id: wants a list`},
		{"too short", "apps.app_id = [\"00\"]", `p.toml:1: apps.app_id: item 1, "00", is not 40 hex digits`},
		{"not hex", "[gateway]\nmrtd = [\"" + strings.Repeat("zz", 48) + "\"]", `p.toml:2: gateway.mrtd: item 1`},
		{"prefixed", "apps.mr_system = [\"0x" + strings.Repeat("00", 32) + "\"]", `is not 64 hex digits`},
		{"empty provider", "apps.key_provider = [\"\"]", `p.toml:1: apps.key_provider: holds an empty text`},
		{"revoked", "accepted_tcb = [\"Revoked\"]", `p.toml:1: accepted_tcb: "Revoked" can't be accepted`},
		{"nothing accepted", "accepted_tcb = []", `p.toml:1: accepted_tcb: accepts nothing`},
		{"no age", "max_age = \"0s\"", `p.toml:1: max_age: must be longer than nothing`},
		{"not TOML", "=", `p.toml:1: not TOML`},
		{"of the gateway's own file", "base_domains = []", `p.toml:1: base_domains: no such key; here go: accepted_tcb,`},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := config.ParsePolicy("p.toml", []byte(row.text)); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v\nwant it to hold %s", err, row.want)
			}
		})
	}
}

func TestAMissingPolicyIsNoPolicy(t *testing.T) {
	if _, err := config.LoadPolicy(t.TempDir() + "/none.toml"); err == nil {
		t.Error("a file that is not there was read")
	}
}

func TestPinsOfAppsAreChecked(t *testing.T) {
	_, err := config.Parse("x.toml", []byte(minimal+"[attestation.apps]\nmrtd = [\"00\"]"))
	if want := `x.toml:6: attestation.apps.mrtd: item 1, "00", is not 96 hex digits`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v\nwant it to hold %s", err, want)
	}
}
