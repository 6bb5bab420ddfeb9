package enroll_test

import (
	"crypto/tls"
	"net/http"
	"testing"

	"dstack.host/gateway/enroll"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// TestOnlyWhatThePolicyTakesRegisters holds good evidence to measurements that are expected, whatever it came with.
func TestOnlyWhatThePolicyTakesRegisters(t *testing.T) {
	w := newWorld(t)
	taken := w.boot(t, simtdx.VM{AppCompose: `{"name":"taken"}`, MRTD: ratls.Measurement{7}})
	otherImage := w.boot(t, simtdx.VM{AppCompose: `{"name":"taken"}`, MRTD: ratls.Measurement{8}})
	otherApp := w.boot(t, simtdx.VM{AppCompose: `{"name":"another"}`, MRTD: ratls.Measurement{7}})
	info := must(taken.Info())(t)
	image := must(ratls.ParseQuote(must(taken.Quote(t.Context(), ratls.ReportData{}))(t)))(t).MRTD
	at := w.serve(t, func(c *enroll.Config) {
		c.Appraise = ratls.Pins{AppIDs: []ratls.Hex{ratls.Hex(info.AppID)}, MRTD: []ratls.Hex{image[:]}}.Judge
	})
	tests := []struct {
		name        string
		td          *simtdx.TD
		certificate func(*simtdx.TD) tls.Certificate
		status      int
		text        string
	}{
		{"another image", otherImage, func(td *simtdx.TD) tls.Certificate { return attested(t, td) }, http.StatusBadRequest, "mrtd 08"},
		{"another app", otherApp, func(td *simtdx.TD) tls.Certificate { return attested(t, td) }, http.StatusBadRequest, "app id"},
		{"no quote that could show the image", taken, func(td *simtdx.TD) tls.Certificate { return w.kms.guest(t, fromKMS(t, td)) }, http.StatusBadRequest, "mrtd (none)"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w.unchanged(t, func() answer { return register(t, at, test.certificate(test.td), body(newKey())) }, test.status, test.text)
		})
	}
	t.Run("evidence of another image beside a certificate that would do", func(t *testing.T) {
		seed := make([]byte, 20)
		good := w.boot(t, simtdx.VM{AppCompose: `{"name":"taken"}`, InstanceSeed: seed, MRTD: ratls.Measurement{7}})
		bad := w.boot(t, simtdx.VM{AppCompose: `{"name":"taken"}`, InstanceSeed: seed, MRTD: ratls.Measurement{8}})
		key := newKey()
		s := dial(t, at, attested(t, good))
		w.unchanged(t, func() answer {
			return s.register(t, withEvidence(key, evidence(t, bad, statement(t, bad, key, s.challenge(t)))))
		}, http.StatusBadRequest, "mrtd 08")
	})
	if a := register(t, at, attested(t, taken), body(newKey())); a.status != http.StatusOK {
		t.Errorf("what is expected was refused: %d %s", a.status, a.body)
	}
	if a := register(t, at, attested(t, taken), body(newKey())); a.status != http.StatusOK {
		t.Errorf("its refresh was refused: %d %s", a.status, a.body)
	}
}
