package attest

// Doors for tests.
var (
	NewLimiter  = newLimiter
	Take        = (*limiter).take
	ClientOf    = clientOf
	ChallengeOf = challengeOf
	Matches     = matches
)

// SubjectOf is the canonical host that a name stands for below the bases, or why there is none.
func SubjectOf(host string, bases ...string) (string, error) {
	s, err := parseSubject(host, bases)
	return s.host, err
}

// What is kept of keys, and where.
const (
	KeyPrefix  = keyPrefix
	MaxRecords = maxRecords
)

// KeyPath is where the record of a key by this image lies. The image has to have quoted one.
func (a *Attester) KeyPath(spki []byte) string {
	return record{PublicKey: spki, Image: *a.image.Load()}.path()
}

// MaxClients is how many clients a limiter remembers.
const MaxClients = maxClients

// Negotiate is the media type that a client gets, "" for none.
func Negotiate(accept ...string) string {
	kind, ok := negotiate(accept)
	if !ok {
		return ""
	}
	return mediaTypes[kind]
}

// Waiting is how many callers stand in line.
func Waiting(a *Attester) int {
	a.line.mu.Lock()
	defer a.line.mu.Unlock()
	return a.line.waiting
}
