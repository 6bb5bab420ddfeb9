package dnsserver

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// TransferKey is a secret shared with secondaries, for TSIG with hmac-sha256
// (RFC 8945).
type TransferKey struct {
	// Name is the key's name, such as "transfer.dstack.host".
	Name string
	// Secret has at least 16 octets.
	Secret []byte
}

const (
	minSecret = 16
	maxFudge  = 300 // seconds that clocks may differ, RFC 8945 section 10
	// maxSeen is how many requests are remembered, each as long as it is valid,
	// so that none is taken twice.
	maxSeen = 4096
)

// tsig checks requests and signs responses with one key.
type tsig struct {
	name   string // lower case, with trailing dot
	wire   string
	secret []byte

	mu   sync.Mutex
	seen map[string]int64 // guarded by mu; until when a MAC is remembered, seconds since 1970
}

// Check tells what is wrong with a key.
func (k TransferKey) Check() error {
	if checkName(dns.CanonicalName(k.Name)) != nil {
		return errors.New("the key's name is not a domain name")
	}
	if len(k.Secret) < minSecret {
		return fmt.Errorf("the key's secret is shorter than %d octets", minSecret)
	}
	return nil
}

func newTSIG(k TransferKey) (*tsig, error) {
	if err := k.Check(); err != nil {
		return nil, fmt.Errorf("dns: Transfer: %w", err)
	}
	name := dns.CanonicalName(k.Name)
	var buf [maxNameOctets]byte
	wire, _ := wireName(&buf, name) // was checked
	return &tsig{name: name, wire: string(wire), secret: k.Secret, seen: map[string]int64{}}, nil
}

// signed is the state of a request and of the messages that answer it.
type signed struct {
	*tsig
	request *dns.TSIG // nil: there is none
	mac     []byte    // of the message before
	first   bool      // no message was signed yet
	code    uint16    // RFC 8945 section 3: what is wrong with the request; 0: nothing
}

// check reads the TSIG of a request.
func (t *tsig) check(packet []byte, now time.Time) (s signed, ok bool) {
	var m dns.Msg
	if m.Unpack(packet) != nil {
		return s, false
	}
	request := m.IsTsig()
	if request == nil {
		return s, false
	}
	s = signed{tsig: t, request: request, first: true}
	mac, err := hex.DecodeString(request.MAC)
	verified := dns.TsigVerify(bytes.Clone(packet), // it takes the record out of the packet
		base64.StdEncoding.EncodeToString(t.secret), "", false)
	signedAt, fudge := int64(request.TimeSigned), int64(min(request.Fudge, maxFudge))
	switch {
	case dns.CanonicalName(request.Hdr.Name) != t.name || dns.CanonicalName(request.Algorithm) != dns.HmacSHA256:
		s.code = dns.RcodeBadKey
	case err != nil || len(mac) != sha256.Size || verified != nil && !errors.Is(verified, dns.ErrTime):
		s.code = dns.RcodeBadSig
	case verified != nil || signedAt < now.Unix()-fudge || signedAt > now.Unix()+fudge:
		s.code = dns.RcodeBadTime
	}
	s.mac = mac
	return s, true
}

// fresh tells that a checked request was not taken before, and remembers it.
func (s *signed) fresh(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for mac, until := range s.seen {
		if until < now.Unix() {
			delete(s.seen, mac)
		}
	}
	if _, again := s.seen[string(s.mac)]; again || len(s.seen) >= maxSeen {
		return false
	}
	s.seen[string(s.mac)] = int64(s.request.TimeSigned) + maxFudge
	return true
}

// sign adds the TSIG to a packed message (RFC 8945 sections 4.3 and 5.3). An
// error of key or signature goes unsigned (section 5.3.2).
func (s *signed) sign(out []byte, now time.Time) []byte {
	at := uint64(now.Unix())
	var other []byte
	if s.code == dns.RcodeBadTime { // with the request's time, and ours behind
		other = appendTime(nil, at)
		at = s.request.TimeSigned
	}
	var mac []byte
	if s.code == 0 || s.code == dns.RcodeBadTime {
		mac = s.digest(out, at, other)
	}
	id := [2]byte(out)
	name, algorithm := s.keyName(), hmacSHA256Wire
	out = append(out, name...)
	out = append(out, 0, byte(dns.TypeTSIG), 0, dns.ClassANY, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(len(algorithm)+16+len(mac)+len(other)))
	out = append(out, algorithm...)
	out = appendTime(out, at)
	out = binary.BigEndian.AppendUint16(out, maxFudge)
	out = binary.BigEndian.AppendUint16(out, uint16(len(mac)))
	out = append(append(out, mac...), id[:]...)
	out = binary.BigEndian.AppendUint16(out, s.code)
	out = binary.BigEndian.AppendUint16(out, uint16(len(other)))
	out = append(out, other...)
	binary.BigEndian.PutUint16(out[10:], binary.BigEndian.Uint16(out[10:])+1)
	s.mac, s.first = mac, false
	return out
}

// digest is the MAC of a message: chained to the one before, and from the
// second message on with the times only (RFC 8945 section 5.3.1).
func (s *signed) digest(out []byte, at uint64, other []byte) []byte {
	h := hmac.New(sha256.New, s.secret)
	b := binary.BigEndian.AppendUint16(nil, uint16(len(s.mac)))
	h.Write(append(b, s.mac...))
	h.Write(out)
	b = b[:0]
	if s.first {
		b = append(append(b, s.wire...), 0, dns.ClassANY, 0, 0, 0, 0)
		b = append(b, hmacSHA256Wire...)
	}
	b = binary.BigEndian.AppendUint16(appendTime(b, at), maxFudge)
	if s.first {
		b = binary.BigEndian.AppendUint16(b, s.code)
		b = binary.BigEndian.AppendUint16(b, uint16(len(other)))
		b = append(b, other...)
	}
	h.Write(b)
	return h.Sum(nil)
}

// keyName is the name that a response carries: the request's, also if it is another.
func (s *signed) keyName() []byte {
	var buf [maxNameOctets]byte
	name, ok := wireName(&buf, s.request.Hdr.Name)
	if !ok {
		return []byte{0}
	}
	return name
}

const hmacSHA256Wire = "\x0bhmac-sha256\x00"

// signedOctets is at most what sign adds.
func (s *signed) signedOctets() int {
	return len(s.keyName()) + 10 + len(hmacSHA256Wire) + 16 + sha256.Size + 6
}

func appendTime(b []byte, at uint64) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(at>>32))
	return binary.BigEndian.AppendUint32(b, uint32(at))
}
