package ratls

import "context"

// NewAppEvidence is the instance's side of [BindingWireGuard]: it has the platform p quote the statement, and gathers everything
// that a gateway and its visitors need to verify it. It costs one quote.
func NewAppEvidence(ctx context.Context, p Platform, s AppStatement) (*AppEvidence, error) {
	text, err := s.Text()
	if err != nil {
		return nil, err
	}
	raw, events, err := gather(ctx, p, TaggedReportData(TagWireGuard, []byte(text)))
	if err != nil {
		return nil, err
	}
	e := &AppEvidence{
		InstanceID: s.InstanceID, Kind: p.Kind(), Binding: BindingWireGuard, Quote: raw, Statement: text,
		EventLog: events, AppCompose: p.AppCompose(), VMConfig: p.VMConfig(),
	}
	return e, e.check()
}
