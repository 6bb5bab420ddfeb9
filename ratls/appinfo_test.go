package ratls_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/ratls"
)

// dstackAppInfo is the MessagePack that a dstack KMS up to 0.5.11 writes: eight elements; later ones write nine.
const dstackAppInfo = "98" + "c414" + "1111111111111111111111111111111111111111" +
	"c420" + "2222222222222222222222222222222222222222222222222222222222222222" +
	"c414" + "3333333333333333333333333333333333333333" +
	"c420" + "4444444444444444444444444444444444444444444444444444444444444444" +
	"c420" + "5555555555555555555555555555555555555555555555555555555555555555" +
	"c420" + "6666666666666666666666666666666666666666666666666666666666666666" +
	"c420" + "7777777777777777777777777777777777777777777777777777777777777777" +
	"c418" + "7b226e616d65223a226b6d73222c226964223a223030227d"

func TestAppInfoReadsBothLengthsOfDstack(t *testing.T) {
	short := fromHex(t, dstackAppInfo)
	long := append([]byte{0x99}, short[1:]...)
	hash := bytes.Repeat([]byte{0x88}, 32)
	for name, row := range map[string]struct {
		data    []byte
		scripts []ratls.Hex
	}{
		"eight":                  {short, nil},
		"nine, no list":          {append(bytes.Clone(long), 0xc0), nil},
		"nine, an empty list":    {append(bytes.Clone(long), 0x90), []ratls.Hex{}},
		"nine, one script":       {append(append(bytes.Clone(long), 0x91, 0xc4, 0x20), hash...), []ratls.Hex{hash}},
		"bytes as integers, too": {bytes.Replace(short, append([]byte{0xc4, 0x14}, bytes.Repeat([]byte{0x11}, 20)...), append([]byte{0xdc, 0, 20}, bytes.Repeat([]byte{0x11}, 20)...), 1), nil},
	} {
		var info ratls.AppInfo
		if err := info.UnmarshalBinary(row.data); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if hex.EncodeToString(info.AppID) != strings.Repeat("11", 20) || hex.EncodeToString(info.InstanceID) != strings.Repeat("33", 20) || string(info.KeyProviderInfo) != `{"name":"kms","id":"00"}` {
			t.Errorf("%s: read %+v", name, info)
		}
		if diff := cmp.Diff(row.scripts, info.InitScriptHashes); diff != "" {
			t.Errorf("%s: init scripts (-want +got):\n%s", name, diff)
		}
	}
}

func TestAppInfoRefuses(t *testing.T) {
	short := fromHex(t, dstackAppInfo)
	edit := func(f func([]byte) []byte) []byte { return f(bytes.Clone(short)) }
	for name, data := range map[string][]byte{
		"nothing":              {},
		"seven elements":       edit(func(b []byte) []byte { b[0] = 0x97; return b }),
		"ten elements":         edit(func(b []byte) []byte { b[0] = 0x9a; return b }),
		"a map":                edit(func(b []byte) []byte { b[0] = 0x88; return b }),
		"cut off":              short[:len(short)-1],
		"more behind":          append(bytes.Clone(short), 0),
		"an app id of 19":      edit(func(b []byte) []byte { b[2] = 0x13; return append(b[:3], b[4:]...) }),
		"text for bytes":       edit(func(b []byte) []byte { b[1] = 0xd9; return b }),
		"a length of 4 GiB":    append([]byte{0x98, 0xc6, 0xff, 0xff, 0xff, 0xff}, short[3:]...),
		"an array of 4 Gi":     append([]byte{0x98, 0xdd, 0xff, 0xff, 0xff, 0xff}, short[3:]...),
		"six init scripts":     append(append([]byte{0x99}, short[1:]...), append([]byte{0x96}, bytes.Repeat(append([]byte{0xc4, 0x20}, make([]byte, 32)...), 6)...)...),
		"longer than 64 KiB":   append([]byte{0x98}, make([]byte, 65<<10)...),
		"a million-deep array": bytes.Repeat([]byte{0x91}, 60<<10),
	} {
		info := ratls.AppInfo{AppID: ratls.Hex{1}}
		if err := info.UnmarshalBinary(data); err == nil {
			t.Errorf("%s: accepted as %+v", name, info)
		} else if !bytes.Equal(info.AppID, []byte{1}) {
			t.Errorf("%s: changed the value although it was refused", name)
		}
	}
}

func TestAppInfoCostsWhatItHolds(t *testing.T) {
	for name, data := range map[string][]byte{
		"bytes that claim 3 GiB":   append([]byte{0x98, 0xc6, 0xc6, 0xc6, 0xc6, 0xc6}, make([]byte, 100)...),
		"an array that claims 4 G": append([]byte{0x98, 0xdd, 0xff, 0xff, 0xff, 0xff}, make([]byte, 100)...),
	} {
		result := testing.Benchmark(func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = new(ratls.AppInfo).UnmarshalBinary(data)
			}
		})
		if got := result.AllocedBytesPerOp(); got > 64<<10 {
			t.Errorf("%s: %d bytes are allocated for %d", name, got, len(data))
		}
	}
}

func TestAppInfoRoundTrips(t *testing.T) {
	var info, again ratls.AppInfo
	if err := info.UnmarshalBinary(fromHex(t, dstackAppInfo)); err != nil {
		t.Fatal(err)
	}
	data, err := info.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if err := again.UnmarshalBinary(data); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(info, again); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAppInfoIsWhatWasMeasured(t *testing.T) {
	a := vendor(t)
	td := boot(t, a, machine{}, vm{AppCompose: `{"name":"x"}`, KeyProvider: `{"name":"kms","id":"00"}`})
	raw := quote(t, td)
	q, err := verifier(t, a, a.Getter(), ratls.Policy{}).Verify(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	events, err := td.EventLog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info, err := ratls.DecodeAppInfo(q, events, td.VMConfig())
	if err != nil {
		t.Fatal(err)
	}
	compose := sha256.Sum256([]byte(`{"name":"x"}`))
	provider := sha256.Sum256([]byte(`{"name":"kms","id":"00"}`))
	system := sha256.Sum256(bytes.Join([][]byte{q.MRTD[:], q.RTMR[0][:], q.RTMR[1][:], q.RTMR[2][:], provider[:]}, nil))
	aggregated := sha256.Sum256(bytes.Join([][]byte{q.MRTD[:], q.RTMR[0][:], q.RTMR[1][:], q.RTMR[2][:], q.RTMR[3][:]}, nil))
	device := sha256.Sum256(q.PPID)
	for name, pair := range map[string][2][]byte{
		"compose hash": {info.ComposeHash, compose[:]}, "app id": {info.AppID, compose[:20]}, "device id": {info.DeviceID, device[:]},
		"mr_system": {info.MRSystem, system[:]}, "mr_aggregated": {info.MRAggregated, aggregated[:]},
	} {
		if !bytes.Equal(pair[0], pair[1]) {
			t.Errorf("%s is %x, want %x", name, pair[0], pair[1])
		}
	}
	text, err := json.Marshal(info)
	if err != nil || !strings.Contains(string(text), `"app_id":"`+hex.EncodeToString(compose[:20])+`"`) {
		t.Errorf("JSON %s (%v)", text, err)
	}
}

// events of a made-up boot, as a log that replays.
func bootLog(extra ...ratls.Event) []ratls.Event {
	return append([]ratls.Event{
		runtimeEvent("system-preparing", nil),
		runtimeEvent("app-id", bytes.Repeat([]byte{1}, 20)),
		runtimeEvent("compose-hash", bytes.Repeat([]byte{2}, 32)),
		runtimeEvent("instance-id", bytes.Repeat([]byte{3}, 20)),
	}, extra...)
}

func TestAppInfoBelievesOnlyWhatBootMeasuredFirst(t *testing.T) {
	second := runtimeEvent("app-id", bytes.Repeat([]byte{9}, 20))
	ready := runtimeEvent("system-ready", nil)
	for name, row := range map[string]struct {
		events []ratls.Event
		fault  string
	}{
		"sound":                              {bootLog(ready), ""},
		"a second app id":                    {bootLog(second, ready), ""},
		"an app id after system-ready":       {bootLog(ready, second), ""},
		"a boot event of that name":          {append([]ratls.Event{{IMR: 3, Type: 1, Name: "app-id", Payload: bytes.Repeat([]byte{9}, 20)}}, bootLog(ready)...), ""},
		"an event of that name in another":   {append([]ratls.Event{{IMR: 2, Type: ratls.RuntimeEventType, Name: "app-id", Payload: bytes.Repeat([]byte{9}, 20)}}, bootLog(ready)...), ""},
		"no app id":                          {bootLog()[2:], "app id has 0 bytes"},
		"system-ready before everything":     {append([]ratls.Event{ready}, bootLog()...), "app id has 0 bytes"},
		"a compose hash of the wrong length": {[]ratls.Event{bootLog()[1], runtimeEvent("compose-hash", []byte{1})}, "compose hash has 1 bytes"},
	} {
		rtmr, err := ratls.ReplayRTMR3(row.events)
		if err != nil {
			t.Fatal(err)
		}
		info, err := ratls.DecodeAppInfo(&ratls.Quote{RTMR: [4]ratls.Measurement{3: rtmr}}, row.events, "")
		if !matches(err, row.fault) {
			t.Errorf("%s: %v, want %q", name, err, row.fault)
		}
		if err == nil && !bytes.Equal(info.AppID, bytes.Repeat([]byte{1}, 20)) {
			t.Errorf("%s: app id %x", name, info.AppID)
		}
	}
	if _, err := ratls.DecodeAppInfo(&ratls.Quote{}, bootLog(), ""); refusedBy(err) != ratls.CheckReplay {
		t.Errorf("a log that does not replay: %v", err)
	}
	rtmr, _ := ratls.ReplayRTMR3(bootLog())
	if _, err := ratls.DecodeAppInfo(&ratls.Quote{RTMR: [4]ratls.Measurement{3: rtmr}}, bootLog()[:3], ""); refusedBy(err) != ratls.CheckReplay {
		t.Errorf("a truncated log: %v", err)
	}
}

func TestOSImageHashIsReadFromBothForms(t *testing.T) {
	rtmr, err := ratls.ReplayRTMR3(bootLog())
	if err != nil {
		t.Fatal(err)
	}
	for text, row := range map[string]struct{ hash, fault string }{
		``:                         {"", ""},
		`{}`:                       {"", ""},
		`{"os_image_hash":"aabb"}`: {"aabb", ""},
		`{"os_image_hash":"ffff","vm_config":"{\"os_image_hash\":\"aabb\"}"}`: {"aabb", ""},
		`{"os_image_hash":null}`:                      {"", ""},
		`{"os_image_hash":"zz"}`:                      {"", "vm config"},
		`{"os_image_hash":"aa","os_image_hash":"bb"}`: {"", "occurs twice"},
		`not JSON`:                             {"", "vm config"},
		`{"a":` + strings.Repeat(`[`, 100):     {"", "nested deeper"},
		`"` + strings.Repeat("x", 2<<20) + `"`: {"", "longer than the limit"},
	} {
		info, err := ratls.DecodeAppInfo(&ratls.Quote{RTMR: [4]ratls.Measurement{3: rtmr}}, bootLog(), text)
		if !matches(err, row.fault) {
			t.Errorf("%.60s: %v, want %q", text, err, row.fault)
		} else if hex.EncodeToString(info.OSImageHash) != row.hash {
			t.Errorf("%.60s: %x, want %s", text, info.OSImageHash, row.hash)
		}
	}
}
