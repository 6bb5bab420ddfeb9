package dnsserver

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"
)

// Defaults of a Signer.
const (
	defaultSignatures = 1 << 18
	defaultShare      = 0.25

	// burst is how much signing may come at once after a pause.
	burst = 250 * time.Millisecond
	// maxWait is how long those wait for a signature who can wait.
	maxWait = time.Second
)

// SignerConfig configures a [Signer]. The zero value is usable.
type SignerConfig struct {
	// Signatures is how many signatures are kept, each about 110 octets. Zero: 262,144.
	Signatures int
	// Share is the part of one CPU that signing may take for names that exist,
	// and again as much for names that don't, above zero. Zero: 0.25. Answers beyond that are
	// truncated over UDP, and wait over TCP.
	Share float64
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Signer makes the signatures of zones and keeps them. One serves all zones of
// a process and all their generations: what is kept is found by what was
// signed, so that a zone that was changed is signed anew only where it differs.
// It takes no lock.
type Signer struct {
	sets []signatureSet
	now  func() time.Time
	// What strangers can make up without end has a budget of its own.
	existing, missing budget
	made              atomic.Int64
}

// NewSigner makes a signer.
func NewSigner(c SignerConfig) (*Signer, error) {
	if c.Signatures < 0 || c.Share < 0 {
		return nil, errors.New("dns signer: a limit is negative")
	}
	if c.Signatures == 0 {
		c.Signatures = defaultSignatures
	}
	if c.Share == 0 {
		c.Share = defaultShare
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Signer{sets: make([]signatureSet, max(1, c.Signatures/signatureWays)), now: c.Now}
	s.existing.share, s.missing.share = c.Share, c.Share
	return s, nil
}

// Made returns how many signatures were made, which is how many were not found.
func (s *Signer) Made() int64 { return s.made.Load() }

// purse says whose budget a signature is on.
type purse int

const (
	forExisting purse = iota
	forMissing
	forTransfer // on nobody's: who transfers has shown a key
)

// sign returns the signature of a message, false if it is beyond the budget.
func (s *Signer) sign(k *Key, message []byte, p purse, wait bool) (signature [signatureOctets]byte, ok bool) {
	digest := sha256.Sum256(message)
	var id signatureID
	for i := range id {
		id[i] = digest[i] ^ k.salt[i]
	}
	set := &s.sets[binary.LittleEndian.Uint64(id[:])%uint64(len(s.sets))]
	if kept := set.get(id); kept != nil {
		return kept.signature, true
	}
	b := &s.existing
	if p == forMissing {
		b = &s.missing
	}
	begin := s.now()
	if p != forTransfer && !b.admits(begin) && !(wait && b.await(begin)) {
		return signature, false
	}
	signature, err := k.sign(message, digest)
	if err != nil {
		return signature, false // can't happen: keys are held to their algorithm when they are made
	}
	s.made.Add(1)
	if p != forTransfer {
		now := s.now()
		b.spend(now, now.Sub(begin))
	}
	set.put(&keptSignature{id: id, signature: signature})
	return signature, true
}

// budget bounds the time that goes into signing: it is spent when a signature
// was made and comes back with time.
type budget struct {
	share float64
	debt  atomic.Int64 // the time, in nanoseconds, at which all that was spent has come back
}

func (b *budget) admits(now time.Time) bool {
	return b.debt.Load() <= now.UnixNano()+int64(float64(burst)/b.share)
}

// await waits until there is budget, and tells whether there is. Who waited
// long enough is given his signature: there are only so many connections.
func (b *budget) await(now time.Time) bool {
	over := time.Duration(b.debt.Load() - now.UnixNano() - int64(float64(burst)/b.share))
	time.Sleep(min(max(over, time.Millisecond), maxWait))
	return true
}

func (b *budget) spend(now time.Time, d time.Duration) {
	cost := int64(float64(min(max(d, 0), burst)) / b.share)
	for {
		debt := b.debt.Load()
		if b.debt.CompareAndSwap(debt, max(debt, now.UnixNano())+cost) {
			return
		}
	}
}

// signatureID names what was signed and by which key: half of a SHA-256, which
// nobody finds two preimages of.
type signatureID [16]byte

type keptSignature struct {
	id        signatureID
	used      atomic.Bool // since its neighbours were last looked at for room
	signature [signatureOctets]byte
}

const signatureWays = 8

// signatureSet is the few places where one signature can be kept.
type signatureSet [signatureWays]atomic.Pointer[keptSignature]

func (set *signatureSet) get(id signatureID) *keptSignature {
	for i := range set {
		if kept := set[i].Load(); kept != nil && kept.id == id {
			if !kept.used.Load() {
				kept.used.Store(true)
			}
			return kept
		}
	}
	return nil
}

// put takes a free place, or that of one that was not used for a while.
func (set *signatureSet) put(fresh *keptSignature) {
	at := int(fresh.id[15]) % signatureWays
	for range 2 {
		for i := range set {
			p := &set[(at+i)%signatureWays]
			if kept := p.Load(); kept == nil || kept.id == fresh.id || !kept.used.Swap(false) {
				p.Store(fresh)
				return
			}
		}
	}
	set[at].Store(fresh)
}
