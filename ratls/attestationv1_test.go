package ratls_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"dstack.host/ratls"
)

// pairs is a MessagePack map whose members keep their order, and may occur twice.
type pairs []any

func (p pairs) EncodeMsgpack(enc *msgpack.Encoder) error {
	err := enc.EncodeMapLen(len(p) / 2)
	for _, v := range p {
		err = errors.Join(err, enc.Encode(v))
	}
	return err
}

// integers is a byte string as serde writes a plain vector: an array of integers.
type integers []byte

func (b integers) EncodeMsgpack(enc *msgpack.Encoder) error {
	err := enc.EncodeArrayLen(len(b))
	for _, v := range b {
		err = errors.Join(err, enc.EncodeUint(uint64(v)))
	}
	return err
}

func pack(t testing.TB, v any) []byte {
	t.Helper()
	data, err := msgpack.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// versionOne is a sound attestation of version 1, with its platform and stack to be replaced.
func versionOne(platform, stack any) pairs {
	return pairs{"version", 1, "platform", platform, "stack", stack}
}

func tdxPlatform(quote any) pairs {
	return pairs{"kind", "tdx", "data", pairs{"quote", quote, "event_log", []any{
		pairs{"imr", 0, "event_type", 10, "digest", []byte{1}, "event", "ACPI DATA", "event_payload", []byte{2}},
		pairs{"imr", 3, "event_type", ratls.RuntimeEventType, "digest", []byte{}, "event", "e", "event_payload", []byte{5}, "version", 2, "preimage", []byte{6}},
	}}}
}

func dstackStack(data any) pairs {
	return pairs{"kind", "dstack", "data", pairs{"report_data", data, "runtime_events", []any{
		pairs{"event", "app-id", "payload", bytes.Repeat([]byte{1}, 20)}, pairs{"event", "e", "payload", []byte{5}, "version", 2},
	}, "config", `{"os_image_hash":"00"}`}}
}

func TestAttestationOfVersionOneIsReadInBothFormsOfBytes(t *testing.T) {
	quote, data := bytes.Repeat([]byte{0x80}, 200), bytes.Repeat([]byte{9}, 64)
	for name, packed := range map[string][]byte{
		"integers": pack(t, versionOne(tdxPlatform(integers(quote)), dstackStack(integers(data)))),
		"bin":      pack(t, versionOne(tdxPlatform(quote), dstackStack(data))),
	} {
		a, err := ratls.ParseAttestation(packed)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(a.Quote, quote) || !bytes.Equal(a.ReportData[:], data) || a.Config != `{"os_image_hash":"00"}` {
			t.Errorf("%s: read %+v", name, a)
		}
		if len(a.Events) != 2 || len(a.RuntimeEvents) != 2 || a.RuntimeEvents[0].Name != "app-id" || a.RuntimeEvents[1].Version != 2 || a.Events[1].Version != 2 {
			t.Errorf("%s: events %+v and %+v", name, a.Events, a.RuntimeEvents)
		}
	}
}

func TestAttestationOfAPodNamesItsPayload(t *testing.T) {
	payload := []byte("payload")
	data := ratls.TaggedReportData("app-data", payload)
	pod := func(data, payload []byte) []byte {
		return pack(t, versionOne(tdxPlatform([]byte{1}), pairs{"kind", "dstack-pod", "data", pairs{"report_data", data, "runtime_events", []any{}, "config", "", "report_data_payload", payload}}))
	}
	if _, err := ratls.ParseAttestation(pod(data[:], payload)); err != nil {
		t.Error(err)
	}
	if _, err := ratls.ParseAttestation(pod(data[:], []byte("another"))); !matches(err, "not that of the pod's payload") {
		t.Errorf("another payload: %v", err)
	}
}

func TestAttestationOfVersionOneRefuses(t *testing.T) {
	data := make([]byte, 64)
	sound := pack(t, versionOne(tdxPlatform([]byte{1}), dstackStack(data)))
	other := func(kind string) []byte {
		return pack(t, versionOne(pairs{"kind", kind, "data", pairs{"report", []byte{1}}}, dstackStack(data)))
	}
	for name, row := range map[string]struct {
		data  []byte
		fault string
	}{
		"cut off":                   {sound[:len(sound)-1], "attestation"},
		"more behind":               {append(bytes.Clone(sound), 0), "followed by 1 more bytes"},
		"another version":           {pack(t, pairs{"version", 2, "platform", tdxPlatform([]byte{1}), "stack", dstackStack(data)}), "version 2"},
		"no version":                {pack(t, pairs{"platform", tdxPlatform([]byte{1}), "stack", dstackStack(data)}), "version 0"},
		"no platform":               {pack(t, pairs{"version", 1, "stack", dstackStack(data)}), "no quote"},
		"no stack":                  {pack(t, pairs{"version", 1, "platform", tdxPlatform([]byte{1})}), "report data has 0 bytes"},
		"an unknown member":         {pack(t, append(versionOne(tdxPlatform([]byte{1}), dstackStack(data)), "more", 1)), "unknown or occurs twice"},
		"a member twice":            {pack(t, append(versionOne(tdxPlatform([]byte{1}), dstackStack(data)), "version", 1)), "unknown or occurs twice"},
		"data before its kind":      {pack(t, versionOne(pairs{"data", pairs{}, "kind", "tdx"}, dstackStack(data))), "data before its kind"},
		"report data of 63":         {pack(t, versionOne(tdxPlatform([]byte{1}), dstackStack(data[:63]))), "63 bytes"},
		"report data of 65":         {pack(t, versionOne(tdxPlatform([]byte{1}), dstackStack(append(data, 1)))), "at most 64"},
		"a byte of 256":             {pack(t, versionOne(tdxPlatform([]any{256}), dstackStack(data))), "where a byte is needed"},
		"a pod without a payload":   {pack(t, versionOne(tdxPlatform([]byte{1}), pairs{"kind", "dstack-pod", "data", pairs{"report_data", data, "runtime_events", []any{}, "config", ""}})), "payload: false"},
		"an unknown platform":       {other("sgx"), `platform "sgx" is unknown`},
		"Google Cloud":              {other("gcp-tdx"), "not supported yet: TDX of Google Cloud"},
		"SEV-SNP":                   {other("sev-snp"), "not supported yet: AMD SEV-SNP"},
		"Nitro Enclave":             {other("nitro-enclave"), "not supported yet: AWS Nitro Enclave"},
		"NitroTPM":                  {other("aws-nitro-tpm"), "not supported yet: AWS NitroTPM"},
		"an unknown stack":          {pack(t, versionOne(tdxPlatform([]byte{1}), pairs{"kind", "x", "data", pairs{}})), `stack "x" is unknown`},
		"a map of 4 Gi":             {[]byte{0xdf, 0xff, 0xff, 0xff, 0xff}, "attestation"},
		"a deep nest":               {append(pack(t, pairs{"version", 1})[:0:0], append([]byte{0x81, 0xa8, 'p', 'l', 'a', 't', 'f', 'o', 'r', 'm'}, bytes.Repeat([]byte{0x81, 0xa4, 'k', 'i', 'n', 'd'}, 1<<20)...)...), "attestation"},
		"a quote of 4 GiB":          {append([]byte{0x81, 0xa8}, append([]byte("platform\x82\xa4kind\xa3tdx\xa4data\x81\xa5quote"), 0xdd, 0xff, 0xff, 0xff, 0xff)...), "at most"},
		"an event of version three": {pack(t, versionOne(tdxPlatform([]byte{1}), pairs{"kind", "dstack", "data", pairs{"report_data", data, "runtime_events", []any{pairs{"event", "e", "payload", []byte{}, "version", 3}}, "config", ""}})), "version 3"},
	} {
		if _, err := ratls.ParseAttestation(row.data); !matches(err, row.fault) {
			t.Errorf("%s: %v, want %q", name, err, row.fault)
		}
	}
}

func FuzzAttestationV1(f *testing.F) {
	f.Add(pack(f, versionOne(tdxPlatform(integers{1, 2, 200}), dstackStack(make([]byte, 64)))))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := ratls.ParseAttestation(data)
		if err != nil {
			return
		}
		if _, err := ratls.ReplayRTMR3(a.RuntimeEvents); err != nil {
			t.Errorf("what was read does not replay: %v", err)
		}
	})
}
