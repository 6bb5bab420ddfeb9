package attest

import (
	"container/list"
	"errors"
	"net/netip"

	"dstack.host/ratls"
)

// Bounds of a queue. A quote takes about a second, and nobody waits longer than the patience of the configuration.
const (
	// maxBatch is how many challenges one quote answers: their paths have 12 steps.
	maxBatch = 4096
	// maxWaiting is how many callers may wait; maxClientWaiting, how many of one client's.
	maxWaiting       = 32 << 10
	maxClientWaiting = 256
	// maxClientTopics is for how many topics one client may wait: in the usual patience there are quotes for no more, once two
	// others wait as well.
	maxClientTopics = 10
)

// errCrowded refuses a caller: too many wait already.
var errCrowded = errors.New("more callers wait than quotes can be made for")

// topic is what one quote, or one round of questions to an app, can answer.
type topic struct {
	subject    subject
	challenged bool
	round      *round // what the apps have answered, where they were asked
	apps       string // in the queue for rounds, and alone: who is to be asked
}

// class is a kind of waiting. Each has turns of its own, so that none keeps another from its answers.
type class uint8

const (
	challenging class = iota // with a nonce
	reading                  // without, a document that is not held
	renewing                 // nobody waits: a document that is held is to be quoted anew
	classes
)

// waiter is one who waits.
type waiter struct {
	class     class
	client    netip.Prefix // the zero Prefix for nobody
	subject   subject
	challenge ratls.Challenge
	index     int          // of the challenge, in a round
	answer    chan outcome // holds one, so that whoever answers never waits
	// guarded by the mu of the line, as all of a queue
	topic   topic
	gone    bool
	queue   *queue        // nil when it does not stand in any
	party   *party        // its client's
	own     *list.Element // in the party's waiters
	sharing *list.Element // among all who wait for the topic
}

// party is a client who waits, with all its wishes of one class.
type party struct {
	client  netip.Prefix
	waiters list.List // of *waiter, in the order of their coming
	topics  map[topic]int
	place   *list.Element // in the ring
}

// ring is the clients of one class: the first has the next turn, and stands last then.
type ring struct {
	parties list.List // of *party
	of      map[netip.Prefix]*party
}

// queue decides what comes next. Classes take turns, and in a class the clients who wait do; a client's oldest wish names the topic,
// and everybody who waits for that is answered with it. So a client with one wish waits for as many others at most as there are
// other clients in its class (times the classes that are busy), however many topics those rotate. It is no more than a value: it
// has no lock, no clock and no goroutine.
type queue struct {
	wake chan struct{} // holds one: there is something to take

	rings   [classes]ring
	topics  map[topic]*list.List // of *waiter, in the order of their coming
	busy    map[topic]bool       // being answered: whoever comes now waits for the next answer
	last    class                // whose turn was last
	waiting int                  // those of class renewing are not counted
}

// job is what the next quote, or round, answers.
type job struct {
	topic   topic
	waiters []*waiter
}

func newQueue() *queue {
	q := &queue{wake: make(chan struct{}, 1), topics: map[topic]*list.List{}, busy: map[topic]bool{}, last: classes - 1}
	for i := range q.rings {
		q.rings[i].of = map[netip.Prefix]*party{}
	}
	return q
}

// admits reports whether a caller may come for a topic.
func (q *queue) admits(w *waiter, t topic) bool {
	p := q.rings[w.class].of[w.client]
	return q.waiting < maxWaiting &&
		(p == nil || p.waiters.Len() < maxClientWaiting && (p.topics[t] > 0 || len(p.topics) < maxClientTopics))
}

// push lets a waiter stand behind all others of its client's, and behind all others who wait for the topic.
func (q *queue) push(w *waiter, t topic) {
	r := &q.rings[w.class]
	p := r.of[w.client]
	if p == nil {
		p = &party{client: w.client, topics: map[topic]int{}}
		p.place = r.parties.PushBack(p)
		r.of[w.client] = p
	}
	if q.topics[t] == nil {
		q.topics[t] = list.New()
	}
	w.topic, w.queue, w.party = t, q, p
	w.own, w.sharing = p.waiters.PushBack(w), q.topics[t].PushBack(w)
	p.topics[t]++
	if w.class != renewing {
		q.waiting++
	}
}

// remove takes a waiter out, and forgets its client and its topic when it was their last.
func (q *queue) remove(w *waiter) {
	p, t := w.party, w.topic
	p.waiters.Remove(w.own)
	if p.topics[t]--; p.topics[t] == 0 {
		delete(p.topics, t)
	}
	if p.waiters.Len() == 0 {
		q.rings[w.class].parties.Remove(p.place)
		delete(q.rings[w.class].of, p.client)
	}
	if q.topics[t].Remove(w.sharing); q.topics[t].Len() == 0 {
		delete(q.topics, t)
	}
	if w.class != renewing {
		q.waiting--
	}
	w.queue, w.party, w.own, w.sharing = nil, nil, nil, nil
}

// next is who names the next topic; nil for nobody.
func (q *queue) next() *waiter {
	for i := range classes {
		c := (q.last + 1 + i) % classes
		for at := q.rings[c].parties.Front(); at != nil; at = at.Next() {
			for w := at.Value.(*party).waiters.Front(); w != nil; w = w.Next() {
				if w := w.Value.(*waiter); !q.busy[w.topic] {
					return w
				}
			}
		}
	}
	return nil
}

// take returns the next job, nil when there is none. Its topic is busy until done.
func (q *queue) take() *job {
	w := q.next()
	if w == nil {
		return nil
	}
	j := &job{topic: w.topic}
	q.last = w.class
	q.rings[w.class].parties.MoveToBack(w.party.place)
	for w != nil && len(j.waiters) < maxBatch {
		q.remove(w)
		j.waiters = append(j.waiters, w)
		w = nil
		if others := q.topics[j.topic]; others != nil {
			w = others.Front().Value.(*waiter)
		}
	}
	q.busy[j.topic] = true
	return j
}

// done ends a job: its topic may be taken again.
func (q *queue) done(j *job) { delete(q.busy, j.topic) }
