package dnsserver_test

import (
	"testing"
	"time"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// FuzzTSIG holds that only who has the key gets an answer without an error, whatever is sent.
func FuzzTSIG(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	valid := transferRequest(f, "dstack.host.", dns.TypeAXFR, transferKey, transferSecret, now)
	f.Add(transferRequest(f, "dstack.host.", dns.TypeSOA, transferKey, []byte("another secret!!"), now))
	f.Add(transferRequest(f, "dstack.host.", dns.TypeIXFR, "other.", transferSecret, now))
	f.Add(valid[:len(valid)-7])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, packet []byte) {
		if code, ok := dnsserver.CheckTSIG(transferKey, []byte("a key that nobody has"), packet, now); ok && code == 0 {
			t.Errorf("taken: %x", packet)
		}
	})
}
