package enroll_test

import (
	"crypto/tls"
	"net/http"
	"testing"

	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

// BenchmarkRefresh is the registration of what is registered already: what most of a gateway's registrations are, every
// three minutes for each CVM. "connection" is on a connection of its own, as guests do it; the others on one that is open.
func BenchmarkRefresh(b *testing.B) {
	w := newWorld(b)
	for _, kind := range []struct {
		name        string
		certificate func(*simtdx.TD) tls.Certificate
		fresh       bool
	}{
		{"quote", func(td *simtdx.TD) tls.Certificate { return attested(b, td) }, false},
		{"legacy", func(td *simtdx.TD) tls.Certificate {
			return attested(b, td, func(o *ratls.CertOptions) { o.Legacy = true })
		}, false},
		{"kms", func(td *simtdx.TD) tls.Certificate { return w.kms.guest(b, fromKMS(b, td)) }, false},
		{"quote/connection", func(td *simtdx.TD) tls.Certificate { return attested(b, td) }, true},
	} {
		b.Run(kind.name, func(b *testing.B) {
			cert, text := kind.certificate(w.boot(b, simtdx.VM{AppCompose: "{}"})), body(newKey())
			s := dial(b, w.at, cert)
			s.register(b, text)
			b.ReportAllocs()
			for b.Loop() {
				if kind.fresh {
					s.conn.Close()
					s = dial(b, w.at, cert)
				}
				if a := s.register(b, text); a.status != http.StatusOK {
					b.Fatal(a.body)
				}
			}
		})
	}
}
