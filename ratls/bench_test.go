package ratls_test

import (
	"fmt"
	"testing"

	"dstack.host/ratls"
)

// BenchmarkVerify verifies a quote in full: warm with collateral that is held, cold with collateral that is fetched (from memory)
// for each.
func BenchmarkVerify(b *testing.B) {
	a := vendor(b)
	raw := quote(b, boot(b, a, machine{}, vm{AppCompose: "{}"}))
	hosts := append(ratls.IntelHosts(), "certificates.simulated-tdx.invalid")
	warm := verifier(b, a, ratls.NewCache(ratls.CacheConfig{Getter: a.Getter(), Hosts: hosts}), ratls.Policy{})
	for name, v := range map[string]func() *ratls.Verifier{
		"warm": func() *ratls.Verifier { return warm },
		"cold": func() *ratls.Verifier {
			return verifier(b, a, ratls.NewCache(ratls.CacheConfig{Getter: a.Getter(), Hosts: hosts}), ratls.Policy{})
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v().Verify(b.Context(), raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReplay replays a log of 500 events.
func BenchmarkReplay(b *testing.B) {
	var events []ratls.Event
	for i := range 500 {
		events = append(events, runtimeEvent(fmt.Sprintf("event %d", i), []byte("a payload of the usual length, 32")))
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ratls.ReplayRTMR3(events); err != nil {
			b.Fatal(err)
		}
	}
}
