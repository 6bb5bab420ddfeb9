package ratls

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"strings"
)

// appWalk is the part of a walk that belongs to one instance.
type appWalk struct {
	*walk
	evidence *AppEvidence
	stated   StatementInstance
	// set by LinkAppQuote
	quote      *Quote
	quoteError error
	// set by LinkAppIdentity
	info AppInfo
	// set by LinkAppBinding: the quote is over what its binding says, and what that is
	bound bool
	said  *AppStatement
}

// hop is where the instance's links are told.
func (a *appWalk) hop() string { return HopApp + " " + a.stated.ID }

// links is the part of the chain that every instance has.
func (a *appWalk) links() []link {
	return []link{
		{LinkAppQuote, a.quoted},
		{LinkAppTCB, a.tcb},
		{LinkReplay, a.replay},
		{LinkAppIdentity, a.identity},
		{LinkAppCompose, a.compose},
		{LinkAppPins, a.pins},
		{LinkAppBinding, a.binding},
		{LinkAppFresh, a.fresh},
		{LinkWireGuardKey, a.wireGuardKey},
		{LinkInstance, a.instance},
	}
}

func (a *appWalk) quoted(ctx context.Context) outcome {
	if len(a.evidence.Quote) == 0 {
		return fail("there is no quote: a KMS vouches for the instance (binding %q), and that cannot be verified from here", a.evidence.Binding)
	}
	a.quote, a.quoteError = a.verifier.Verify(ctx, a.evidence.Quote)
	return quoteOutcome(a.evidence.Kind, a.quote, a.quoteError)
}

func (a *appWalk) tcb(context.Context) outcome { return tcbOutcome(a.quote, a.quoteError) }

func (a *appWalk) replay(context.Context) outcome {
	if err := replays(a.quote, a.evidence.EventLog); err != nil {
		return fail("%v", err)
	}
	return pass("%d events replay to RTMR3 %s", len(RuntimeEvents(a.evidence.EventLog)), a.quote.RTMR[rtmr3])
}

// identity holds what was measured to what the statement says and to what the host's name names.
func (a *appWalk) identity(context.Context) outcome {
	info, err := DecodeAppInfo(a.quote, a.evidence.EventLog, a.evidence.VMConfig)
	if err != nil {
		return fail("%v", err)
	}
	app, instance, compose := hex.EncodeToString(info.AppID), hex.EncodeToString(info.InstanceID), hex.EncodeToString(info.ComposeHash)
	if app != a.statement.App.ID {
		return fail("the statement is about app %s, the evidence is of app %s", a.statement.App.ID, app)
	}
	a.info = info
	switch named := strings.ToLower(a.subject.ID); named {
	case app:
		return pass("the host names app %s, which is what was measured", app)
	case instance:
		return pass("the host names instance %s of app %s, which is what was measured", instance, app)
	case compose:
		return pass("the host names compose hash %s, which is what was measured", compose)
	default:
		return fail("the host names %q; measured were app %s, instance %s, compose hash %s", shorten(named), app, instance, compose)
	}
}

// compose holds the text that people read to the hash that was measured.
func (a *appWalk) compose(context.Context) outcome {
	if a.evidence.AppCompose == "" && a.evidence.Binding == BindingCertificate && !a.chain.RequireCompose {
		return skip("a guest of this kind sends no app-compose; its measured hash is %x", []byte(a.info.ComposeHash))
	}
	if err := a.evidence.composed(a.info); err != nil {
		return fail("%v", err)
	}
	return pass("the app-compose has the measured SHA-256 %x", []byte(a.info.ComposeHash))
}

func (a *appWalk) pins(context.Context) outcome { return a.chain.Apps.judge(a.quote, a.info) }

func (a *appWalk) binding(context.Context) outcome {
	said, err := a.evidence.bound(a.quote)
	if err != nil {
		return fail("%v", err)
	}
	a.bound, a.said = true, said
	switch {
	case said == nil:
		return pass("%s: the quote is over the TLS key that the instance registered with", a.evidence.Binding)
	case said.IssuedAt.After(a.now.Add(maxSkew)):
		return fail("the app statement was issued at %s, which is yet to come", stamp(said.IssuedAt))
	default:
		return pass("%s: the quote is over the app statement of %s", a.evidence.Binding, stamp(said.IssuedAt))
	}
}

// fresh holds the instance to the challenge: a quote that was made when it registered is as old as its registration.
func (a *appWalk) fresh(context.Context) outcome {
	switch {
	case !a.subject.FreshApp && a.said == nil:
		return skip("not asked for: the quote is from the instance's registration")
	case !a.subject.FreshApp:
		return skip("not asked for: the quote is of %s", stamp(a.said.IssuedAt))
	case a.subject.Nonce == nil:
		return fail("without a nonce there is no challenge that the instance could answer")
	case a.said == nil:
		return fail("the quote (binding %q) is over no challenge", a.evidence.Binding)
	case a.said.Challenge != a.doc.Challenge.Root.String():
		return fail("the app statement answers challenge %s, the document's root is %s", a.said.Challenge, a.doc.Challenge.Root)
	}
	return pass("the instance's own quote, of %s, answers the root of the challenge", stamp(a.said.IssuedAt))
}

// wireGuardKey never takes the weaker binding for the stronger: where the quote does not name the key, that is said.
func (a *appWalk) wireGuardKey(context.Context) outcome {
	switch {
	case a.said == nil && a.chain.RequireWireGuard:
		return fail("the quote (binding %q) does not name the WireGuard key, and that is required", a.evidence.Binding)
	case a.said == nil:
		return skip("the quote (binding %q) does not name the WireGuard key: that %s is the instance's is the gateway's word", a.evidence.Binding, a.stated.WGPublicKey)
	case a.said.WGPublicKey != a.stated.WGPublicKey:
		return fail("the instance's quote names WireGuard key %s, the gateway's tunnel has %s", a.said.WGPublicKey, a.stated.WGPublicKey)
	}
	return pass("the instance's quote and the gateway's tunnel have key %s", a.stated.WGPublicKey)
}

func (a *appWalk) instance(context.Context) outcome {
	if err := a.evidence.identified(a.info, a.said); err != nil {
		return fail("%v", err)
	}
	if measured, err := hex.DecodeString(a.stated.ID); err != nil || !bytes.Equal(measured, a.info.InstanceID) {
		return fail("the statement names instance %s, the evidence is of instance %x", a.stated.ID, []byte(a.info.InstanceID))
	}
	return pass("%s", fmt.Sprintf("instance %s", a.stated.ID))
}
