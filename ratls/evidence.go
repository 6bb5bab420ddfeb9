package ratls

import (
	"context"
	"fmt"
)

// The checks that evidence passes beyond those of its quote. A [Refusal] names one of them, or one of [QuoteChecks].
const (
	// CheckCertificate: the certificate carries one well-formed piece of evidence.
	CheckCertificate = "certificate"
	// CheckReportData: the quote is over what it is presented for.
	CheckReportData = "report-data"
	// CheckReplay: the event log replays to RTMR[3] of the quote.
	CheckReplay = "rtmr3-replay"
	// CheckAppInfo: the event log names an application.
	CheckAppInfo = "app-info"
)

// attempts is how often evidence is gathered until quote and event log agree.
const attempts = 3

// gather has data quoted and reads the event log that belongs to the quote. An application may add an event between the two, so
// a log that does not replay to the quote is read again with a new quote.
func gather(ctx context.Context, p Platform, data ReportData) (raw []byte, events []Event, err error) {
	for range attempts {
		if raw, err = p.Quote(ctx, data); err != nil {
			return nil, nil, fmt.Errorf("quote: %w", err)
		}
		if events, err = p.EventLog(ctx); err != nil {
			return nil, nil, fmt.Errorf("event log: %w", err)
		}
		var q *Quote
		if q, err = ParseQuote(raw); err != nil {
			return nil, nil, fmt.Errorf("own quote: %w", err)
		}
		if q.ReportData != data {
			return nil, nil, fmt.Errorf("own quote is over %s, not over what was asked for", q.ReportData)
		}
		if err = replays(q, events); err == nil {
			return raw, events, nil
		}
	}
	return nil, nil, fmt.Errorf("own evidence, after %d attempts: %w", attempts, err)
}

// replays holds an event log against RTMR[3] of a quote.
func replays(q *Quote, events []Event) error {
	rtmr, err := ReplayRTMR3(events)
	if err != nil {
		return &Refusal{Check: CheckReplay, Err: err}
	}
	if rtmr != q.RTMR[rtmr3] {
		return refuse(CheckReplay, "the event log replays to RTMR3 %s, the quote has %s", rtmr, q.RTMR[rtmr3])
	}
	return nil
}
