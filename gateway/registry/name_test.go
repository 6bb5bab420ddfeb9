package registry_test

import (
	"strings"
	"testing"

	"dstack.host/gateway/registry"
	"github.com/google/go-cmp/cmp"
)

var (
	hexID     = strings.Repeat("0123456789abcdef", 3)[:40]
	composeID = strings.Repeat("abcdefgh234567", 4)[:51] + "q"
	composeA  = strings.Repeat("s", 51) + "a" // its last letters could be taken for a suffix
	composeHx = "ab" + strings.Repeat("c", 49) + "a"
)

func TestParseLabel(t *testing.T) {
	id := func(port uint16, passthrough, http2 bool) registry.Name {
		return registry.Name{ID: hexID, Kind: registry.KindID, Port: port, Passthrough: passthrough, HTTP2: http2}
	}
	compose := func(s string, port uint16, passthrough, http2 bool) registry.Name {
		return registry.Name{ID: s, Kind: registry.KindCompose, Port: port, Passthrough: passthrough, HTTP2: http2}
	}
	for label, want := range map[string]registry.Name{
		hexID:                                    id(80, false, false),
		strings.ToUpper(hexID):                   id(80, false, false),
		"0x" + hexID:                             id(80, false, false),
		"0X" + strings.ToUpper(hexID):            id(80, false, false),
		hexID + "-8080":                          id(8080, false, false),
		hexID + "-1":                             id(1, false, false),
		hexID + "-65535":                         id(65535, false, false),
		hexID + "-s":                             id(443, true, false),
		hexID + "-g":                             id(80, false, true),
		hexID + "-443s":                          id(443, true, false),
		hexID + "-443S":                          id(443, true, false),
		hexID + "-50051g":                        id(50051, false, true),
		"0x" + hexID + "-50051G":                 id(50051, false, true),
		hexID + "s":                              id(443, true, false),
		hexID + "g":                              id(80, false, true),
		"0x" + hexID + "G":                       id(80, false, true),
		composeID:                                compose(composeID, 80, false, false),
		strings.ToUpper(composeID):               compose(composeID, 80, false, false),
		composeID + "s":                          compose(composeID, 443, true, false),
		composeID + "G":                          compose(composeID, 80, false, true),
		composeID + "-8443s":                     compose(composeID, 8443, true, false),
		composeID + "-65535s":                    compose(composeID, 65535, true, false),
		composeA:                                 compose(composeA, 80, false, false),
		composeA + "s":                           compose(composeA, 443, true, false),
		composeHx:                                compose(composeHx, 80, false, false),
		strings.Repeat("a", 52):                  compose(strings.Repeat("a", 52), 80, false, false),
		strings.Repeat("a", 40):                  {ID: strings.Repeat("a", 40), Kind: registry.KindID, Port: 80},
		"0x" + strings.Repeat("0", 40):           {ID: strings.Repeat("0", 40), Kind: registry.KindID, Port: 80},
		strings.Repeat("0", 40) + "-00g":         {},
		strings.Repeat("0", 40) + "-080":         {},
		"":                                       {},
		"-":                                      {},
		"-80":                                    {},
		"s":                                      {},
		"0x":                                     {},
		"gateway":                                {},
		"www":                                    {},
		"_acme-challenge":                        {},
		"*":                                      {},
		hexID[:39]:                               {},
		hexID + "0":                              {},
		"0x0x" + hexID[4:]:                       {},
		"0x" + "0x" + hexID:                      {},
		hexID[:39] + "x":                         {},
		hexID[:39] + "-":                         {},
		hexID[:39] + "s":                         {},
		"0x" + hexID[:38]:                        {}, // 40 characters, but two of them are 0x
		hexID[:38] + "0x":                        {},
		" " + hexID:                              {},
		hexID + " ":                              {},
		hexID + ".":                              {},
		hexID + "..":                             {},
		hexID + "\x00":                           {},
		hexID + "\n":                             {},
		"\n" + hexID[:39]:                        {},
		hexID + "-":                              {},
		hexID + "--80":                           {},
		hexID + "-80-":                           {},
		hexID + "-80-s":                          {},
		hexID + "-80-81":                         {},
		hexID + "-0":                             {},
		hexID + "-0s":                            {},
		hexID + "-00":                            {},
		hexID + "-080":                           {},
		hexID + "-+80":                           {},
		hexID + "-−80":                           {},
		hexID + "--1":                            {},
		hexID + "-8_0":                           {},
		hexID + "-0x50":                          {},
		hexID + "-8e1":                           {},
		hexID + "- 80":                           {},
		hexID + "-80 ":                           {},
		hexID + "-٨٠":                            {},
		hexID + "-65536":                         {},
		hexID + "-65536s":                        {},
		hexID + "-99999999999999999999":          {},
		hexID + "-18446744073709551696":          {}, // 80 modulo 2^64
		hexID + "-gs":                            {},
		hexID + "-sg":                            {},
		hexID + "-ss":                            {},
		hexID + "-gg":                            {},
		hexID + "-80gs":                          {},
		hexID + "-80sg":                          {},
		hexID + "-s80":                           {},
		hexID + "gs":                             {},
		hexID + "sg":                             {},
		hexID + "s-80":                           {},
		hexID + "80s":                            {},
		hexID + "x":                              {},
		composeID[:51]:                           {},
		composeID[:51] + "b":                     {}, // surplus bits that are not zero
		composeID[:51] + "B":                     {},
		composeID[:51] + "i":                     {},
		composeID[:51] + "=":                     {},
		composeID[:51] + "\n":                    {},
		composeID[:51] + "\r":                    {},
		composeID[:50] + "\nq":                   {},
		composeID[:51] + "1":                     {},
		composeID[:50] + "0q":                    {},
		composeID[:50] + "8q":                    {},
		composeID[:49] + "ſq":                    {}, // two bytes, lower case of S in Unicode
		composeID + "=":                          {},
		composeID + "====":                       {},
		composeID + "a":                          {},
		composeID + "gs":                         {},
		"0x" + composeID:                         {},
		strings.Repeat("0", 64):                  {},
		"0x" + strings.Repeat("0", 64):           {},
		strings.Repeat("0", 64) + "-8080":        {},
		strings.Repeat("a", 63):                  {},
		strings.Repeat("a", 1<<20):               {},
		hexID + "-" + strings.Repeat("9", 1<<20): {},
	} {
		got, err := registry.ParseLabel(label)
		if valid := want != (registry.Name{}); valid != (err == nil) {
			t.Errorf("%.80q: error %v", label, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%.80q (-want +got)\n%s", label, diff)
		}
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("%.80q: error of %d characters", label, len(err.Error()))
		}
		if canonical, ok := registry.CanonicalLabel(label); ok != (err == nil) || canonical != want.ID {
			t.Errorf("%.80q is %q, %t", label, canonical, ok)
		}
	}
}

func TestParseLabelSaysWhatToDo(t *testing.T) {
	for label, want := range map[string]string{
		strings.Repeat("0", 64): "base32",
		hexID + "-":             "<id>-<port>",
		hexID + "-65536":        "65535",
		hexID + "-gs":           "only one",
		composeID[:51] + "b":    "ends with a or q",
		"www":                   "40 hex digits",
	} {
		if _, err := registry.ParseLabel(label); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", label, err, want)
		}
	}
}

func TestParseLabelOfCanonicalIDsDoesNotAllocate(t *testing.T) {
	for _, label := range []string{hexID, hexID + "-8080s", composeID + "-443g"} {
		if n := testing.AllocsPerRun(100, func() { _, _ = registry.ParseLabel(label) }); n > 0 {
			t.Errorf("%q: %v allocations", label, n)
		}
	}
}

func TestComposeHashSpelling(t *testing.T) {
	var h registry.ComposeHash
	for i := range h {
		h[i] = byte(37 * i)
	}
	got, err := registry.ParseComposeHash(strings.ToUpper(h.String()))
	if err != nil || got != h || len(h.String()) != 52 {
		t.Errorf("%s, error %v", got, err)
	}
}

func FuzzParseLabel(f *testing.F) {
	for _, seed := range []string{hexID, "0x" + hexID + "-8080s", composeID, composeID + "-1g", hexID + "-gs", "gateway", hexID + "-65536", composeA + "s"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, label string) {
		n, err := registry.ParseLabel(label)
		if err != nil {
			if n != (registry.Name{}) {
				t.Errorf("%q: %v and an error", label, n)
			}
			return
		}
		if n.Port == 0 || n.Passthrough && n.HTTP2 || len(label) > 63 {
			t.Errorf("%q: %+v", label, n)
		}
		again, err := registry.ParseLabel(n.ID)
		if err != nil || again.ID != n.ID || again.Kind != n.Kind {
			t.Errorf("%q: the canonical id %q is %+v, %v", label, n.ID, again, err)
		}
		for _, other := range []string{strings.ToUpper(label), strings.ToLower(label)} {
			if same, err := registry.ParseLabel(other); err != nil || same != n {
				t.Errorf("%q is %+v, %q is %+v, %v", label, n, other, same, err)
			}
		}
	})
}

func BenchmarkParseLabel(b *testing.B) {
	b.ReportAllocs()
	label := composeID + "-8080s"
	for b.Loop() {
		if _, err := registry.ParseLabel(label); err != nil {
			b.Fatal(err)
		}
	}
}
