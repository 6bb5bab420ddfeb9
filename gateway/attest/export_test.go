package attest

import (
	"net/netip"
	"strconv"
)

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
	return a.line.quotes.waiting
}

// Queue is a queue whose topics and clients are named by a letter or number each.
type Queue struct {
	q    *queue
	busy *job
	all  map[string]*waiter
}

// NewQueue makes an empty one.
func NewQueue() *Queue { return &Queue{q: newQueue(), all: map[string]*waiter{}} }

// named is a topic.
func named(name string, challenged bool) topic {
	return topic{subject: subject{host: name}, challenged: challenged}
}

// Push lets a client wait: with a nonce (n), without (r), or nobody for a re-quote (q).
func (q *Queue) Push(kind, client, name string) {
	w := &waiter{class: map[string]class{"n": challenging, "r": reading, "q": renewing}[kind]}
	if client != "" {
		w.client = netip.PrefixFrom(netip.AddrFrom4([4]byte{client[0]}), 32)
	}
	q.all[client] = w
	q.q.push(w, named(name, kind == "n"))
}

// Leave takes a client's last wish out.
func (q *Queue) Leave(client string) { q.q.remove(q.all[client]) }

// Take takes a job, and ends it unless it is to be busy: its topic, and whom it answers; "" for none.
func (q *Queue) Take(busy bool) string {
	j := q.q.take()
	if j == nil {
		return ""
	}
	if busy {
		q.busy = j
	} else {
		q.q.done(j)
	}
	name := j.topic.subject.host + ":"
	for _, w := range j.waiters {
		if w.class != renewing {
			name += string(rune(w.client.Addr().As4()[0]))
		}
	}
	return name
}

// Done ends the job that was taken last.
func (q *Queue) Done() { q.q.done(q.busy) }

// Empty reports whether nothing is held of those who have gone.
func (q *Queue) Empty() bool {
	held := len(q.q.topics) + q.q.waiting
	for _, r := range q.q.rings {
		held += r.parties.Len() + len(r.of)
	}
	return held == 0
}

// Join lets a client wait with a nonce, if there is room.
func (q *Queue) Join(client netip.Prefix, name int) bool {
	w, t := &waiter{client: client}, named(strconv.Itoa(name), true)
	if !q.q.admits(w, t) {
		return false
	}
	q.q.push(w, t)
	return true
}

// Batch takes a job, and returns how many it answers.
func (q *Queue) Batch() int { return len(q.q.take().waiters) }
