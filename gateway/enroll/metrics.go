package enroll

import "github.com/prometheus/client_golang/prometheus"

// metrics count registrations.
type metrics struct {
	accepted *prometheus.CounterVec // identity, result
	refusals *prometheus.CounterVec // reason
}

// newMetrics registers the series; a nil registerer keeps them to itself.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		accepted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dstack_gateway_registrations_total",
			Help: "Registrations by the proof that the identity rests on, and whether they changed anything.",
		}, []string{"identity", "result"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dstack_gateway_registration_refusals_total",
			Help: "Registrations that were refused or could not be done, by reason.",
		}, []string{"reason"}),
	}
	return m, register(r, m.accepted, m.refusals)
}

func (m *metrics) registered(identity string, changed bool) {
	result := "unchanged"
	if changed {
		result = "changed"
	}
	m.accepted.WithLabelValues(identity, result).Inc()
}

func register(r prometheus.Registerer, collectors ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	for _, c := range collectors {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
