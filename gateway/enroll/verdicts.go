package enroll

import (
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"
)

const (
	// maxVerdicts bounds what is remembered of clients, some two KiB each.
	maxVerdicts = 32 << 10
	// verdictLife is how long a verified certificate counts: three refreshes of a stock guest. Then its quote is verified again,
	// against the collateral of then.
	verdictLife = 10 * time.Minute
)

// verdicts remembers who verified client certificates belong to, without their evidence: enough for a refresh that changes
// nothing, which most registrations are. TLS has shown that the client holds the key.
type verdicts struct {
	mu   sync.Mutex
	held map[[sha256.Size]byte]verdict // guarded by mu; by the hash of the chain
}

type verdict struct {
	id    identity
	until time.Time
}

func fingerprint(chain []*x509.Certificate) [sha256.Size]byte {
	h := sha256.New()
	for _, c := range chain {
		h.Write(c.Raw)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func (v *verdicts) find(chain []*x509.Certificate, now time.Time) (identity, bool) {
	if len(chain) == 0 {
		return identity{}, false
	}
	key := fingerprint(chain)
	v.mu.Lock()
	defer v.mu.Unlock()
	held, ok := v.held[key]
	if ok && now.After(held.until) {
		delete(v.held, key)
		return identity{}, false
	}
	return held.id, ok
}

// keep remembers an identity as long as all certificates of the chain hold. When there is no place, any other is forgotten.
func (v *verdicts) keep(chain []*x509.Certificate, id identity, now time.Time) {
	until := now.Add(verdictLife)
	for _, c := range chain {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	id.evidence, id.remembered = nil, true
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.held == nil {
		v.held = make(map[[sha256.Size]byte]verdict)
	}
	for other := range v.held {
		if len(v.held) < maxVerdicts {
			break
		}
		delete(v.held, other)
	}
	v.held[fingerprint(chain)] = verdict{id, until}
}
