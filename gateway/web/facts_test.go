package web_test

import (
	"testing"

	"dstack.host/gateway/web"
)

func TestClaimsAreFiledUnderTheirStations(t *testing.T) {
	filed := map[string]int{}
	s := newStudio(t).shoot(t, scene{apps: 2})
	for _, c := range s.walk(t.Context()).Claims {
		f := web.Claimed(c.Hop, c.Name, c.Value, c.Source)
		filed[f.Station]++
		if (f.Instance != "") != (f.Station == "app" || f.Station == "tunnel") || f.Value != c.Value {
			t.Errorf("%+v is filed as %+v", c, f)
		}
	}
	for _, station := range web.Stations() {
		if filed[station] == 0 {
			t.Errorf("nothing is filed under %s: %v", station, filed)
		}
	}
	for _, row := range []struct{ hop, name, station string }{
		{"gateway", "mrtd", "gateway"}, {"gateway", "tcb_module", "machine"}, {"statement", "tls_key_next", "key"}, {"statement", "expires_at", "gateway"},
		{"app 00aa", "rtmr3", "app"}, {"app 00aa", "wg_public_key", "tunnel"}, {"elsewhere", "x", "gateway"}, {"", "", "gateway"},
	} {
		if f := web.Claimed(row.hop, row.name, "v", "quote"); f.Station != row.station {
			t.Errorf("%s of %s is filed under %s, want %s", row.name, row.hop, f.Station, row.station)
		}
	}
}
