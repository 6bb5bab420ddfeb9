package registry_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"dstack.host/gateway/registry"
	"dstack.host/ratls"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// full is an instance with everything in it.
func full() registry.Instance {
	inst := instance(1, 1)
	inst.Ports = &registry.PortPolicy{Restrict: true, Ports: []registry.Port{{Port: 8080}, {Port: 443, Proxy: true}}}
	inst.Identity = "ratls-v0"
	inst.Evidence = []byte(`{"quote": "…", "n":  1}`)
	inst.EvidenceAt = time.Unix(1_700_000_000, 0).UTC()
	inst.RegisteredAt = time.Unix(1_600_000_000, 0).UTC()
	inst.Info = ratls.AppInfo{AppID: inst.App[:], InstanceID: inst.ID[:], ComposeHash: inst.Compose[:], DeviceID: ratls.Hex{1}}
	return inst
}

var compareInstances = cmp.Options{
	cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b registry.Instance) bool { return a.Addr == b.Addr && equalRecords(a, b) }),
}

func equalRecords(a, b registry.Instance) bool {
	x, errX := registry.Encode(&a)
	y, errY := registry.Encode(&b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func TestRecordsRoundTrip(t *testing.T) {
	minimal := instance(2, 2)
	open := instance(3, 3)
	open.Ports = &registry.PortPolicy{}
	for name, inst := range map[string]registry.Instance{"full": full(), "minimal": minimal, "open policy": open} {
		data, err := registry.Encode(&inst)
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := registry.Decode(data)
		if err != nil {
			t.Fatal(name, err)
		}
		if !equalRecords(inst, *got) || got.ID != inst.ID || got.Key != inst.Key || !bytes.Equal(got.Evidence, inst.Evidence) {
			t.Errorf("%s: %s", name, cmp.Diff(inst, *got, compareInstances))
		}
		if (got.Ports == nil) != (inst.Ports == nil) || (got.Evidence == nil) != (inst.Evidence == nil) {
			t.Errorf("%s: nil has become something else", name)
		}
	}
}

// change returns the record of full with one member replaced; "" removes it.
func change(t *testing.T, member, value string) []byte {
	t.Helper()
	inst := full()
	data, err := registry.Encode(&inst)
	if err != nil {
		t.Fatal(err)
	}
	line, evidence, _ := bytes.Cut(data, []byte("\n"))
	var members map[string]json.RawMessage
	if err := json.Unmarshal(line, &members); err != nil {
		t.Fatal(err)
	}
	delete(members, member)
	if value != "" {
		members[member] = json.RawMessage(value)
	}
	line, err = json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return append(append(line, '\n'), evidence...)
}

func TestUnusableRecordsAreRefused(t *testing.T) {
	good := change(t, "none", "")
	if _, err := registry.Decode(good); err != nil {
		t.Fatal(err)
	}
	zeros := func(n int) string { return `"` + strings.Repeat("0", n) + `"` }
	for name, data := range map[string][]byte{
		"nothing":               nil,
		"null":                  []byte("null"),
		"a list":                []byte("[]"),
		"not JSON":              []byte("\x00\x01"),
		"no line feed":          good[:bytes.IndexByte(good, '\n')],
		"cut off":               append(bytes.Clone(good[:bytes.IndexByte(good, '\n')-1]), '\n'),
		"followed by more":      bytes.Replace(good, []byte("\n"), []byte("{}\n"), 1),
		"line feed in front":    append([]byte("\n"), good...),
		"large evidence":        append(bytes.Clone(good), make([]byte, registry.MaxEvidence)...),
		"newer version":         change(t, "version", "2"),
		"no version":            change(t, "version", ""),
		"version null":          change(t, "version", "null"),
		"version as text":       change(t, "version", `"1"`),
		"unknown member":        change(t, "colour", "1"),
		"member twice":          bytes.Replace(good, []byte("{"), []byte(`{"version":1,`), 1),
		"member in other case":  bytes.Replace(good, []byte(`"identity"`), []byte(`"Identity"`), 1),
		"no id":                 change(t, "instance_id", ""),
		"id null":               change(t, "instance_id", "null"),
		"id of zeros":           change(t, "instance_id", zeros(40)),
		"short id":              change(t, "instance_id", zeros(38)),
		"id as list":            change(t, "instance_id", "[1]"),
		"app of zeros":          change(t, "app_id", zeros(40)),
		"compose hash in hex":   change(t, "compose_hash", zeros(64)),
		"key missing":           change(t, "wg_public_key", ""),
		"key empty":             change(t, "wg_public_key", `""`),
		"key short":             change(t, "wg_public_key", `"AAAA"`),
		"key of zeros":          change(t, "wg_public_key", `"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="`),
		"address missing":       change(t, "address", ""),
		"address empty":         change(t, "address", `""`),
		"address a name":        change(t, "address", `"localhost"`),
		"address with prefix":   change(t, "address", `"10.0.0.1/24"`),
		"port 0":                change(t, "port_policy", `{"restrict":true,"ports":[{"port":0,"proxy":false}]}`),
		"port 65536":            change(t, "port_policy", `{"restrict":true,"ports":[{"port":65536,"proxy":false}]}`),
		"port -1":               change(t, "port_policy", `{"restrict":true,"ports":[{"port":-1,"proxy":false}]}`),
		"port twice":            change(t, "port_policy", `{"restrict":true,"ports":[{"port":1,"proxy":false},{"port":1,"proxy":true}]}`),
		"ports null":            change(t, "port_policy", `{"restrict":true,"ports":null}`),
		"policy without ports":  change(t, "port_policy", `{"restrict":true}`),
		"too many ports":        change(t, "port_policy", `{"restrict":true,"ports":[`+strings.Repeat(`{"port":1,"proxy":false},`, 1024)+`{"port":1,"proxy":false}]}`),
		"long identity":         change(t, "identity", `"`+strings.Repeat("x", 33)+`"`),
		"identity null":         change(t, "identity", "null"),
		"time as number":        change(t, "registered_at", "1"),
		"app info of other app": change(t, "app_info", `"x"`),
		"deep":                  change(t, "app_info", strings.Repeat("[", 100)+strings.Repeat("]", 100)),
	} {
		if inst, err := registry.Decode(data); err == nil {
			t.Errorf("%s: %+v", name, inst)
		}
	}
}

func TestOwnersAndChallengesAreDecodedStrictly(t *testing.T) {
	id := strings.Repeat("a", 40)
	if got, err := registry.DecodeOwner([]byte(`{"version":1,"instance_id":"` + id + `"}`)); err != nil || got.String() != id {
		t.Errorf("%s, error %v", got, err)
	}
	if got, err := registry.DecodeChallenge([]byte(`{"version":1,"name":"a.example","value":"x"}`)); err != nil || got.Name != "a.example" || got.Value != "x" {
		t.Errorf("%v, error %v", got, err)
	}
	for _, data := range []string{"", "null", `{"version":1}`, `{"version":1,"instance_id":null}`, `{"version":2,"instance_id":"` + id + `"}`} {
		if _, err := registry.DecodeOwner([]byte(data)); err == nil {
			t.Errorf("owner %s", data)
		}
	}
	for _, data := range []string{
		"", "null", `{"version":1,"name":"a.example"}`, `{"version":1,"name":"","value":"x"}`, `{"version":1,"name":"a.example","value":""}`,
		`{"version":1,"name":"A.example","value":"x"}`, `{"version":1,"name":"a.example.","value":"x"}`, `{"version":1,"name":"a b","value":"x"}`,
		`{"version":1,"name":"a.example","value":"` + strings.Repeat("x", 256) + `"}`, `{"version":1,"name":"a.example","value":"\n"}`,
	} {
		if _, err := registry.DecodeChallenge([]byte(data)); err == nil {
			t.Errorf("challenge %s", data)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, inst := range []registry.Instance{full(), instance(2, 2)} {
		data, err := registry.Encode(&inst)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("null"))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		inst, err := registry.Decode(data)
		if err != nil {
			return
		}
		again, err := registry.Encode(inst)
		if err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if same, err := registry.Decode(again); err != nil || !equalRecords(*inst, *same) {
			t.Errorf("%s becomes %s: %v", data, again, err)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	inst := full()
	inst.Evidence = bytes.Repeat([]byte("e"), 30_000)
	data, err := registry.Encode(&inst)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := registry.Decode(data); err != nil {
			b.Fatal(err)
		}
	}
}
