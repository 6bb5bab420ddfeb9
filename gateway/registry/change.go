package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dstack.host/gateway/store"
)

// Remove makes an instance unknown and frees its key and its address. It is store.ErrNotFound for one that is not
// known. When it returns without error, the snapshot does not have the instance.
func (r *Registry) Remove(ctx context.Context, id InstanceID) error {
	_, err := r.RemoveIf(ctx, id, func(*Instance) bool { return true })
	return err
}

// RemoveIf is Remove for an instance that is, when it is removed, still as the caller thinks. It reports whether it was.
func (r *Registry) RemoveIf(ctx context.Context, id InstanceID, still func(*Instance) bool) (bool, error) {
	return r.change(ctx, id, func(cur *Instance, tx *transaction) (bool, error) {
		if !still(cur) {
			return false, nil
		}
		tx.delete(r.instancePath(id))
		tx.delete(r.keyPath(cur.Key))
		tx.delete(r.addrPath(cur.Addr))
		return true, nil
	})
}

// Drain takes an instance out of service for a reason, a few known words, if it is still the one that the caller judged: with the
// same key, code and evidence. It stays known, with its address and its tunnel, until it is removed or registers anew. It reports whether it drains
// from now on.
func (r *Registry) Drain(ctx context.Context, judged *Instance, reason string) (bool, error) {
	return r.update(ctx, judged.ID, func(inst *Instance) {
		same := inst.Key == judged.Key && inst.Compose == judged.Compose && inst.EvidenceAt.Equal(judged.EvidenceAt)
		if same && !inst.Draining() {
			inst.Drain = Drain{r.now().UTC().Truncate(time.Second), reason}
		}
	})
}

// SetOverride sets the operator's port policy of an instance, which counts instead of the app's and survives new registrations; nil takes it back.
func (r *Registry) SetOverride(ctx context.Context, id InstanceID, policy *PortPolicy) error {
	_, err := r.update(ctx, id, func(inst *Instance) { inst.Override = policy })
	return err
}

// SetMeasuredPorts sets the port policy that stands in the app-compose.json with a hash, if the instance still runs that. An app
// that reported a policy itself meanwhile keeps it, unless measured is set.
func (r *Registry) SetMeasuredPorts(ctx context.Context, id InstanceID, compose ComposeHash, policy *PortPolicy, measured bool) error {
	_, err := r.update(ctx, id, func(inst *Instance) {
		if inst.Compose == compose && (inst.Ports == nil || measured && !inst.Measured) {
			inst.Ports, inst.Measured = policy, measured
		}
	})
	return err
}

// update changes the record of an instance, and reports whether that was a change. It is ErrInvalid when the result makes no sense.
func (r *Registry) update(ctx context.Context, id InstanceID, edit func(*Instance)) (bool, error) {
	return r.change(ctx, id, func(cur *Instance, tx *transaction) (bool, error) {
		next := *cur
		edit(&next)
		if err := next.check(); err != nil {
			return false, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if cur.equal(&next) {
			return false, nil
		}
		data, err := encode(&next)
		tx.put(r.instancePath(id), data)
		return true, err
	})
}

// change adds what plan wants to a transaction on the instance as it is stored, and waits for the snapshot. It begins again when
// somebody else was faster, and is store.ErrNotFound when there is no such instance.
func (r *Registry) change(ctx context.Context, id InstanceID, plan func(*Instance, *transaction) (bool, error)) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	for range registerAttempts {
		changed, err := r.tryChange(ctx, id, plan)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("instance %s: %w", id, err)
		}
		return changed, nil
	}
	return false, fmt.Errorf("instance %s: %w: others kept changing it", id, store.ErrUnavailable)
}

func (r *Registry) tryChange(ctx context.Context, id InstanceID, plan func(*Instance, *transaction) (bool, error)) (bool, error) {
	cur, revision, err := r.load(ctx, id)
	switch {
	case err != nil:
		return false, err
	case cur == nil:
		return false, store.ErrNotFound
	}
	tx := transaction{}
	tx.require(r.instancePath(id), revision)
	if changed, err := plan(cur, &tx); err != nil || !changed {
		return false, err
	}
	if revision, err = r.store.Commit(ctx, tx.conds, tx.ops); err != nil {
		return false, err
	}
	return true, r.awaitRevision(ctx, revision)
}
