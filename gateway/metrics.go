package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// openMetrics binds the listeners that series are read from, and makes the registry that they are in unless the caller brought
// one. It comes before the parts that have series.
func (g *Gateway) openMetrics(parts *Parts) error {
	if len(g.config.Metrics.Listen) == 0 {
		return nil
	}
	series := prometheus.NewRegistry()
	series.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if parts.Metrics == nil {
		parts.Metrics = series
	} else if gatherer, ok := parts.Metrics.(*prometheus.Registry); ok {
		series = gatherer
	} else {
		return errors.New("metrics.listen: the registry that was given can't be read")
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(series, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	g.metrics.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	for _, addr := range g.config.Metrics.Listen {
		l, err := net.Listen("tcp", addr.String())
		if err != nil {
			return fmt.Errorf("metrics.listen: %w", err)
		}
		g.metrics.listeners = append(g.metrics.listeners, l)
	}
	return nil
}

// metrics is where the series are read; the zero value is nowhere.
type metrics struct {
	server    *http.Server
	listeners []net.Listener
}

// run serves until ctx ends.
func (m *metrics) run(ctx context.Context) error {
	if m.server == nil {
		return nil
	}
	failed := make(chan error, len(m.listeners))
	for _, l := range m.listeners {
		go func() { failed <- m.server.Serve(l) }()
	}
	<-ctx.Done()
	err := m.server.Close()
	for range m.listeners {
		if e := <-failed; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// close releases what was never run.
func (m *metrics) close() error {
	var errs []error
	for _, l := range m.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// MetricsAddrs are where the series are read.
func (g *Gateway) MetricsAddrs() []net.Addr {
	var all []net.Addr
	for _, l := range g.metrics.listeners {
		all = append(all, l.Addr())
	}
	return all
}
