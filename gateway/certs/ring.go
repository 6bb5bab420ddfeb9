package certs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// ringInterval is how long a secret is the one in use.
	ringInterval = 24 * time.Hour
	// ringOverlap is how long it still works after that.
	ringOverlap = 24 * time.Hour
	// maxRing bounds the secrets of a ring: one in use, one to come, one that still works, and room for those of clocks that
	// were wrong.
	maxRing = 8
)

// generation is one secret and when it comes into use.
type generation struct {
	From   time.Time `json:"from"`
	Secret []byte    `json:"secret"`
}

// ring is a secret in its generations, the oldest first: those that still work, the one in use, and the next, which all nodes
// know for a day before it is used. It is never changed.
type ring []generation

// parseRing reads what is stored, secrets of size octets; nothing is an empty ring. Errors do not show the value.
func parseRing(value []byte, size int) (ring, error) {
	if len(value) == 0 {
		return nil, nil
	}
	var r ring
	if err := json.Unmarshal(value, &r); err != nil || len(r) == 0 || len(r) > maxRing {
		return nil, errors.New("not a list of one to eight generations")
	}
	for i, g := range r {
		if len(g.Secret) != size || i > 0 && g.From.Before(r[i-1].From) {
			return nil, fmt.Errorf("generation %d of %d has another size or is out of order", i+1, len(r))
		}
	}
	return r, nil
}

// inUse is the index of the generation in use: the last that has begun. When a clock that was wrong has left only ones to come,
// it is the first.
func (r ring) inUse(now time.Time) int {
	i := len(r) - 1
	for i > 0 && r[i].From.After(now) {
		i--
	}
	return i
}

// advance returns the ring as it should be now, and whether that is another: without what has stopped working, with a generation
// to come that begins within an interval. With fresh it makes generations; it gets what there is, to make another.
func (r ring) advance(now time.Time, fresh func(ring) ([]byte, error)) (ring, bool, error) {
	next := slices.Clone(r)
	add := func(from time.Time) error {
		secret, err := fresh(next)
		next = append(next, generation{From: from.UTC().Truncate(time.Second), Secret: secret})
		return err
	}
	if len(next) == 0 {
		if err := add(now); err != nil {
			return r, false, err
		}
	}
	if next[0].From.After(now.Add(ringInterval)) {
		next[0].From = now.UTC().Truncate(time.Second) // a clock was wrong
	}
	for len(next) > 1 && !next[1].From.Add(ringOverlap).After(now) {
		next = next[1:]
	}
	switch at := next.inUse(now); {
	case at == len(next)-1:
		from := next[at].From.Add(ringInterval)
		if !from.After(now) || from.After(now.Add(ringInterval)) { // nobody was here for long, or the clock was wrong
			from = now.Add(ringInterval)
		}
		if err := add(from); err != nil {
			return r, false, err
		}
	case next[at+1].From.After(now.Add(2 * ringInterval)): // a clock was wrong: one that is to come may come earlier
		next = next[:at+2]
		next[at+1].From = now.Add(ringInterval).UTC().Truncate(time.Second)
	}
	return next, !next.equal(r), nil
}

// due is how long the ring stays as it is.
func (r ring) due(now time.Time) time.Duration {
	wait := ringInterval
	for i, g := range r {
		if until := g.From.Sub(now); until > 0 {
			wait = min(wait, until)
		}
		if i > 0 {
			if until := g.From.Add(ringOverlap).Sub(now); until > 0 {
				wait = min(wait, until)
			}
		}
	}
	return wait
}

// order returns the secrets with the one in use first, then the others, the newest first.
func (r ring) order(now time.Time) [][]byte {
	if len(r) == 0 {
		return nil
	}
	at := r.inUse(now)
	out := [][]byte{r[at].Secret}
	for i := len(r) - 1; i >= 0; i-- {
		if i != at {
			out = append(out, r[i].Secret)
		}
	}
	return out
}

func (r ring) equal(other ring) bool {
	return slices.EqualFunc(r, other, func(a, b generation) bool {
		return a.From.Equal(b.From) && bytes.Equal(a.Secret, b.Secret)
	})
}
