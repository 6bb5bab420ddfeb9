package simtdx

import "dstack.host/ratls"

// Info returns what the true log says of the application.
func (t *TD) Info() (ratls.AppInfo, error) {
	raw, err := t.machine.quote(t.state(ratls.ReportData{}))
	if err != nil {
		return ratls.AppInfo{}, err
	}
	q, err := ratls.ParseQuote(raw)
	if err != nil {
		return ratls.AppInfo{}, err
	}
	return ratls.DecodeAppInfo(q, t.log(), t.vmConfig)
}
