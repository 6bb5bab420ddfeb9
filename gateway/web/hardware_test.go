package web_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestThePageVerifiesHardware: testdata/intel has quotes of Intel's hardware and the collateral of the first one's time, as
// go-tdx-guest publishes them. Its domain is of before dstack, and its platform is below every level of its own TCB info: that it is
// refused for nothing else shows that Intel's own certificates, lists and signatures are read. The second is of another year than the collateral.
func TestThePageVerifiesHardware(t *testing.T) {
	dir := modules(t)
	type told struct {
		Signatures, Attributes, Vendor, Collateral string
		Version                                    int
		Kind, Family                               string
	}
	tests := []struct {
		name, file string
		at         time.Time
		want       told
	}{
		{"version 4", "quote-v4.dat", time.Date(2023, time.July, 1, 1, 0, 0, 0, time.UTC), told{
			Attributes: "td-attributes: SEPT_VE_DISABLE is not set in attributes 0x40000000",
			Collateral: "tcb: the platform is below every level of the TCB info", Version: 4, Kind: "tdx", Family: "50806f000000",
		}},
		{"version 4, later", "quote-v4.dat", time.Date(2023, time.September, 1, 1, 0, 0, 0, time.UTC), told{
			Attributes: "td-attributes: SEPT_VE_DISABLE is not set in attributes 0x40000000",
			Collateral: "collateral: TCB info expired at 2023-07-18T08:42:58Z", Version: 4, Kind: "tdx", Family: "50806f000000",
		}},
		{"version 5", "quote-v5.dat", time.Date(2026, time.February, 3, 0, 0, 0, 0, time.UTC), told{
			Collateral: "collateral: QE identity expired at 2023-07-08T07:24:59Z", Version: 5, Kind: "tdx", Family: "90c06f000000",
		}},
	}
	for _, test := range tests {
		test.want.Vendor = "qe-identity: vendor of the quoting enclave is 00000000000000000000000000000000, want Intel's"
		t.Run(test.name, func(t *testing.T) {
			var got told
			node(t, "hardware.mjs", nil, &got, dir, "testdata/intel/"+test.file, "testdata/intel/collateral.json", strconv.FormatInt(test.at.UnixMilli(), 10))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
