package attest

import (
	"sync"

	"dstack.host/ratls"
)

// outcome is what a quote made of a caller's wish: a document that is held, or its place in a batch.
type outcome struct {
	held  *document
	batch *ratls.Batch
	index int
	err   error
}

// line is all who wait.
type line struct {
	mu     sync.Mutex
	quotes *queue // guarded by mu: for quotes of the gateway's
	rounds *queue // guarded by mu: for apps' own quotes first
}

func newLine() *line { return &line{quotes: newQueue(), rounds: newQueue()} }

// join puts a caller in a queue, or refuses with errCrowded. Who joins has to leave when it does not wait for the answer any more.
func (l *line) join(q *queue, w *waiter, t topic) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !q.admits(w, t) {
		return errCrowded
	}
	w.answer = make(chan outcome, 1)
	q.push(w, t)
	q.signal()
	return nil
}

// leave takes a caller out, wherever it stands.
func (l *line) leave(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w.gone = true
	if w.queue != nil {
		w.queue.remove(w)
	}
}

// pass puts those whose apps have answered in the queue for quotes, but for those who have left.
func (l *line) pass(list []*waiter, t topic) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range list {
		if !w.gone {
			l.quotes.push(w, t)
		}
	}
	l.quotes.signal()
}

// requote asks for a document that nobody waits for, unless somebody does.
func (l *line) requote(s subject) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := topic{subject: s}
	if l.quotes.topics[t] == nil && !l.quotes.busy[t] {
		l.quotes.push(&waiter{class: renewing, subject: s, answer: make(chan outcome, 1)}, t)
		l.quotes.signal()
	}
}

// idle reports whether there is nothing to take.
func (l *line) idle(q *queue) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return q.next() == nil
}

// take returns the next job, nil when there is none, and wakes one more who takes when there are more.
func (l *line) take(q *queue) *job {
	l.mu.Lock()
	defer l.mu.Unlock()
	j := q.take()
	if q.next() != nil {
		q.signal()
	}
	return j
}

// done ends a job: its topic may be taken again.
func (l *line) done(q *queue, j *job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q.done(j)
	if q.next() != nil {
		q.signal()
	}
}

// signal wakes one who takes.
func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// challenges are those of a job's waiters.
func (j *job) challenges() []ratls.Challenge {
	list := make([]ratls.Challenge, len(j.waiters))
	for i, w := range j.waiters {
		list[i] = w.challenge
	}
	return list
}

// tell gives all waiters their answers.
func (j *job) tell(o outcome) {
	for i, w := range j.waiters {
		o.index = i
		if j.topic.round != nil {
			o.index = w.index
		}
		w.answer <- o
	}
}
