package ratls_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/ratls"
)

// runtimeEvent returns a version 1 runtime event as dstack logs it, without a digest.
func runtimeEvent(name string, payload []byte) ratls.Event {
	return ratls.Event{IMR: 3, Type: ratls.RuntimeEventType, Name: name, Payload: payload, Version: 1}
}

func fromHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRuntimeDigestMatchesDstack(t *testing.T) {
	tests := []struct {
		name    string
		event   ratls.Event
		want    string
		wantErr string
	}{
		{
			name:  "version 1",
			event: runtimeEvent("app-id", []byte{0xde, 0xad, 0xbe, 0xef}),
			want:  "67b4be4efed0893cfa2bb1d35dca209ad8348b4c97f980807bcde8b9a0f26398dd0923d6eccb5aa2096d98046da8740f",
		},
		{
			name:  "version 2",
			event: ratls.Event{IMR: 3, Type: ratls.RuntimeEventType, Name: "compose-hash", Payload: []byte{0xab, 0xcd}, Version: 2},
			want:  "9dde1673f544faa94b921825209593ddde08d0baf9cd6990175dffaf3081f1bb10311d56de189491feb33842a050ad7b",
		},
		{
			name:  "a claimed digest changes nothing",
			event: ratls.Event{IMR: 3, Type: ratls.RuntimeEventType, Name: "app-id", Payload: []byte{0xde, 0xad, 0xbe, 0xef}, Digest: make([]byte, 48)},
			want:  "67b4be4efed0893cfa2bb1d35dca209ad8348b4c97f980807bcde8b9a0f26398dd0923d6eccb5aa2096d98046da8740f",
		},
		{name: "boot event", event: ratls.Event{IMR: 0, Type: 10}, wantErr: "not a runtime event"},
		{name: "version 3", event: ratls.Event{IMR: 3, Type: ratls.RuntimeEventType, Version: 3}, wantErr: "version 3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.event.RuntimeDigest()
			if !matches(err, tt.wantErr) {
				t.Fatalf("error %v, want %q", err, tt.wantErr)
			}
			if err == nil && got.String() != tt.want {
				t.Errorf("digest %s, want %s", got, tt.want)
			}
		})
	}
}

// matches reports whether err is nil exactly when want is "", and contains it otherwise.
func matches(err error, want string) bool {
	if err == nil || want == "" {
		return err == nil && want == ""
	}
	return strings.Contains(err.Error(), want)
}

func TestVersion2NamesAreCanonicalJSON(t *testing.T) {
	plain := ratls.Event{Type: ratls.RuntimeEventType, Version: 2}
	seen := map[ratls.Measurement]string{}
	for _, name := range []string{"a", `a"`, `a\`, "a\n", "a\u0001", "é", "<", "\u2028"} {
		plain.Name = name
		// The digest of version 1 over the same text must differ, and encoding/json must be able to read the preimage back.
		digest, err := plain.RuntimeDigest()
		if err != nil {
			t.Fatal(err)
		}
		if other, twice := seen[digest]; twice {
			t.Errorf("%q and %q have one digest", name, other)
		}
		seen[digest] = name
		var back struct{ Name string }
		if err := json.Unmarshal(ratls.Preimage(plain), &back); err != nil || back.Name != name {
			t.Errorf("preimage of %q reads back as %q, %v", name, back.Name, err)
		}
	}
	plain.Name = "<\u2028é\u001f\t"
	want := "{\"name\":\"<\u2028é\\u001f\\t\",\"payload\":\"\",\"type\":134217729}"
	if got := string(ratls.Preimage(plain)); got != want {
		t.Errorf("preimage %s, want %s", got, want)
	}
}

func TestReplayRTMR3(t *testing.T) {
	appID := runtimeEvent("app-id", []byte{0xde, 0xad, 0xbe, 0xef})
	const replayed = "9f1bcb9c4dcada1710bf9612197f4e380a9259241b597f1b834c9b3d9f30ae0569950a92ca118e9d7697d893ea4b6d56"
	digest, err := appID.RuntimeDigest()
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*ratls.Event)) ratls.Event {
		e := appID
		change(&e)
		return e
	}
	tests := []struct {
		name    string
		events  []ratls.Event
		want    string
		wantErr string
	}{
		{name: "nothing", want: strings.Repeat("00", 48)},
		{name: "one event", events: []ratls.Event{appID}, want: replayed},
		{name: "its digest stated", events: []ratls.Event{with(func(e *ratls.Event) { e.Digest = digest[:] })}, want: replayed},
		{
			name:   "boot events are passed over",
			events: []ratls.Event{{IMR: 0, Type: 10, Digest: make([]byte, 48)}, appID, {IMR: 3, Type: 4, Digest: make([]byte, 48)}},
			want:   replayed,
		},
		{
			name:   "a runtime event of another register is passed over",
			events: []ratls.Event{appID, with(func(e *ratls.Event) { e.IMR = 2 })},
			want:   replayed,
		},
		{name: "a contradicting digest", events: []ratls.Event{with(func(e *ratls.Event) { e.Digest = make([]byte, 48) })}, wantErr: "the log states digest"},
		{name: "a short digest", events: []ratls.Event{with(func(e *ratls.Event) { e.Digest = digest[:47] })}, wantErr: "the log states digest"},
		{name: "a contradicting preimage", events: []ratls.Event{with(func(e *ratls.Event) { e.Preimage = []byte("x") })}, wantErr: "preimage"},
		{name: "an unknown version", events: []ratls.Event{with(func(e *ratls.Event) { e.Version = 9 })}, wantErr: "version 9"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ratls.ReplayRTMR3(tt.events)
			if !matches(err, tt.wantErr) {
				t.Fatalf("error %v, want %q", err, tt.wantErr)
			}
			if err == nil && got.String() != tt.want {
				t.Errorf("RTMR3 %s, want %s", got, tt.want)
			}
		})
	}
}

const oneEvent = `{"imr":3,"event_type":134217729,"digest":"","event":"app-id","event_payload":"deadbeef"}`

func TestParseEventLog(t *testing.T) {
	tests := []struct {
		name    string
		log     string
		want    []ratls.Event
		wantErr string
	}{
		{name: "empty", log: `[]`, want: []ratls.Event{}},
		{name: "runtime event", log: `[` + oneEvent + `]`, want: []ratls.Event{{IMR: 3, Type: ratls.RuntimeEventType, Digest: []byte{}, Name: "app-id", Payload: fromHex(t, "deadbeef"), Version: 1}}},
		{
			name: "version 2 with a preimage",
			log:  `[{"imr":3,"event_type":134217729,"digest":"AB","event":"e","event_payload":"","version":2,"preimage":"7b7d"}]`,
			want: []ratls.Event{{IMR: 3, Type: ratls.RuntimeEventType, Digest: []byte{0xab}, Name: "e", Payload: []byte{}, Version: 2, Preimage: []byte("{}")}},
		},
		{name: "no array", log: `{}`, wantErr: "cannot unmarshal"},
		{name: "null", log: `null`, wantErr: "null where a value is needed"},
		{name: "null event", log: `[null]`, wantErr: "null where a value is needed"},
		{name: "null payload", log: strings.Replace(`[`+oneEvent+`]`, `"deadbeef"`, `null`, 1), wantErr: "event_payload is null"},
		{name: "truncated", log: `[` + oneEvent, wantErr: "unexpected EOF"},
		{name: "cut in a string", log: `[` + oneEvent[:30], wantErr: "unexpected EOF"},
		{name: "two logs", log: `[][]`, wantErr: "followed by more data"},
		{name: "duplicate member", log: `[{"imr":3,"imr":0,"event_type":1,"digest":"","event":"","event_payload":""}]`, wantErr: "occurs twice"},
		{name: "duplicate member by case", log: `[{"imr":3,"IMR":0,"event_type":1,"digest":"","event":"","event_payload":""}]`, wantErr: `has to be written "imr"`},
		{name: "unknown member", log: `[{"imr":3,"event_type":1,"digest":"","event":"","event_payload":"","hash":"x"}]`, wantErr: "not a known member"},
		{name: "missing member", log: `[{"imr":3,"event_type":1,"digest":"","event":""}]`, wantErr: "event_payload is missing"},
		{name: "fifth register", log: strings.Replace(`[`+oneEvent+`]`, `:3`, `:4`, 1), wantErr: "extends RTMR 4"},
		{name: "negative register", log: strings.Replace(`[`+oneEvent+`]`, `:3`, `:-1`, 1), wantErr: "cannot unmarshal"},
		{name: "type of 33 bits", log: strings.Replace(`[`+oneEvent+`]`, `134217729`, `4294967296`, 1), wantErr: "cannot unmarshal"},
		{name: "odd hex", log: strings.Replace(`[`+oneEvent+`]`, `deadbeef`, `dea`, 1), wantErr: "not hex"},
		{name: "prefixed hex", log: strings.Replace(`[`+oneEvent+`]`, `deadbeef`, `0xde`, 1), wantErr: "not hex"},
		{name: "version 3", log: strings.Replace(`[`+oneEvent+`]`, `}`, `,"version":3}`, 1), wantErr: "version 3 is unknown"},
		{name: "huge digest", log: strings.Replace(`[`+oneEvent+`]`, `"digest":""`, `"digest":"`+strings.Repeat("00", 65)+`"`, 1), wantErr: "digest has 65 bytes"},
		{name: "huge name", log: strings.Replace(`[`+oneEvent+`]`, `app-id`, strings.Repeat("a", 1025), 1), wantErr: "name has 1025 bytes"},
		{name: "huge payload", log: strings.Replace(`[`+oneEvent+`]`, `deadbeef`, strings.Repeat("00", 1<<20+1), 1), wantErr: "payload has 1048577 bytes"},
		{name: "too many events", log: `[` + strings.Repeat(oneEvent+",", 4096) + oneEvent + `]`, wantErr: "4097 events"},
		{name: "too long", log: strings.Repeat(" ", 4<<20+1), wantErr: "longer than the limit"},
		{name: "too deep", log: strings.Repeat("[", 100), wantErr: "nested deeper"},
		{name: "invalid UTF-8", log: "[\"\xff\"]", wantErr: "UTF-8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ratls.ParseEventLog([]byte(tt.log))
			if !matches(err, tt.wantErr) {
				t.Fatalf("error %v, want %q", err, tt.wantErr)
			}
			if diff := cmp.Diff(tt.want, got); err == nil && diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestStripEventsKeepsWhatCertificatesCarry(t *testing.T) {
	runtime := runtimeEvent("app-id", []byte{1})
	measured := runtime
	measured.Digest = make([]byte, 48)
	acpi := ratls.Event{IMR: 0, Type: 10, Digest: make([]byte, 48), Payload: []byte("ACPI DATA")}
	got := ratls.StripEvents([]ratls.Event{
		{IMR: 0, Type: 10, Payload: []byte("other")},
		acpi,
		{IMR: 1, Type: 4, Payload: []byte("kernel")},
		measured,
		{IMR: 3, Type: 4, Digest: []byte{1}, Payload: []byte("boot")},
	})
	want := []ratls.Event{acpi, runtime, {IMR: 3, Type: 4, Digest: []byte{1}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stripped (-want +got):\n%s", diff)
	}
}

func FuzzEventLog(f *testing.F) {
	f.Add([]byte(`[]`))
	f.Add([]byte(`[` + oneEvent + `]`))
	f.Add([]byte(`[{"imr":3,"event_type":134217729,"digest":"ab","event":"\u00e9","event_payload":"","version":2,"preimage":"7b7d"}]`))
	f.Add([]byte(`[{"imr":3,"imr":3}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		events, err := ratls.ParseEventLog(data)
		if err != nil {
			return
		}
		_, _ = ratls.ReplayRTMR3(events)
		text, err := json.Marshal(events)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ratls.ParseEventLog(text)
		if err != nil {
			t.Fatalf("own output %s: %v", text, err)
		}
		if diff := cmp.Diff(fmt.Sprint(events), fmt.Sprint(again)); diff != "" {
			t.Errorf("round trip (-first +second):\n%s", diff)
		}
	})
}
