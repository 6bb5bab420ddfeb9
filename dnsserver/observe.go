package dnsserver

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// observation is one query and its answer, for those who look at queries one by
// one. It is the observers' own copy.
type observation struct {
	transport     Transport
	client        netip.AddrPort
	at            time.Time
	query, answer []byte // answer is nil if none was sent
}

// sinkQueue is how many observations wait for a sink; more are lost, so that
// no sink makes an answer wait.
const sinkQueue = 1024

// sink takes observations: all, or one of so many.
type sink struct {
	name   string
	sample uint64
	run    func(context.Context, <-chan observation)

	seen, lost atomic.Uint64
	queue      chan observation
}

func newSink(name string, sample int, run func(context.Context, <-chan observation)) *sink {
	return &sink{name: name, sample: uint64(max(sample, 1)), run: run, queue: make(chan observation, sinkQueue)}
}

// wants counts a query and tells whether it is one to be taken.
func (s *sink) wants() bool { return s.sample == 1 || s.seen.Add(1)%s.sample == 0 }

// put takes an observation unless too many wait.
func (s *sink) put(o observation) {
	select {
	case s.queue <- o:
	default:
		s.lost.Add(1)
	}
}

// observe shows a query and its answer to the sinks. It copies both once, when
// some sink wants them.
func (s *shared) observe(transport Transport, client netip.AddrPort, query, answer []byte, at time.Time) {
	var o observation
	for _, sink := range s.sinks {
		if !sink.wants() {
			continue
		}
		if o.query == nil {
			o = observation{transport: transport, client: client, at: at, query: append([]byte{}, query...)}
			if answer != nil {
				o.answer = append([]byte{}, answer...)
			}
		}
		sink.put(o)
	}
}

// logQueries writes a line for each observation.
func logQueries(log *slog.Logger) func(context.Context, <-chan observation) {
	return func(ctx context.Context, queue <-chan observation) {
		for {
			select {
			case <-ctx.Done():
				return
			case o := <-queue:
				log.LogAttrs(ctx, slog.LevelInfo, "dns query", o.attrs()...)
			}
		}
	}
}

// attrs describes an observation: what was asked, by whom, and what came of it.
func (o *observation) attrs() []slog.Attr {
	attrs := []slog.Attr{slog.Time("at", o.at), slog.String("transport", string(o.transport)), slog.Any("client", o.client)}
	var q query
	verdict := q.read(o.query)
	if q.question > headerOctets {
		name, _, err := dns.UnpackDomainName(o.query, headerOctets)
		if err == nil {
			attrs = append(attrs, slog.String("name", name), slog.String("type", dns.Type(q.qtype()).String()))
		}
	}
	if verdict == readable && q.edns.present {
		attrs = append(attrs, slog.Int("payload", int(q.edns.size)), slog.Bool("do", q.edns.flags&flagDO != 0), slog.Bool("cookie", q.edns.cookie != nil))
	}
	if o.answer == nil {
		return append(attrs, slog.String("rcode", "dropped"))
	}
	var m dns.Msg
	if m.Unpack(o.answer) != nil {
		return attrs
	}
	return append(attrs, slog.String("rcode", rcodeName(m.Rcode)), slog.Int("answers", len(m.Answer)), slog.Bool("truncated", m.Truncated), slog.Int("size", len(o.answer)))
}
