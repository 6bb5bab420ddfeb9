package join_test

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"

	"dstack.host/gateway/join"
	"dstack.host/ratls"
	"dstack.host/ratls/guestagent/guestagenttest"
	"dstack.host/ratls/simtdx"
)

func authority(t *testing.T) *simtdx.Authority {
	t.Helper()
	a, err := simtdx.New(simtdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func boot(t *testing.T, a *simtdx.Authority, vm simtdx.VM) (*simtdx.TD, ratls.AppInfo) {
	t.Helper()
	machine, err := a.Machine(simtdx.MachineOptions{})
	if err != nil {
		t.Fatal(err)
	}
	td, err := machine.Boot(vm)
	if err != nil {
		t.Fatal(err)
	}
	info, err := td.Info()
	if err != nil {
		t.Fatal(err)
	}
	return td, info
}

// selfMade is the certificate of a registration server without a KMS.
func selfMade(t *testing.T, td *simtdx.TD) *x509.Certificate {
	t.Helper()
	c, err := ratls.NewCertificate(t.Context(), td, ratls.CertOptions{Names: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

// certified is the certificate of a registration server below a KMS.
func certified(t *testing.T, kms *guestagenttest.KMS, td *simtdx.TD, withQuote bool) tls.Certificate {
	t.Helper()
	c, err := kms.Certify(t.Context(), t, td, withQuote, ratls.CertOptions{Names: []string{"127.0.0.1"}, AppInfo: new(ratls.AppInfo)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOnlyTheExpectedGatewayIsTrusted(t *testing.T) {
	vendor, kms := authority(t), guestagenttest.NewKMS(t)
	gateway, info := boot(t, vendor, simtdx.VM{AppCompose: "gateway"})
	impostor, other := boot(t, vendor, simtdx.VM{AppCompose: "impostor"})
	stranger, _ := boot(t, authority(t), simtdx.VM{AppCompose: "gateway"})
	debugged, _ := boot(t, vendor, simtdx.VM{AppCompose: "gateway", Debug: true})
	stolen := *selfMade(t, gateway) // its evidence beside another key
	stolen.RawSubjectPublicKeyInfo = selfMade(t, impostor).RawSubjectPublicKeyInfo

	apps := []ratls.Hex{info.AppID}
	cas := x509.NewCertPool()
	byApp, byMeasurement := join.Trust{Apps: apps}, join.Trust{Measurements: ratls.Pins{MRAggregated: []ratls.Hex{info.MRAggregated}}}
	byCA, byKMS := join.Trust{CAs: cas}, join.Trust{KMS: true, Apps: apps}
	both := join.Trust{KMS: true, Apps: apps, Quote: true}
	plain := &x509.Certificate{}
	for _, row := range []struct {
		name  string
		trust join.Trust
		leaf  *x509.Certificate
		want  string // of the error; "" for a gateway that is trusted
	}{
		{"quote of the app", byApp, selfMade(t, gateway), ""},
		{"quote of the measurements", byMeasurement, selfMade(t, gateway), ""},
		{"nothing named", join.Trust{}, selfMade(t, gateway), "no gateway is trusted"},
		{"a policy that pins nothing", join.Trust{Quote: true}, selfMade(t, gateway), "no gateway is trusted"},
		{"quote of another app", byApp, selfMade(t, impostor), "not the expected"},
		{"other measurements", byMeasurement, selfMade(t, impostor), "mr_aggregated"},
		{"right app, other measurements", join.Trust{Apps: []ratls.Hex{other.AppID}, Measurements: byMeasurement.Measurements}, selfMade(t, impostor), "mr_aggregated"},
		{"quote below another root", byApp, selfMade(t, stranger), "quote-root"},
		{"a domain that can be debugged", byApp, selfMade(t, debugged), "td-attributes"},
		{"quote of another key", byApp, &stolen, "report-data"},
		{"no quote", byApp, certified(t, kms, gateway, false).Leaf, "no quote in the certificate"},
		{"KMS and app", byKMS, certified(t, kms, gateway, false).Leaf, ""},
		{"KMS, other app", byKMS, certified(t, kms, impostor, false).Leaf, "not the expected"},
		{"KMS, no app named", join.Trust{KMS: true}, certified(t, kms, gateway, false).Leaf, "add --gateway-app"},
		{"KMS and quote", both, certified(t, kms, gateway, true).Leaf, ""},
		{"KMS without the quote", both, certified(t, kms, gateway, false).Leaf, "no quote in the certificate"},
		{"CA, a plain certificate", byCA, plain, ""},
		{"CA, a certificate of an app", byCA, certified(t, kms, impostor, false).Leaf, "add --gateway-app"},
		{"CA, a plain certificate where an app is expected", join.Trust{CAs: cas, Apps: apps}, plain, "names no app id"},
	} {
		err := row.trust.Judge(t.Context(), vendor, kms.Root(), row.leaf)
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v; want %q", row.name, err, row.want)
		}
	}
}

func TestTLSDecidesWhereACAIsNamed(t *testing.T) {
	kms := guestagenttest.NewKMS(t)
	for name, row := range map[string]struct {
		trust join.Trust
		root  *x509.Certificate
		skips bool
		want  string
	}{
		"quotes alone":          {join.Trust{Apps: []ratls.Hex{make([]byte, 20)}}, nil, true, ""},
		"a CA":                  {join.Trust{CAs: x509.NewCertPool()}, nil, false, ""},
		"a CA beside quotes":    {join.Trust{CAs: x509.NewCertPool(), Quote: true}, nil, false, ""},
		"a KMS":                 {join.Trust{KMS: true}, kms.Root(), false, ""},
		"a KMS that is not one": {join.Trust{KMS: true}, nil, false, "guest agent"},
	} {
		c, err := row.trust.Config(row.root)
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v; want %q", name, err, row.want)
		}
		if err == nil && (c.InsecureSkipVerify != row.skips || (c.RootCAs == nil) != row.skips) {
			t.Errorf("%s: TLS verifies: %t, below roots of its own: %t", name, !c.InsecureSkipVerify, c.RootCAs != nil)
		}
	}
}
