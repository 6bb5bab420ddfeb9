package dnsserver_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/dnsserver"
)

// A look-up tells what the server answers, in every kind of answer.
func TestLookupIsWhatIsAnswered(t *testing.T) {
	t.Parallel()
	s, server := serve(t, dnsserver.Config{})
	for _, zones := range [][]*dnsserver.Zone{nil, {bigZone(t)}} {
		if zones != nil {
			s.SetZones(zones...)
		}
		for _, row := range [][2]string{
			{"dstack.host", "soa"}, {"GATEWAY.dstack.host.", "A"}, {"big.dstack.host", "TXT"}, {"www.dstack.host", "A"},
			{"nobody.dstack.host", "AAAA"}, {"four.dstack.host", "AAAA"}, {"example.org", "A"}, {"dstack.host", "ANY"}, {"dstack.host", "OPT"},
		} {
			got, err := s.Zones().Lookup(row[0], row[1])
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(query(t, server, row[0], row[1]), got); diff != "" {
				t.Errorf("%s %s (-answered +looked up)\n%s", row[0], row[1], diff)
			}
		}
	}
	if _, err := s.Zones().Lookup("dstack.host", "NOTYPE"); err == nil {
		t.Error("an unknown type was taken")
	}
}
