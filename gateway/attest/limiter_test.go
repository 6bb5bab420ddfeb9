package attest_test

import (
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"dstack.host/gateway/attest"
)

func client(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
}

func TestLimiterAllowsABurstThenOneAnInterval(t *testing.T) {
	l := attest.NewLimiter(2*time.Second, 3)
	now := time.Unix(1000, 0)
	for i, row := range []struct {
		at   time.Duration
		wait time.Duration
	}{
		{0, 0}, {0, 0}, {0, 0}, {0, 2 * time.Second}, {time.Second, time.Second},
		{2 * time.Second, 0}, {2 * time.Second, 2 * time.Second},
		{time.Hour, 0}, {time.Hour, 0}, {time.Hour, 0}, {time.Hour, 2 * time.Second},
	} {
		if got := attest.Take(l, client(1), now.Add(row.at)); got != row.wait {
			t.Errorf("act %d after %s waits %s, want %s", i, row.at, got, row.wait)
		}
	}
	if got := attest.Take(l, client(2), now); got != 0 {
		t.Errorf("another client waits %s", got)
	}
}

func TestLimiterStaysBoundedUnderAFloodOfAddresses(t *testing.T) {
	l := attest.NewLimiter(time.Second, 1)
	now := time.Unix(1000, 0)
	for i := range attest.MaxClients {
		if got := attest.Take(l, client(i), now); got != 0 {
			t.Fatalf("client %d waits %s", i, got)
		}
	}
	if got := attest.Take(l, client(attest.MaxClients), now); got <= 0 {
		t.Error("one client more than are remembered was let through")
	}
	if got := attest.Take(l, client(attest.MaxClients), now.Add(2*time.Second)); got != 0 {
		t.Errorf("when the others have paid, it still waits %s", got)
	}
}

func TestClientsAreCountedByWhatOneOfThemCommands(t *testing.T) {
	for _, row := range []struct{ remote, want string }{
		{"203.0.113.5:1234", "203.0.113.5/32"},
		{"[::ffff:203.0.113.5]:1234", "203.0.113.5/32"},
		{"[2001:db8:1:2:3:4:5:6]:1", "2001:db8:1:2::/64"},
		{"[fe80::1%eth0]:1", "fe80::/64"},
		{"nonsense", "invalid Prefix"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = row.remote
		if got := attest.ClientOf(r).String(); got != row.want {
			t.Errorf("%s counts as %s, want %s", row.remote, got, row.want)
		}
	}
}
