package dnsserver

import (
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// The query types and response codes that are told apart. Strangers choose the
// others, so they are one.
var (
	countedTypes = [...]uint16{
		dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeTXT, dns.TypeCAA, dns.TypeNS, dns.TypeSOA, dns.TypeTLSA, dns.TypeDNSKEY, dns.TypeDS,
		dns.TypeCDS, dns.TypeCDNSKEY, dns.TypeNSEC, dns.TypeCNAME, dns.TypeMX, dns.TypeSRV, dns.TypeSVCB, dns.TypePTR, dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR,
	}
	countedRcodes = [...]int{
		dns.RcodeSuccess, dns.RcodeFormatError, dns.RcodeServerFailure, dns.RcodeNameError, dns.RcodeNotImplemented, dns.RcodeRefused, dns.RcodeBadVers,
	}
	// latencyBounds are the upper bounds of the histogram's buckets.
	latencyBounds = [...]time.Duration{
		10 * time.Microsecond, 25 * time.Microsecond, 50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
		time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second,
	}
)

// Places of the others, and of queries whose question can't be read.
const (
	otherType = len(countedTypes)
	noType    = otherType + 1
	types     = noType + 1
	rcodes    = len(countedRcodes) + 1
)

// typePlaces is where types up to 257 are counted; 0 is none of them.
var typePlaces = func() (places [dns.TypeCAA + 1]uint8) {
	for i, t := range countedTypes {
		places[t] = uint8(i + 1)
	}
	return places
}()

func typePlace(t uint16) int {
	if int(t) < len(typePlaces) && typePlaces[t] > 0 {
		return int(typePlaces[t]) - 1
	}
	return otherType
}

func rcodePlace(rcode int) int {
	for i, r := range countedRcodes {
		if r == rcode {
			return i
		}
	}
	return rcodes - 1
}

// counters are of one worker, or of all connections of a transport: adding to
// what nobody else adds to costs next to nothing. They are summed when somebody
// looks.
type counters struct {
	transport Transport
	answers   [types][rcodes]atomic.Uint64
	latency   [len(latencyBounds) + 1]atomic.Uint64
	seconds   atomic.Int64 // nanoseconds, in fact
	cached    atomic.Uint64
	truncated atomic.Uint64 // sent without data, beyond the limit of the rate
	dropped   atomic.Uint64 // not sent, beyond it
	_         [64]byte      // the next worker's are in other cache lines
}

// took counts n answers that took so long.
func (c *counters) took(d time.Duration, n int) {
	i := 0
	for i < len(latencyBounds) && d > latencyBounds[i] {
		i++
	}
	c.latency[i].Add(uint64(n))
	c.seconds.Add(int64(d) * int64(n))
}

// metrics shows the counters of all workers as a prometheus.Collector.
type metrics struct {
	all   []*counters // set by newMetrics
	sinks []*sink     // set by newMetrics

	answers, latency, cached, limited, lost *prometheus.Desc
}

func newMetrics(all []*counters, sinks []*sink) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("dstack_gateway_dns_"+name, help, labels, nil)
	}
	return &metrics{
		all: all, sinks: sinks,
		answers: desc("answers_total", "Answers, by transport, query type and response code.", "transport", "type", "rcode"),
		latency: desc("answer_seconds", "From a query's arrival at the server to its answer's departure; over UDP of the whole batch.", "transport"),
		cached:  desc("cached_answers_total", "Answers that came from the cache.", "transport"),
		limited: desc("limited_answers_total", "Answers beyond the rate limit: truncated (sent without data) or dropped.", "action"),
		lost:    desc("unrecorded_queries_total", "Queries that the query log or dnstap was too slow to take.", "sink"),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{m.answers, m.latency, m.cached, m.limited, m.lost} {
		out <- desc
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	counter := func(desc *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
	}
	var truncated, dropped uint64
	for _, transport := range []Transport{UDP, TCP, TLS, HTTPS} {
		sum := m.sum(transport)
		for t := range sum.answers {
			for r := range sum.answers[t] {
				if n := sum.answers[t][r].Load(); n > 0 {
					counter(m.answers, n, string(transport), typeLabel(t), rcodeLabel(r))
				}
			}
		}
		counter(m.cached, sum.cached.Load(), string(transport))
		truncated, dropped = truncated+sum.truncated.Load(), dropped+sum.dropped.Load()
		out <- sum.histogram(m.latency)
	}
	counter(m.limited, truncated, "truncated")
	counter(m.limited, dropped, "dropped")
	for _, s := range m.sinks {
		counter(m.lost, s.lost.Load(), s.name)
	}
}

// sum adds up the counters of a transport.
func (m *metrics) sum(transport Transport) *counters {
	sum := &counters{transport: transport}
	for _, c := range m.all {
		if c.transport != transport {
			continue
		}
		for t := range c.answers {
			for r := range c.answers[t] {
				sum.answers[t][r].Add(c.answers[t][r].Load())
			}
		}
		for i := range c.latency {
			sum.latency[i].Add(c.latency[i].Load())
		}
		sum.seconds.Add(c.seconds.Load())
		sum.cached.Add(c.cached.Load())
		sum.truncated.Add(c.truncated.Load())
		sum.dropped.Add(c.dropped.Load())
	}
	return sum
}

func (c *counters) histogram(desc *prometheus.Desc) prometheus.Metric {
	buckets, count := make(map[float64]uint64, len(latencyBounds)), uint64(0)
	for i, bound := range latencyBounds {
		count += c.latency[i].Load()
		buckets[bound.Seconds()] = count
	}
	count += c.latency[len(latencyBounds)].Load()
	return prometheus.MustNewConstHistogram(desc, count, time.Duration(c.seconds.Load()).Seconds(), buckets, string(c.transport))
}

func typeLabel(place int) string {
	switch place {
	case otherType:
		return "other"
	case noType:
		return "none"
	}
	return dns.TypeToString[countedTypes[place]]
}

func rcodeLabel(place int) string {
	if place == rcodes-1 {
		return "other"
	}
	return rcodeName(countedRcodes[place])
}
