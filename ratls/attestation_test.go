package ratls_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/ratls"
)

// attestation is a small sound one.
func attestation() ratls.Attestation {
	return ratls.Attestation{
		Quote:         bytes.Repeat([]byte{7}, 100),
		Events:        []ratls.Event{{IMR: 0, Type: 10, Digest: bytes.Repeat([]byte{8}, 48), Name: "ACPI DATA", Version: 1}},
		RuntimeEvents: []ratls.Event{runtimeEvent("app-id", bytes.Repeat([]byte{1}, 20)), runtimeEvent("système", nil)},
		ReportData:    ratls.ReportData{1, 63: 2},
		Config:        `{"cpu_count":2}`,
	}
}

func TestAttestationIsEncodedAsDstackDoes(t *testing.T) {
	a := ratls.Attestation{
		Quote:         []byte{0xaa, 0xbb},
		Events:        []ratls.Event{{IMR: 3, Type: ratls.RuntimeEventType, Name: "e", Payload: []byte{1}}},
		RuntimeEvents: []ratls.Event{runtimeEvent("e", []byte{1})},
		Config:        "{}",
	}
	got, err := a.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	// version 0, platform 0 (DstackTdx), then SCALE: compact lengths are four times the value up to 63.
	want := append([]byte{0, 0, 8, 0xaa, 0xbb, 4, 3, 0, 0, 0, 1, 0, 0, 8, 0, 4, 'e', 4, 1, 4, 4, 'e', 4, 1}, make([]byte, 64)...)
	want = append(want, 8, '{', '}')
	if !bytes.Equal(got, want) {
		t.Errorf("encoded as\n%x, want\n%x", got, want)
	}
}

func TestAttestationRoundTripsAtEveryWidthOfALength(t *testing.T) {
	for _, size := range []int{0, 63, 64, 1<<14 - 1, 1 << 14, 1 << 20} {
		a := attestation()
		a.Quote = bytes.Repeat([]byte{7}, size)
		data, err := a.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ratls.ParseAttestation(data)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		a.Quote, got.Quote = append([]byte{}, a.Quote...), append([]byte{}, got.Quote...)
		if diff := cmp.Diff(&a, got, cmp.Comparer(func(x, y ratls.Hex) bool { return bytes.Equal(x, y) })); diff != "" {
			t.Errorf("%d bytes (-want +got):\n%s", size, diff)
		}
	}
}

func TestAttestationRefuses(t *testing.T) {
	a := attestation()
	sound, err := a.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	count := func(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n<<2|2) }
	for name, row := range map[string]struct {
		data  []byte
		fault string
	}{
		"nothing":                            {nil, "ends 1 bytes early"},
		"another version":                    {[]byte{1}, "no known version"},
		"cut off":                            {sound[:len(sound)-1], "early"},
		"more behind":                        {append(bytes.Clone(sound), 0), "followed by 1 more bytes"},
		"a length that is not the shortest":  {append([]byte{0, 0, 1, 0}, sound[3:]...), ""},
		"a quote of a gigabyte":              {append([]byte{0, 0}, count(1<<29)...), "early"},
		"a length of more than four bytes":   {[]byte{0, 0, 0xff, 1, 2, 3, 4, 5, 6, 7}, ""},
		"events beyond counting":             {append([]byte{0, 0, 0}, count(1<<20)...), "at most"},
		"an event name that is not text":     {[]byte{0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0xff, 0}, "UTF-8"},
		"eleven megabytes":                   {make([]byte, 11<<20), "longer than the limit"},
		"GCP":                                {[]byte{0, 1}, "not supported yet: TDX of Google Cloud"},
		"Nitro Enclave":                      {[]byte{0, 2}, "not supported yet: AWS Nitro Enclave"},
		"SEV-SNP":                            {[]byte{0, 3}, "not supported yet: AMD SEV-SNP"},
		"NitroTPM":                           {[]byte{0, 4}, "not supported yet: AWS NitroTPM"},
		"a platform that nobody knows":       {[]byte{0, 5}, "platform 5 is unknown"},
		"every byte after a sound beginning": {append(bytes.Clone(sound[:3]), bytes.Repeat([]byte{0xff}, 200)...), ""},
	} {
		got, err := ratls.ParseAttestation(row.data)
		if err == nil || row.fault != "" && !matches(err, row.fault) {
			t.Errorf("%s: %v (%v), want %q", name, err, got != nil, row.fault)
		}
		if supported := !errors.Is(err, ratls.ErrUnsupported); supported == matches(err, "not supported yet") {
			t.Errorf("%s: %v does not tell an unsupported platform apart", name, err)
		}
	}
}

func FuzzAttestation(f *testing.F) {
	a := attestation()
	sound, err := a.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sound)
	f.Add([]byte{0, 3, 1})

	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := ratls.ParseAttestation(data)
		if err != nil {
			return
		}
		if data[0] != 0 { // version 1 is not written here
			return
		}
		again, err := got.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, data) {
			t.Errorf("read %x, writes %x: two encodings of one attestation", data, again)
		}
	})
}
