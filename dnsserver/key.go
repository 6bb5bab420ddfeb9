package dnsserver

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"

	"github.com/miekg/dns"
)

// Algorithm is a DNSSEC signing algorithm.
type Algorithm uint8

// The algorithms that are signed with (RFC 8624 section 3.1).
const (
	ECDSAP256SHA256 Algorithm = Algorithm(dns.ECDSAP256SHA256) // RFC 6605
	Ed25519         Algorithm = Algorithm(dns.ED25519)         // RFC 8080
)

func (a Algorithm) String() string {
	switch a {
	case ECDSAP256SHA256:
		return "ecdsap256sha256"
	case Ed25519:
		return "ed25519"
	}
	return fmt.Sprintf("algorithm %d", uint8(a))
}

// ParseAlgorithm reads what String writes.
func ParseAlgorithm(s string) (Algorithm, error) {
	for _, a := range []Algorithm{ECDSAP256SHA256, Ed25519} {
		if s == a.String() {
			return a, nil
		}
	}
	return 0, fmt.Errorf("%.40q is neither %q nor %q", s, ECDSAP256SHA256, Ed25519)
}

// Role says what a key signs.
type Role string

const (
	// KSK signs the DNSKEY, CDS and CDNSKEY records; the zone above names it.
	KSK Role = "ksk"
	// ZSK signs everything else.
	ZSK Role = "zsk"
	// CSK does both.
	CSK Role = "csk"
)

func (r Role) signsKeys() bool { return r != ZSK }
func (r Role) signsData() bool { return r != KSK }

// Key is a DNSSEC key pair. It is immutable and safe for concurrent use, and
// has no form that shows its private part but Marshal's.
type Key struct {
	algorithm Algorithm
	role      Role
	private   crypto.Signer
	public    []byte // as in a DNSKEY record
	tag       uint16
	salt      [sha256.Size]byte // of the public key, for the cache
}

// NewKey makes a key pair.
func NewKey(a Algorithm, r Role) (*Key, error) {
	switch a {
	case ECDSAP256SHA256:
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		return newKey(private, r)
	case Ed25519:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		return newKey(private, r)
	}
	return nil, fmt.Errorf("%v can't be signed with", a)
}

// ParseKey reads what Marshal writes.
func ParseKey(der []byte, r Role) (*Key, error) {
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("DNSSEC key: %w", err)
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("DNSSEC key: %T can't sign", private)
	}
	return newKey(signer, r)
}

func newKey(private crypto.Signer, r Role) (*Key, error) {
	k := &Key{role: r, private: private}
	switch public := private.Public().(type) {
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		if err != nil || public.Curve != elliptic.P256() {
			return nil, errors.New("DNSSEC key: not on P-256")
		}
		k.algorithm, k.public = ECDSAP256SHA256, point[1:] // without the mark of an uncompressed point, RFC 6605 section 4
	case ed25519.PublicKey:
		k.algorithm, k.public = Ed25519, public
	default:
		return nil, fmt.Errorf("DNSSEC key: %T is of no algorithm that is signed with", public)
	}
	if r != KSK && r != ZSK && r != CSK {
		return nil, fmt.Errorf("DNSSEC key: role %.10q", r)
	}
	k.tag = k.dnskey(".", 0).KeyTag()
	k.salt = sha256.Sum256(k.public)
	return k, nil
}

// Marshal returns the private key, PKCS #8 in DER. It is as secret as the key.
func (k *Key) Marshal() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(k.private) }

// Tag is the key tag, RFC 4034 appendix B.
func (k *Key) Tag() uint16 { return k.tag }

// Algorithm is the key's algorithm.
func (k *Key) Algorithm() Algorithm { return k.algorithm }

// Role is what the key signs.
func (k *Key) Role() Role { return k.role }

func (k *Key) String() string { return fmt.Sprintf("%s %d (%v)", k.role, k.tag, k.algorithm) }

// DS returns the DS record that the zone above has to have for this key, with
// SHA-256 (RFC 4509), in presentation form.
func (k *Key) DS(zone string) string { return k.ds(dns.Fqdn(zone), 0).String() }

func (k *Key) ds(origin string, ttl uint32) *dns.DS {
	ds := k.dnskey(origin, ttl).ToDS(dns.SHA256)
	ds.Hdr.Ttl = ttl
	return ds
}

func (k *Key) dnskey(origin string, ttl uint32) *dns.DNSKEY {
	flags := uint16(dns.ZONE)
	if k.role.signsKeys() {
		flags |= dns.SEP
	}
	return &dns.DNSKEY{
		Hdr:   dns.RR_Header{Name: origin, Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: ttl},
		Flags: flags, Protocol: 3, Algorithm: uint8(k.algorithm), PublicKey: base64.StdEncoding.EncodeToString(k.public),
	}
}

// signatureOctets is the size of a signature of either algorithm.
const signatureOctets = 64

// sign signs a message, whose SHA-256 is given. The same message gives the same
// signature: ECDSA is deterministic (RFC 6979), as Ed25519 is anyway.
func (k *Key) sign(message []byte, digest [sha256.Size]byte) (out [signatureOctets]byte, err error) {
	if k.algorithm == Ed25519 {
		signature, err := k.private.Sign(nil, message, crypto.Hash(0))
		copy(out[:], signature)
		return out, err
	}
	der, err := k.private.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return out, err
	}
	var point struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &point); err != nil {
		return out, err
	}
	point.R.FillBytes(out[:signatureOctets/2])
	point.S.FillBytes(out[signatureOctets/2:])
	return out, nil
}
