package prpc_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/prpc"
)

// outer has a field of every kind.
type outer struct {
	Text    string   `json:"text" prpc:"1"`
	Inner   *inner   `json:"inner" prpc:"2"`
	Small   uint32   `json:"small" prpc:"3"`
	Large   uint64   `json:"large" prpc:"4"`
	Bytes   []byte   `json:"bytes" prpc:"5"`
	List    []inner  `json:"list" prpc:"6"`
	Texts   []string `json:"texts" prpc:"7"`
	Always  inner    `json:"always" prpc:"8"`
	Distant bool     `json:"distant" prpc:"1000"`
	Private string   `json:"private"`
}

type inner struct {
	Port uint32 `json:"port" prpc:"1"`
	Flag bool   `json:"flag" prpc:"2"`
}

// TestTheWireFormatIsThatOfProto3 holds messages to octets that were written down by hand from the encoding's specification.
func TestTheWireFormatIsThatOfProto3(t *testing.T) {
	for _, row := range []struct {
		name string
		m    outer
		wire string
	}{
		{"nothing", outer{}, ""},
		{"text", outer{Text: "ab"}, "0a026162"},
		{"message that is there and empty", outer{Inner: &inner{}}, "1200"},
		{"message", outer{Inner: &inner{Port: 443, Flag: true}}, "120508bb031001"},
		{"numbers", outer{Small: 0xffffffff, Large: 1 << 63}, "18ffffffff0f2080808080808080808001"},
		{"octets", outer{Bytes: []byte{0xff, 0}}, "2a02ff00"},
		{"list with a zero item", outer{List: []inner{{}, {Port: 1}}}, "320032020801"},
		{"list of texts", outer{Texts: []string{"", "x"}}, "3a003a0178"},
		{"message without a pointer", outer{Always: inner{Flag: true}}, "42021001"},
		{"field number of two octets", outer{Distant: true}, "c03e01"},
		{"no field of the schema", outer{Private: "x"}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := hex.EncodeToString(prpc.Marshal(&row.m)); got != row.wire {
				t.Errorf("wrote %s, want %s", got, row.wire)
			}
			var got outer
			if err := prpc.Unmarshal(octets(t, row.wire), &got); err != nil {
				t.Fatal(err)
			}
			row.m.Private = ""
			if diff := cmp.Diff(row.m, got); diff != "" {
				t.Errorf("read (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadingForgivesWhatProto3Forgives(t *testing.T) {
	for _, row := range []struct {
		name, wire string
		want       outer
	}{
		{"unknown fields of every type", "f80601" + "f10601020304050607 08" + "f20601aa" + "f50601020304" + "f306f8060 1f406", outer{}},
		{"the last one counts", "0a0161" + "0a0162", outer{Text: "b"}},
		{"messages merge", "12020805" + "12021001", outer{Inner: &inner{Port: 5, Flag: true}}},
		{"a number that is too long is cut", "1881808080 10", outer{Small: 1}},
		{"a bool of 2", "c03e02", outer{Distant: true}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var got outer
			if err := prpc.Unmarshal(octets(t, row.wire), &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("read (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHostileMessagesAreRefused(t *testing.T) {
	for name, wire := range map[string]string{
		"tag cut short":                    "80",
		"field number 0":                   "0001",
		"field number too large":           "f8ffffffffffffffff01 01",
		"text longer than the message":     "0a7f61",
		"length of 2^63":                   "0affffffffffffffffff01",
		"text that is not UTF-8":           "0a01ff",
		"text as a number":                 "0801",
		"number as text":                   "1a0161",
		"number cut short":                 "18ff",
		"number of eleven octets":          "18ffffffffffffffffffff01",
		"message cut short":                "12050801",
		"broken inside a message":          "120108",
		"broken inside a list":             "320108",
		"wrong type inside a message":      "12020a00",
		"end of a group that nobody began": "0c",
		"group that never ends":            "f306",
	} {
		t.Run(name, func(t *testing.T) {
			if err := prpc.Unmarshal(octets(t, wire), new(outer)); err == nil {
				t.Error("taken")
			}
		})
	}
}

// FuzzMessage reads what strangers send; what is read is written, and read again, alike.
func FuzzMessage(f *testing.F) {
	for _, seed := range []string{"", "0a026162", "120508bb031001", "320032020801", "c03e01", "18ffffffff0f", "f306f80601f406", "0affffffffffffffffff01"} {
		b, _ := hex.DecodeString(seed)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var first, second outer
		if prpc.Unmarshal(data, &first) != nil {
			return
		}
		wire := prpc.Marshal(&first)
		if err := prpc.Unmarshal(wire, &second); err != nil {
			t.Fatal(err)
		}
		if again := prpc.Marshal(&second); !bytes.Equal(wire, again) {
			t.Errorf("%x became %x", wire, again)
		}
	})
}

func octets(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(text), []byte(" "), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
