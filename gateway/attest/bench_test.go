package attest_test

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkCached is the answer without a nonce.
func BenchmarkCached(b *testing.B) {
	s := newScene(b, 0, nil)
	s.get(wellKnown(""))
	r, w := request(), &sink{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		if err := s.attester.Serve(w, r); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFreshness has 1,000 clients ask with a nonce, 500 a second, of a platform that takes as long for a quote as a stock
// Linux guest on hardware, and of one as fast as a bare one.
func BenchmarkFreshness(b *testing.B) {
	for _, latency := range []time.Duration{time.Second, 6 * time.Millisecond} {
		b.Run(fmt.Sprintf("quote=%s", latency), func(b *testing.B) {
			for b.Loop() {
				s := newScene(b, latency, nil)
				waits := flood(b, s, 1000, 500)
				slices.Sort(waits)
				p50, p99 := waits[len(waits)/2], waits[len(waits)*99/100]
				b.ReportMetric(float64(s.platform.quotes.Load()), "quotes")
				b.ReportMetric(p50.Seconds()*1000, "p50-ms")
				b.ReportMetric(p99.Seconds()*1000, "p99-ms")
				fmt.Printf("1,000 challenges at 500/s, %s a quote: %d quotes, p50 %s, p99 %s\n", latency, s.platform.quotes.Load(), p50.Round(time.Millisecond), p99.Round(time.Millisecond))
			}
		})
	}
}

// flood sends challenges at a rate, each from a client of its own, and returns how long each waited for its answer.
func flood(b *testing.B, s *scene, count, rate int) []time.Duration {
	b.Helper()
	waits := make([]time.Duration, count)
	var all sync.WaitGroup
	began := time.Now()
	for i := range count {
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		all.Go(func() {
			r := httptest.NewRequest(http.MethodGet, "https://"+own+wellKnown("nonce="+hex.EncodeToString(nonce(i))), nil)
			r.RemoteAddr = fmt.Sprintf("10.0.%d.%d:1000", i/250, i%250)
			w, asked := httptest.NewRecorder(), time.Now()
			if err := s.attester.Serve(w, r); err != nil {
				b.Error(err)
			}
			waits[i] = time.Since(asked)
		})
	}
	all.Wait()
	return waits
}
