package dnsserver

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/dchest/siphash"
)

// Server cookies of version 1, RFC 9018 section 4.
const (
	serverCookie  = 16 // version, three reserved octets, time, hash
	cookieVersion = 1

	cookieMaxAge   = 3600 // seconds, section 4.3
	cookieMaxAhead = 300
	cookieRenewAge = 1800

	// cookieEpoch is how long a secret makes cookies. It follows from the time
	// alone which secret counts, so servers with one key agree without talking,
	// and the time in a cookie tells the secret that made it.
	cookieEpoch = 24 * 60 * 60
)

// cookies makes and checks DNS cookies (RFC 7873) with secrets that change by
// themselves. Safe for concurrent use; it takes no lock.
type cookies struct {
	key     []byte // of the secrets
	secrets atomic.Pointer[cookieSecrets]
}

// cookieSecrets are the secrets of an epoch and its neighbours.
type cookieSecrets struct {
	epoch   uint32
	secrets [3][16]byte // of the epoch before, this one, and the next
}

// newCookies takes the key that servers have in common; without one, cookies
// are of this server alone.
func newCookies(key []byte) *cookies {
	if len(key) == 0 {
		key = make([]byte, sha256.Size)
		_, _ = rand.Read(key) // never fails
	}
	return &cookies{key: key}
}

// secret returns the secret that makes cookies at a time, seconds since 1970.
// The clocks of servers may differ by an epoch.
func (c *cookies) secret(at, now uint32) (secret [16]byte, ok bool) {
	s := c.secrets.Load()
	if s == nil || s.epoch != now/cookieEpoch {
		s = &cookieSecrets{epoch: now / cookieEpoch}
		for i := range s.secrets {
			s.secrets[i] = c.derive(s.epoch + uint32(i) - 1)
		}
		c.secrets.Store(s)
	}
	i := at/cookieEpoch - s.epoch + 1
	if i >= uint32(len(s.secrets)) {
		return secret, false
	}
	return s.secrets[i], true
}

func (c *cookies) derive(epoch uint32) (secret [16]byte) {
	mac := hmac.New(sha256.New, c.key)
	mac.Write(binary.BigEndian.AppendUint32([]byte("dns cookie secret"), epoch))
	copy(secret[:], mac.Sum(nil))
	return secret
}

// check reads a cookie option, client cookie and perhaps server cookie. It
// tells whether the client got that cookie from us, lately, at its address,
// and writes the server cookie that the client shall have.
func (c *cookies) check(option []byte, client netip.Addr, at time.Time, fresh *[serverCookie]byte) (valid bool) {
	now := uint32(at.Unix()) // wraps in 2106, as RFC 9018 section 4.3 has it
	server := option[clientCookie:]
	if len(server) == serverCookie && server[0] == cookieVersion {
		made := binary.BigEndian.Uint32(server[4:])
		age := int32(now - made)
		if secret, ok := c.secret(made, now); ok && age <= cookieMaxAge && age >= -cookieMaxAhead {
			valid = binary.LittleEndian.Uint64(server[8:]) == cookieHash(&secret, option[:clientCookie], server[:8], client)
		}
		if valid && age <= cookieRenewAge {
			copy(fresh[:], server)
			return true
		}
	}
	secret, _ := c.secret(now, now)
	bakeCookie(&secret, option[:clientCookie], client, now, fresh)
	return valid
}

// bakeCookie makes a server cookie.
func bakeCookie(secret *[16]byte, clients []byte, client netip.Addr, now uint32, to *[serverCookie]byte) {
	*to = [serverCookie]byte{cookieVersion}
	binary.BigEndian.PutUint32(to[4:], now)
	binary.LittleEndian.PutUint64(to[8:], cookieHash(secret, clients, to[:8], client))
}

// cookieHash is SipHash-2-4 over client cookie, the server cookie's first half
// and the client's address (RFC 9018 section 4.4).
func cookieHash(secret *[16]byte, clients, head []byte, client netip.Addr) uint64 {
	var in [clientCookie + 8 + 16]byte
	n := copy(in[:], clients)
	n += copy(in[n:], head)
	if client.Is4() {
		addr := client.As4()
		n += copy(in[n:], addr[:])
	} else {
		addr := client.As16()
		n += copy(in[n:], addr[:])
	}
	return siphash.Hash(binary.LittleEndian.Uint64(secret[:]), binary.LittleEndian.Uint64(secret[8:]), in[:n])
}
