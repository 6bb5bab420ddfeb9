package tunnel_test

import (
	"bytes"
	"crypto/ecdh"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"dstack.host/tunnel"
)

// lowOrder are the canonical coordinates of small order on Curve25519 (https://cr.yp.to/ecdh.html#validate).
var lowOrder = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
	"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
}

// notCanonical are other spellings of coordinates: the prime and above, or with the unused bit set.
var notCanonical = []string{
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"f6ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	"0900000000000000000000000000000000000000000000000000000000000080",
}

// shared is the error of an exchange with a point: crypto/ecdh refuses those that any key takes to zero.
func shared(t testing.TB, raw []byte) error {
	t.Helper()
	private := tunnel.NewPrivateKey()
	key, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		t.Fatal(err)
	}
	point, err := ecdh.X25519().NewPublicKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	_, err = key.ECDH(point)
	return err
}

// TestPointsOfSmallOrderAreThoseThatECDHRefuses holds the table to the arithmetic.
func TestPointsOfSmallOrderAreThoseThatECDHRefuses(t *testing.T) {
	for _, h := range lowOrder {
		if shared(t, unhex(t, h)) == nil {
			t.Errorf("%s is no point of small order", h)
		}
	}
	for range 100 {
		if key := tunnel.NewPrivateKey().PublicKey(); shared(t, key[:]) != nil {
			t.Errorf("%v is refused", key)
		}
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParsePublicKey(t *testing.T) {
	for range 100 {
		key := tunnel.NewPrivateKey().PublicKey()
		got, err := tunnel.ParsePublicKey(key.String())
		if err != nil || got != key {
			t.Fatalf("%v: %v, %v", key, got, err)
		}
	}
	base := tunnel.PublicKey{9} // the base point itself is a fine key
	if got, err := tunnel.ParsePublicKey(base.String()); err != nil || got != base {
		t.Errorf("%v: %v, %v", base, got, err)
	}
}

func TestParsePublicKeyRefuses(t *testing.T) {
	good := tunnel.PublicKey{9}.String()
	bad := map[string]string{
		"empty":             "",
		"43 characters":     good[:43],
		"unpadded":          strings.TrimRight(good, "="),
		"45 characters":     good + "=",
		"leading space":     " " + good,
		"trailing newline":  good + "\n",
		"newline inside":    good[:10] + "\n" + good[11:],
		"URL alphabet":      strings.Repeat("_", 43) + "=",
		"trailing bits set": good[:42] + "B=",
		"two pads":          good[:42] + "==",
		"hex":               strings.Repeat("0", 64),
		"NUL":               good[:10] + "\x00" + good[11:],
		"multi-byte":        "é" + good[2:],
		"very long":         strings.Repeat("A", 1<<20),
	}
	for i, h := range append(lowOrder, notCanonical...) {
		bad[fmt.Sprintf("point %d", i)] = base64.StdEncoding.EncodeToString(unhex(t, h))
	}
	for name, s := range bad {
		if key, err := tunnel.ParsePublicKey(s); err == nil {
			t.Errorf("%s: accepted as %v", name, key)
		} else if len(err.Error()) > 200 {
			t.Errorf("%s: an error of %d octets", name, len(err.Error()))
		}
	}
}

func TestPublicKeyInJSON(t *testing.T) {
	key := tunnel.NewPrivateKey().PublicKey()
	b, err := json.Marshal(key)
	if err != nil || string(b) != `"`+key.String()+`"` {
		t.Fatalf("%s, %v", b, err)
	}
	var got tunnel.PublicKey
	if err := json.Unmarshal(b, &got); err != nil || got != key {
		t.Errorf("%v, %v", got, err)
	}
	if err := json.Unmarshal([]byte(`"AAAA"`), &got); err == nil {
		t.Error("a short key was accepted")
	}
}

// RFC 7748 section 6.1, Alice.
func TestPublicKeyOfAPrivateKey(t *testing.T) {
	private := tunnel.PrivateKey(unhex(t, "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
	public := tunnel.PublicKey(unhex(t, "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"))
	if got := private.PublicKey(); got != public {
		t.Errorf("got %v, want %v", got, public)
	}
	if got := (tunnel.PrivateKey{}).PublicKey(); got != (tunnel.PublicKey{}) {
		t.Errorf("the zero key has public key %v", got)
	}
}

func TestParsePrivateKey(t *testing.T) {
	text := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	key, err := tunnel.ParsePrivateKey(text)
	if err != nil || key != tunnel.PrivateKey(bytes.Repeat([]byte{7}, 32)) {
		t.Errorf("parse: %v", err)
	}
	for _, s := range []string{"", text[:43], text + "=", strings.Repeat("A", 43) + "="} {
		_, err := tunnel.ParsePrivateKey(s)
		if err == nil {
			t.Errorf("%q: accepted", s)
		} else if s != "" && strings.Contains(err.Error(), s) {
			t.Errorf("%q: repeated in the error", s)
		}
	}
}

func TestAPrivateKeyIsNeverShown(t *testing.T) {
	key := tunnel.NewPrivateKey()
	secrets := []string{
		base64.StdEncoding.EncodeToString(key[:]), hex.EncodeToString(key[:]), strings.Trim(fmt.Sprint(key[:]), "[]"),
	}
	cfg := tunnel.Config{PrivateKey: key}
	var logged bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&logged, nil), slog.NewJSONHandler(&logged, nil)} {
		slog.New(h).Info("x", "key", key, "config", cfg, "pointer", &cfg)
	}
	asJSON, jsonErr := json.Marshal(cfg)
	shown := []string{
		logged.String(), string(asJSON), fmt.Sprint(jsonErr), key.String(), fmt.Sprint(key), fmt.Sprint(&key), fmt.Sprint(cfg),
	}
	for _, verb := range strings.Fields("%v %+v %#v %s %q %x %X %d %b %c %o %U %t") {
		shown = append(shown, fmt.Sprintf(verb, key), fmt.Sprintf(verb, cfg), fmt.Sprintf(verb, &cfg))
	}
	for _, s := range shown {
		for _, secret := range secrets {
			if strings.Contains(strings.ToLower(s), strings.ToLower(secret)) {
				t.Errorf("the key is shown in %.200q", s)
			}
		}
	}
	if _, err := json.Marshal(key); err == nil {
		t.Error("a private key was marshalled")
	}
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add(tunnel.PublicKey{9}.String())
	f.Add(strings.Repeat("A", 43) + "=")
	f.Add(strings.Repeat("/", 42) + "8=")
	for _, h := range lowOrder {
		f.Add(base64.StdEncoding.EncodeToString(unhex(f, h)))
	}
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		key, err := tunnel.ParsePublicKey(s)
		if err != nil {
			return
		}
		if key.String() != s {
			t.Fatalf("%q was read as %v", s, key)
		}
		if key == (tunnel.PublicKey{}) || key[31]&0x80 != 0 || shared(t, key[:]) != nil {
			t.Fatalf("accepted %v", key)
		}
	})
}
