package enroll_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/registry"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
)

func TestBodiesThatAreRefused(t *testing.T) {
	w := newWorld(t)
	resident := w.resident(t)
	cert := attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	key := newKey()
	with := func(more string) string { return fmt.Sprintf(`{"client_public_key":"%s"%s}`, key, more) }
	keyed := func(text string) string { return fmt.Sprintf(`{"client_public_key":%s}`, text) }
	octets := func(b []byte) string { return keyed(`"` + base64.StdEncoding.EncodeToString(b) + `"`) }
	ports := func(n int) string {
		return with(`,"port_policy":{"ports":[` + strings.TrimSuffix(strings.Repeat(`{"port":80},`, n), ",") + `]}`)
	}
	tests := []struct{ name, body, text string }{
		{"the resident's WireGuard key", body(w.registry.Snapshot().Instance(idOf(t, resident).ID).Key), "WireGuard key is used by another instance"},
		{"nothing", "", "client_public_key: "},
		{"no member", "{}", "client_public_key: "},
		{"null", "null", "null where a value is needed"},
		{"a list", "[]", "cannot unmarshal array"},
		{"a string", `"x"`, "cannot unmarshal string"},
		{"not JSON", "client_public_key=x", "invalid character"},
		{"cut short", with("")[:40], "unexpected EOF"},
		{"more behind it", with("") + "{}", "followed by more data"},
		{"not UTF-8", with(",\"a\":\"\xff\""), "not valid UTF-8"},
		{"key is null", keyed("null"), "JSON member client_public_key is null"},
		{"key is a number", keyed("1"), "cannot unmarshal number"},
		{"key twice", with(fmt.Sprintf(`,"client_public_key":"%s"`, newKey())), "JSON member client_public_key occurs twice"},
		{"key in other letters too", with(fmt.Sprintf(`,"Client_Public_Key":"%s"`, newKey())), "has to be written"},
		{"any member twice", with(`,"future":1,"future":2`), "JSON member future occurs twice"},
		{"member twice, deep", with(`,"future":[{"a":{"b":1,"b":1}}]`), "occurs twice"},
		{"key empty", keyed(`""`), "client_public_key: "},
		{"key not base64", keyed(`"` + strings.Repeat("*", 44) + `"`), "canonical standard base64"},
		{"key URL-safe base64", keyed(`"` + strings.Repeat("-", 43) + `="`), "canonical standard base64"},
		{"key without padding", keyed(`"` + strings.TrimSuffix(key.String(), "=") + `"`), "43 characters"},
		{"key with loose bits", keyed(`"` + key.String()[:42] + nextDigit(key.String()[42]) + `="`), "canonical standard base64"},
		{"key with line break", keyed(`"` + key.String()[:20] + `\n` + key.String()[20:] + `"`), "45 characters"},
		{"key in hex", keyed(fmt.Sprintf(`"%x"`, key[:])), "64 characters"},
		{"key of 31 bytes", octets(key[:31]), "client_public_key: "},
		{"key of 33 bytes", octets(append(key[:], 0)), "client_public_key: "},
		{"key of zeros", octets(make([]byte, 32)), "small order"},
		{"key of order 1", octets(append([]byte{1}, make([]byte, 31)...)), "small order"},
		{"key of order 8", octets(lowOrder), "small order"},
		{"key above the field's prime", octets(bytes.Repeat([]byte{0xff}, 32)), "not a canonical"},
		{"key of another spelling", octets(highBit(key)), "not a canonical"},
		{"port 0", with(`,"port_policy":{"ports":[{"port":0}]}`), "port_policy: port must be between 1 and 65535"},
		{"port left out", with(`,"port_policy":{"ports":[{}]}`), "port_policy: port must be between 1 and 65535"},
		{"port 65536", with(`,"port_policy":{"ports":[{"port":65536}]}`), "port_policy: port 65536 out of u16 range"},
		{"port 2^32", with(`,"port_policy":{"ports":[{"port":4294967296}]}`), "cannot unmarshal number"},
		{"port -1", with(`,"port_policy":{"ports":[{"port":-1}]}`), "cannot unmarshal number"},
		{"port 443.5", with(`,"port_policy":{"ports":[{"port":443.5}]}`), "cannot unmarshal number"},
		{"port as text", with(`,"port_policy":{"ports":[{"port":"443"}]}`), "cannot unmarshal string"},
		{"port of a million digits", with(`,"port_policy":{"ports":[{"port":` + strings.Repeat("9", 1000000) + `}]}`), "cannot unmarshal number"},
		{"1025 ports", ports(enroll.MaxPorts + 1), "port_policy: 1025 ports"},
		{"2000 ports", ports(2000), "port_policy: 2000 ports"},
		{"ports are null", with(`,"port_policy":{"ports":null}`), "JSON member port_policy.ports is null"},
		{"a port is null", with(`,"port_policy":{"ports":[null]}`), "is null"},
		{"restrict_mode is null", with(`,"port_policy":{"restrict_mode":null}`), "is null"},
		{"restrict_mode is a number", with(`,"port_policy":{"restrict_mode":1}`), "cannot unmarshal number"},
		{"policy is a list", with(`,"port_policy":[]`), "cannot unmarshal array"},
		{"policy twice", with(`,"port_policy":{"restrict_mode":true},"port_policy":{}`), "JSON member port_policy occurs twice"},
		{"deep nesting", with(`,"future":` + strings.Repeat("[", 100) + strings.Repeat("]", 100)), "nested deeper"},
		{"nesting of half a million", strings.Repeat("[", 500000), "nested deeper"},
		{"many values", with(`,"future":[` + strings.Repeat("0,", 1<<18) + `0]`), "more than 262144 values"},
		{"2 MiB", with(`,"future":"` + strings.Repeat("x", 2<<20) + `"`), "payload too large"},
		{"one byte too much", with(strings.Repeat(" ", enroll.MaxBody+1-len(with("")))), "payload too large"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w.unchanged(t, func() answer {
				a := register(t, w.at, cert, test.body)
				if len(a.body) > 2<<10 {
					t.Errorf("error of %d bytes", len(a.body))
				}
				return a
			}, http.StatusBadRequest, test.text)
		})
	}
	t.Run("the most that may be sent", func(t *testing.T) {
		if a := register(t, w.at, cert, with(strings.Repeat(" ", enroll.MaxBody-len(with(""))))); a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}

// lowOrder is a point of order 8 (RFC 7748 section 6.1; Bernstein, "Curve25519: new Diffie-Hellman speed records").
var lowOrder = []byte{
	0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
	0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
}

// highBit is the same key to WireGuard, which ignores the last bit (RFC 7748 section 5).
func highBit(key tunnel.PublicKey) []byte {
	key[31] |= 0x80
	return key[:]
}

// nextDigit is a base64 digit that differs in the bits that 32 octets leave over.
func nextDigit(c byte) string {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	return string(digits[strings.IndexByte(digits, c)|1])
}

// TestBodiesInPieces sends what HTTP allows beside a length.
func TestBodiesInPieces(t *testing.T) {
	w := newWorld(t)
	cert := attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	key := newKey()
	text := body(key)
	chunks := fmt.Sprintf("%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", 10, text[:10], len(text)-10, text[10:])
	if a := dial(t, w.at, cert).send(t, "POST", "/prpc/RegisterCvm?json", "Transfer-Encoding: chunked\r\n", chunks); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	w.unchanged(t, func() answer {
		endless := strings.Repeat(fmt.Sprintf("%x\r\n%s\r\n", 64<<10, strings.Repeat(" ", 64<<10)), 17)
		return dial(t, w.at, cert).send(t, "POST", "/prpc/RegisterCvm?json", "Transfer-Encoding: chunked\r\n", endless)
	}, http.StatusBadRequest, "payload too large")
	w.unchanged(t, func() answer {
		return dial(t, w.at, cert).send(t, "POST", "/prpc/RegisterCvm?json", "Content-Length: 99999999999\r\n", "")
	}, http.StatusBadRequest, "payload too large")
}

func FuzzRequest(f *testing.F) {
	key := newKey()
	for _, seed := range []string{
		body(key), `{}`, `null`, ``, `[]`, withEvidence(key, `{"binding":"dstack-wg-v1"}`), withEvidence(key, `null`),
		fmt.Sprintf(`{"client_public_key":"%s","port_policy":{"ports":[{"port":443,"pp":true},{"port":65535},{"port":443}],"restrict_mode":true},"x":[[{}]]}`, key),
		fmt.Sprintf(`{"client_public_key":"%s","client_public_key":""}`, key), `{"port_policy":null}`, strings.Repeat("[", 40),
		fmt.Sprintf(`{"client_public_key":"%s","port_policy":{"ports":[{"port":1e2}]}}`, key),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, ports, evidence, err := enroll.ParseRequest(text)
		if err != nil {
			return
		}
		if parsed, err := tunnel.ParsePublicKey(got.String()); err != nil || parsed != got {
			t.Errorf("key %s: %v", got, err)
		}
		checkPorts(t, ports)
		if evidence != nil && (!json.Valid(evidence) || !bytes.Contains(text, evidence)) {
			t.Errorf("evidence %q", evidence)
		}
	})
}

// checkPorts holds a policy to what the registry takes.
func checkPorts(t *testing.T, p *registry.PortPolicy) {
	t.Helper()
	if p == nil {
		return
	}
	for i, port := range p.Ports {
		if port.Port == 0 || i > 0 && p.Ports[i-1].Port >= port.Port {
			t.Errorf("ports %v", p.Ports)
		}
	}
	if len(p.Ports) > enroll.MaxPorts {
		t.Errorf("%d ports", len(p.Ports))
	}
}
