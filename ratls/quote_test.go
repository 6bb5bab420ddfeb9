package ratls_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"dstack.host/ratls"
)

// Offsets in a quote of version 4 and of version 5 with a TDX 1.5 body.
const (
	signedSize4 = 48 + 584
	signedSize5 = 48 + 6 + 648
	authSize4   = signedSize4 + 4 + 64 + 64 + 6 + 384 + 64
)

// put32 returns a copy of raw with a little-endian number at offset.
func put32(raw []byte, offset int, value uint32) []byte {
	raw = slices.Clone(raw)
	binary.LittleEndian.PutUint32(raw[offset:], value)
	return raw
}

// put16 is put32 for two bytes.
func put16(raw []byte, offset int, value uint16) []byte {
	raw = slices.Clone(raw)
	binary.LittleEndian.PutUint16(raw[offset:], value)
	return raw
}

// hostileQuotes are bytes that are no quote; go-tdx-guest panics at those whose name says so.
func hostileQuotes(t testing.TB) map[string][]byte {
	authority := vendor(t)
	v4 := quote(t, boot(t, authority, machine{}, vm{}))
	v5 := quote(t, boot(t, authority, machine{Version: 5}, vm{}))
	return map[string][]byte{
		"nothing":                                nil,
		"one byte":                               {4},
		"header only":                            v4[:48],
		"version 3":                              put16(v4, 0, 3),
		"version 6":                              put16(v4, 0, 6),
		"SGX":                                    put32(v4, 4, 0),
		"other key type":                         put16(v4, 2, 3),
		"cut in the certificates":                v4[:len(v4)-1],
		"panic: signed data of size 0":           put32(v4, signedSize4, 0),
		"panic: signed data of size 0x7f":        put32(v4, signedSize4, 0x7f),
		"signed data of size 0xffffffff":         put32(v4, signedSize4, 0xffffffff),
		"panic: auth data of size 0xffff":        put16(v4, authSize4, 0xffff),
		"panic: v5, signed data of size -1":      put32(v5, signedSize5, 0xffffffff),
		"v5, signed data of size 0":              put32(v5, signedSize5, 0),
		"v5, unknown body":                       put16(v5, 48, 9),
		"v5, TDX 1.0 body of the wrong size":     put16(v5, 48, 2),
		"v5, body size 0xffffffff":               put32(v5, 50, 0xffffffff),
		"certification data of another type":     put16(v4, signedSize4+4+128, 5),
		"certification data of size 0":           put32(v4, signedSize4+4+130, 0),
		"no certificates":                        put32(v4, authSize4+2+32+2, 0),
		"text behind":                            append(slices.Clone(v4), "text"...),
		"padding and text behind":                append(slices.Clone(v4), 0, 0, 'x'),
		"too long":                               append(slices.Clone(v4), make([]byte, 32<<10)...),
		"two quotes":                             append(slices.Clone(v4), v4...),
		"as many zeros as a quote has bytes":     make([]byte, len(v4)),
		"as many 0xff as a quote has bytes":      bytes.Repeat([]byte{0xff}, len(v4)),
		"version 4 and otherwise 0xff":           put16(bytes.Repeat([]byte{0xff}, len(v4)), 0, 4),
		"version 5 and otherwise 0xff":           put16(bytes.Repeat([]byte{0xff}, len(v4)), 0, 5),
		"version 4 with the length of version 5": put16(v5, 0, 4),
	}
}

func TestParseQuoteRefusesHostileBytes(t *testing.T) {
	authority := vendor(t)
	v := verifier(t, authority, authority.Getter(), ratls.Policy{})
	for name, raw := range hostileQuotes(t) {
		t.Run(name, func(t *testing.T) {
			if q, err := ratls.ParseQuote(raw); refusedBy(err) != ratls.CheckQuoteParse || q != nil || len(err.Error()) > 500 {
				t.Errorf("ParseQuote: %v", err)
			}
			if q, err := v.Verify(t.Context(), raw); refusedBy(err) != ratls.CheckQuoteParse || q != nil {
				t.Errorf("Verify: %v", err)
			}
			if list, err := v.Collateral(t.Context(), raw); refusedBy(err) != ratls.CheckQuoteParse || list != nil {
				t.Errorf("Collateral: %v", err)
			}
		})
	}
}

func TestVerifyRefusesBrokenCertificates(t *testing.T) {
	authority := vendor(t)
	v := verifier(t, authority, authority.Getter(), ratls.Policy{})
	sound := quote(t, boot(t, authority, machine{}, vm{}))
	first := bytes.Index(sound, []byte("-----BEGIN"))
	for name, raw := range map[string][]byte{
		"no PEM":             overwrite(sound, first, "+++++BEGIN"),
		"another PEM type":   overwrite(sound, first, "-----BEGIN CERTIFICATF-----"),
		"not a certificate":  overwrite(sound, first+len("-----BEGIN CERTIFICATE-----\n"), "AAAAAAAAAAAAAAAAAAAAAAAA"),
		"bytes behind chain": overwrite(sound, len(sound)-2, "x"),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := v.Verify(t.Context(), raw); refusedBy(err) != ratls.CheckQuoteRoot {
				t.Errorf("refused by %v, want %s", err, ratls.CheckQuoteRoot)
			}
		})
	}
}

// overwrite returns a copy of raw with text at offset.
func overwrite(raw []byte, offset int, text string) []byte {
	raw = slices.Clone(raw)
	copy(raw[offset:], text)
	return raw
}

func TestParseQuoteReadsEveryField(t *testing.T) {
	authority := vendor(t)
	given := vm{AppCompose: "{}", MRTD: ratls.Measurement{1}, RTMR: [3]ratls.Measurement{{2}, {3}, {4}}, MRConfigID: ratls.Measurement{5},
		MRSignerSeam: ratls.Measurement{6}, MRServiceTD: ratls.Measurement{7}, Debug: true}
	for _, version := range []int{4, 5} {
		td := boot(t, authority, machine{Version: version}, given)
		q, err := ratls.ParseQuote(quote(t, td))
		if err != nil {
			t.Fatal(err)
		}
		if q.MRTD != given.MRTD || [3]ratls.Measurement(q.RTMR[:3]) != given.RTMR || q.MRConfigID != given.MRConfigID || q.MRSignerSeam != given.MRSignerSeam {
			t.Errorf("measurements %+v", q)
		}
		if q.ReportData != quoted || q.Version != version || q.TDAttributes != [8]byte{0: 1, 3: 0x10} || q.TEETCBSVN != [16]byte{10, 3} {
			t.Errorf("fields %+v", q)
		}
		if (version == 5) != (q.MRServiceTD != nil) || q.MRServiceTD != nil && *q.MRServiceTD != given.MRServiceTD {
			t.Errorf("service domain %v", q.MRServiceTD)
		}
		if q.Kind != "" || q.FMSPC != "" || q.PPID != nil || q.TCB.Worst != "" {
			t.Errorf("an unverified quote claims to be verified: %+v", q)
		}
		events, err := td.EventLog(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if replayed, err := ratls.ReplayRTMR3(events); err != nil || replayed != q.RTMR[3] {
			t.Errorf("RTMR3 is %s, the log replays to %s (%v)", q.RTMR[3], replayed, err)
		}
	}
}
