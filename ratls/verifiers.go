package ratls

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// QuoteVerifier verifies quotes and knows their collateral: a [Verifier], or [Verifiers] of several roots.
type QuoteVerifier interface {
	// Verify verifies a raw quote in full; an error is a [*Refusal] where the evidence is at fault.
	Verify(ctx context.Context, raw []byte) (*Quote, error)
	// Collateral returns what a stranger needs to verify the quote offline.
	Collateral(ctx context.Context, raw []byte) ([]Collateral, error)
}

// Verifiers accepts quotes below any of several roots, as a network does whose guests are of different kinds. The verifier of
// the root that a quote descends from judges it alone.
type Verifiers []*Verifier

// Verify has the quote verified by the verifier of its root.
func (vs Verifiers) Verify(ctx context.Context, raw []byte) (*Quote, error) {
	return ofRoot(vs, func(v *Verifier) (*Quote, error) { return v.Verify(ctx, raw) })
}

// Collateral returns the collateral of the verifier of the quote's root.
func (vs Verifiers) Collateral(ctx context.Context, raw []byte) ([]Collateral, error) {
	return ofRoot(vs, func(v *Verifier) ([]Collateral, error) { return v.Collateral(ctx, raw) })
}

// ofRoot tries each verifier until one knows the root.
func ofRoot[T any](vs Verifiers, try func(*Verifier) (T, error)) (result T, err error) {
	var reasons []string
	for _, v := range vs {
		result, err = try(v)
		var refusal *Refusal
		if !errors.As(err, &refusal) || refusal.Check != CheckQuoteRoot {
			return result, err
		}
		reasons = append(reasons, fmt.Sprintf("%s: %v", v.Kind(), refusal.Err))
	}
	if len(reasons) == 0 {
		return result, errors.New("no root of trust is accepted")
	}
	return result, refuse(CheckQuoteRoot, "%s", strings.Join(reasons, "; "))
}
