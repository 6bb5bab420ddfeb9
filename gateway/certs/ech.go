package certs

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// Identifiers of RFC 9849 section 4 and RFC 9180 section 7. X25519 with these two is what browsers support.
const (
	echVersion    = 0xfe0d
	kemX25519     = 0x0020
	kdfSHA256     = 0x0001
	aeadAES128    = 0x0001
	aeadChaCha20  = 0x0003
	maxPublicName = 255 // octets of ECHConfigContents.public_name, and of maximum_name_length
	maxHostLabel  = 63
	echKeySize    = 1 + 32
)

// echKeys are the keys of one domain: the one that is published first, then those that still or already work.
type echKeys struct {
	keys []tls.EncryptedClientHelloKey
	list []byte // ECHConfigList of the first
}

// newECHKey returns a fresh private key, X25519, behind the octet that identifies its configuration, which is another than those
// of the keys that there are.
func newECHKey(others ring) ([]byte, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	id := make([]byte, 1)
	for taken := true; taken; {
		rand.Read(id) // never fails
		taken = false
		for _, g := range others {
			taken = taken || g.Secret[0] == id[0]
		}
	}
	return append(id, key.Bytes()...), nil
}

// newECHKeys makes of secrets, the one in use first, what handshakes and DNS need.
func newECHKeys(domain string, secrets [][]byte) (echKeys, error) {
	var e echKeys
	for i, secret := range secrets {
		if len(secret) != echKeySize {
			return echKeys{}, fmt.Errorf("an ECH key has %d octets", len(secret))
		}
		key, err := ecdh.X25519().NewPrivateKey(secret[1:])
		if err != nil {
			return echKeys{}, errors.New("an ECH key is no X25519 key")
		}
		config, err := echConfig(domain, secret[0], key.PublicKey().Bytes())
		if err != nil {
			return echKeys{}, err
		}
		e.keys = append(e.keys, tls.EncryptedClientHelloKey{Config: config, PrivateKey: key.Bytes(), SendAsRetry: i == 0})
	}
	if len(e.keys) > 0 {
		var b cryptobyte.Builder
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.keys[0].Config) })
		e.list = b.BytesOrPanic()
	}
	return e, nil
}

// echConfig is an ECHConfig (RFC 9849 section 4). Clients pad names to the longest there can be, so that the size of a ClientHello
// does not tell them apart.
func echConfig(publicName string, id byte, key []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddUint16(echVersion)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(id)
		b.AddUint16(kemX25519)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(key) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, aead := range []uint16{aeadAES128, aeadChaCha20} {
				b.AddUint16(kdfSHA256)
				b.AddUint16(aead)
			}
		})
		b.AddUint8(uint8(min(maxPublicName, maxHostLabel+1+len(publicName))))
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(publicName)) })
		b.AddUint16(0) // extensions
	})
	return b.Bytes()
}

// ECHConfigList returns what HTTPS records publish as "ech" (RFC 9848) for the names below a base domain; nil before Ready.
func (s *Secrets) ECHConfigList(domain string) []byte {
	return bytes.Clone(s.current.Load().ech[domain].list)
}

// none is what a handshake gets when there are no keys: crypto/tls demands a slice.
var none = []tls.EncryptedClientHelloKey{}

// keysFor are the keys of the domain that a client names outside of the encryption: the public name of a configuration, or, where
// the client only pretends to encrypt (GREASE), the name it wants.
func (s *Secrets) keysFor(hello *tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) {
	domains, name := s.current.Load().ech, strings.ToLower(hello.ServerName)
	e, ok := domains[name]
	if !ok {
		_, parent, _ := strings.Cut(name, ".")
		e = domains[parent]
	}
	if e.keys == nil {
		return none, nil
	}
	return e.keys, nil
}
