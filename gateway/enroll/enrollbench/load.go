//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

func (b *bench) scenarios() []scenario {
	return []scenario{
		{"refresh", func(ctx context.Context, d time.Duration) (figures, error) { return b.refresh(ctx, d, true) }},
		{"refresh-connection", func(ctx context.Context, d time.Duration) (figures, error) { return b.refresh(ctx, d, false) }},
		{"first", b.first},
		{"proxy", func(ctx context.Context, d time.Duration) (figures, error) { return b.proxy(ctx, d) }},
		{"proxy-churn", b.proxyDuringChurn},
	}
}

// refresh has every guest register the same again and again, and fails if anything is written or answered differently.
func (b *bench) refresh(ctx context.Context, d time.Duration, keep bool) (figures, error) {
	answers := make([]string, len(b.guests))
	for i, g := range b.guests {
		g.close() // the server does not keep what was idle during other cases
		var err error
		if answers[i], err = g.register(); err != nil {
			return nil, err
		}
	}
	before := b.gateway.Snapshot()
	var took latencies
	tasks, ctx := errgroup.WithContext(ctx)
	begin := time.Now()
	for i, g := range b.guests {
		tasks.Go(func() error {
			var list []time.Duration
			defer func() { took.add(list) }()
			for time.Since(begin) < d && ctx.Err() == nil {
				sent := time.Now()
				if !keep {
					g.close()
				}
				answer, err := g.register()
				if err != nil {
					return err
				}
				if answer != answers[i] {
					return fmt.Errorf("answer %s, before %s", answer, answers[i])
				}
				list = append(list, time.Since(sent))
			}
			return nil
		})
	}
	if err := tasks.Wait(); err != nil {
		return nil, err
	}
	writes := float64(b.gateway.Snapshot().Revision() - before.Revision())
	if writes > 0 {
		return nil, fmt.Errorf("refreshes wrote %v times", writes)
	}
	return figures{"per_s": float64(len(took.all)) / time.Since(begin).Seconds(), "p99_ms": took.milliseconds(0.99), "p50_ms": took.milliseconds(0.5), "writes": writes}, nil
}

// first boots instances, eight at once, and measures their first registrations alone.
func (b *bench) first(ctx context.Context, d time.Duration) (figures, error) {
	const atOnce, batch = 8, 64
	var took latencies
	var spent time.Duration
	for spent < d/2 && ctx.Err() == nil {
		guests, err := boot(ctx, b.machine, b.gateway.EnrollAddr(), batch)
		if err != nil {
			return nil, err
		}
		tasks := new(errgroup.Group)
		tasks.SetLimit(atOnce)
		begin := time.Now()
		for _, g := range guests {
			tasks.Go(func() error {
				sent := time.Now()
				_, err := g.register()
				took.add([]time.Duration{time.Since(sent)})
				g.close()
				return err
			})
		}
		if err := tasks.Wait(); err != nil {
			return nil, err
		}
		spent += time.Since(begin)
	}
	return figures{"per_s": float64(len(took.all)) / spent.Seconds(), "p99_ms": took.milliseconds(0.99), "p50_ms": took.milliseconds(0.5)}, nil
}

// proxyRate is how many requests a second are sent through the proxy.
const proxyRate = 400

// proxy sends requests at a constant rate, whatever becomes of those before, and counts from when each was due.
func (b *bench) proxy(ctx context.Context, d time.Duration) (figures, error) {
	client, err := b.client()
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	url := b.demo.Apps()[0].URL
	var took latencies
	tasks, ctx := errgroup.WithContext(ctx)
	begin := time.Now()
	for n := range int(proxyRate * d.Seconds()) {
		due := begin.Add(time.Duration(n) * time.Second / proxyRate)
		if wait := time.Until(due); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return nil, errors.Join(ctx.Err(), tasks.Wait())
			}
		}
		tasks.Go(func() error {
			if err := get(ctx, client, url); err != nil {
				return err
			}
			took.add([]time.Duration{time.Since(due)})
			return nil
		})
	}
	if err := tasks.Wait(); err != nil {
		return nil, err
	}
	return figures{"p99_ms": took.milliseconds(0.99), "p50_ms": took.milliseconds(0.5), "per_s": float64(len(took.all)) / time.Since(begin).Seconds()}, nil
}

func get(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// client reaches the demo's names over connections that stay open.
func (b *bench) client() (*http.Client, error) {
	text, err := os.ReadFile(b.demo.CAFile())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		MaxIdleConnsPerHost: clients, MaxConnsPerHost: clients, TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, b.demo.Gateway().HTTPSAddr().String())
		},
	}}, nil
}

// churnRate is how many registrations with a new key, each verified in full and written, go on a second beside the proxy.
const churnRate = 45

// proxyDuringChurn is proxy while instances come with new keys: peers, names and snapshots change all the time.
func (b *bench) proxyDuringChurn(ctx context.Context, d time.Duration) (figures, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	churn := new(errgroup.Group)
	done := 0
	churn.Go(func() error {
		tick := time.NewTicker(time.Second / churnRate)
		defer tick.Stop()
		for ; ; done++ {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			g := b.churn[done%len(b.churn)]
			g.newKey()
			_, err := g.register()
			g.close()
			if err != nil {
				return err
			}
		}
	})
	f, err := b.proxy(ctx, d)
	cancel()
	if err := errors.Join(err, churn.Wait()); err != nil {
		return nil, err
	}
	f["registrations"] = float64(done)
	return f, nil
}
