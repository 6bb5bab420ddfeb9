package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"dstack.host/gateway/store"
)

// SetChallenge adds a value to the TXT record of a fully qualified name, with or without trailing dot, and returns
// when the snapshot has it. A name may have many values, for several certificates may be in the making.
func (r *Registry) SetChallenge(ctx context.Context, fqdn, value string) error {
	return r.changeChallenge(ctx, fqdn, value, true)
}

// DeleteChallenge removes a value that SetChallenge added, if it is there, and returns when it is gone from the
// snapshot.
func (r *Registry) DeleteChallenge(ctx context.Context, fqdn, value string) error {
	return r.changeChallenge(ctx, fqdn, value, false)
}

func (r *Registry) changeChallenge(ctx context.Context, fqdn, value string, set bool) error {
	c := challengeRecord{recordVersion, strings.ToLower(strings.TrimSuffix(fqdn, ".")), value, r.now().Add(challengeLife).UTC().Truncate(time.Second)}
	if err := checkChallenge(c.Name, c.Value); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	record, err := json.Marshal(c)
	if err != nil {
		return err
	}
	op := store.Delete(r.challengePath(c))
	if set {
		op = store.Put(r.challengePath(c), record)
	}
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	revision, err := r.store.Commit(ctx, nil, []store.Op{op})
	if err != nil {
		return fmt.Errorf("challenge for %s: %w", c.Name, err)
	}
	// Deleting what is not there makes no revision that the snapshot would come to.
	return r.await(ctx, func(s *Snapshot) bool {
		has := slices.Contains(s.Challenges()[c.Name], c.Value)
		return s.Loaded() && has == set || s.Revision() >= revision
	})
}

// challengeLife is longer than any authority takes to validate.
const challengeLife = time.Hour

// ExpireChallenges removes the values that SetChallenge added longer ago than any authority takes to validate: those of
// a process that ended before it could remove them.
func (r *Registry) ExpireChallenges(ctx context.Context) error {
	entries, _, err := r.store.List(ctx, challengesDir)
	if err != nil {
		return fmt.Errorf("challenges: %w", err)
	}
	for _, entry := range entries {
		c, err := decodeChallenge(entry.Value)
		if err != nil || r.now().Before(c.Until) {
			continue // what is unusable was alarmed when it came
		}
		_, err = r.store.Commit(ctx, []store.Cond{{Path: entry.Path, Revision: entry.Revision}}, []store.Op{store.Delete(entry.Path)})
		if err != nil && !errors.Is(err, store.ErrConflict) { // else somebody needs it again, or another node was faster
			return fmt.Errorf("challenge for %s: %w", c.Name, err)
		}
	}
	return nil
}

// checkChallenge holds the limits of RFC 1035: 253 characters of a name, 255 octets of one character-string.
func checkChallenge(name, value string) error {
	switch {
	case name == "" || len(name) > 253 || strings.HasSuffix(name, ".") || name != strings.ToLower(name):
		return errors.New("challenge for an impossible name")
	case value == "" || len(value) > 255:
		return errors.New("challenge value must have 1 to 255 octets")
	}
	for _, c := range []byte(name + value) {
		if c <= ' ' || c > '~' {
			return errors.New("challenge with characters that are not printable ASCII")
		}
	}
	return nil
}
