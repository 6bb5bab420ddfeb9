package attest

import (
	"container/list"
	"errors"
	"sync"

	"dstack.host/ratls"
)

// Bounds of a line. A quote takes about a second, and nobody waits longer than the patience of the configuration.
const (
	// maxBatch is how many challenges one quote answers: their paths have 12 steps.
	maxBatch = 4096
	// maxWaiting is how many callers may stand in line, over all subjects.
	maxWaiting = 16 << 10
	// maxTopics is how many quotes may be waited for.
	maxTopics = 64
)

// errCrowded refuses a caller: the line is too long already.
var errCrowded = errors.New("more callers wait than quotes can be made for")

// topic is what one quote can answer: a subject, with challenges or without.
type topic struct {
	subject    subject
	challenged bool
}

// outcome is what a quote made of a caller's wish: a document that is held, or its place in a batch.
type outcome struct {
	held  *document
	batch *ratls.Batch
	index int
	err   error
}

// waiter is a caller in line.
type waiter struct {
	challenge ratls.Challenge
	answer    chan outcome // holds one, so that whoever answers never waits
	// guarded by the line's mu
	of    *entry
	place *list.Element // among the entry's waiters; nil when it is no longer in line
}

// entry is a topic in line.
type entry struct {
	topic   topic
	waiters list.List // of *waiter, in the order of their coming
	in      *list.List
	place   *list.Element // in one of the line's lists
}

// job is what the next quote answers.
type job struct {
	topic   topic
	waiters []*waiter
}

// line is who waits for quotes. Topics are served in the order in which somebody first asked for each, whatever the number of
// those who ask; what did not fit into a batch goes to the end. Re-quotes that nobody waits for have a line of their own: they
// take every other turn at most, while somebody waits for others.
type line struct {
	wake chan struct{} // holds one: there is something to do

	mu         sync.Mutex
	entries    map[topic]*entry // guarded by mu, as all below
	wanted     list.List        // of *entry that somebody waits for
	background list.List        // of *entry that nobody waits for
	waiting    int
	busy       map[topic]bool // being quoted: whoever comes now waits for the next quote
	lastWanted bool           // somebody waited for the last job
}

func newLine() *line {
	return &line{wake: make(chan struct{}, 1), entries: map[topic]*entry{}, busy: map[topic]bool{}}
}

// join puts a caller in line, or refuses with errCrowded. Who joins has to leave when it does not wait for the answer any more.
func (l *line) join(t topic, c ratls.Challenge) (*waiter, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[t]
	if l.waiting >= maxWaiting || (e == nil || e.in != &l.wanted) && l.wanted.Len() >= maxTopics {
		return nil, errCrowded
	}
	if e == nil {
		e = &entry{topic: t}
		l.entries[t] = e
	}
	w := &waiter{challenge: c, answer: make(chan outcome, 1), of: e}
	w.place = e.waiters.PushBack(w)
	l.waiting++
	l.put(e, &l.wanted)
	l.signal()
	return w, nil
}

// leave takes a caller out of the line, if it still stands there.
func (l *line) leave(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.place == nil {
		return
	}
	w.of.waiters.Remove(w.place)
	w.place = nil
	l.waiting--
	if w.of.waiters.Len() == 0 {
		l.drop(w.of)
	}
}

// requote puts a topic in line that nobody waits for, unless it is there already.
func (l *line) requote(t topic) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entries[t] != nil {
		return
	}
	e := &entry{topic: t}
	l.entries[t] = e
	l.put(e, &l.background)
	l.signal()
}

// put stands an entry at the end of one of the lists, if it is not there already.
func (l *line) put(e *entry, to *list.List) {
	switch e.in {
	case to:
		return
	case nil:
	default:
		e.in.Remove(e.place)
	}
	e.in, e.place = to, to.PushBack(e)
}

// drop takes an entry out of the line.
func (l *line) drop(e *entry) {
	e.in.Remove(e.place)
	e.in, e.place = nil, nil
	delete(l.entries, e.topic)
}

// signal wakes one who takes.
func (l *line) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// idle reports whether there is nothing to take.
func (l *line) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next() == nil
}

// next is the entry whose turn it is; nil for none.
func (l *line) next() *entry {
	lists := []*list.List{&l.wanted, &l.background}
	if l.lastWanted {
		lists[0], lists[1] = lists[1], lists[0]
	}
	for _, in := range lists {
		for at := in.Front(); at != nil; at = at.Next() {
			if e := at.Value.(*entry); !l.busy[e.topic] {
				return e
			}
		}
	}
	return nil
}

// take returns the next job, nil when there is none. Its topic is busy until done.
func (l *line) take() *job {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.next()
	if e == nil {
		return nil
	}
	l.lastWanted = e.in == &l.wanted
	j := &job{topic: e.topic}
	for len(j.waiters) < maxBatch && e.waiters.Len() > 0 {
		w := e.waiters.Remove(e.waiters.Front()).(*waiter)
		w.place = nil
		j.waiters = append(j.waiters, w)
	}
	l.waiting -= len(j.waiters)
	l.drop(e)
	if e.waiters.Len() > 0 {
		l.entries[e.topic] = e
		l.put(e, &l.wanted)
	}
	l.busy[j.topic] = true
	if l.next() != nil {
		l.signal()
	}
	return j
}

// done ends a job: its topic may be taken again.
func (l *line) done(j *job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.busy, j.topic)
	if l.next() != nil {
		l.signal()
	}
}

// challenges are those of a job's waiters, nil for a job without.
func (j *job) challenges() (*ratls.Challenges, error) {
	if !j.topic.challenged {
		return nil, nil
	}
	list := make([]ratls.Challenge, len(j.waiters))
	for i, w := range j.waiters {
		list[i] = w.challenge
	}
	return ratls.NewChallenges(list)
}

// tell gives all waiters their answers.
func (j *job) tell(o outcome) {
	for i, w := range j.waiters {
		o.index = i
		w.answer <- o
	}
}
