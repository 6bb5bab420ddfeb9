package tunnel_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"dstack.host/tunnel"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// drain allocates until the pool is empty, at most n addresses.
func drain(t *testing.T, p tunnel.Pool, n int) (all []string) {
	t.Helper()
	used := map[netip.Addr]bool{}
	for range n {
		a, err := p.Allocate(func(a netip.Addr) bool { return used[a] })
		if errors.Is(err, tunnel.ErrPoolExhausted) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if used[a] || !p.Contains(a) {
			t.Fatalf("%v: given twice, or not contained", a)
		}
		used[a] = true
		all = append(all, a.String())
	}
	return all
}

func TestPoolAllocates(t *testing.T) {
	for _, tc := range []struct {
		name, clients string
		reserved      []netip.Prefix
		want          string // of up to 8 addresses
	}{
		{"a small range", "10.0.0.0/29", nil, "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6"},
		{"the gateway is reserved", "10.0.0.0/29", prefixes("10.0.0.1/32"), "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6"},
		{"reserved in host form", "10.0.0.0/29", prefixes("10.0.0.1/30"), "10.0.0.4 10.0.0.5 10.0.0.6"},
		{"nested reservations", "10.0.0.0/28", prefixes("10.0.0.0/30", "10.0.0.0/29", "10.0.0.9/32"),
			"10.0.0.8 10.0.0.10 10.0.0.11 10.0.0.12 10.0.0.13 10.0.0.14"},
		{"reserved elsewhere", "10.0.0.0/30", prefixes("192.0.2.0/24", "fd00::/8"), "10.0.0.1 10.0.0.2"},
		{"two addresses", "10.0.0.2/31", nil, "10.0.0.2 10.0.0.3"},
		{"one address", "10.0.0.2/32", nil, "10.0.0.2"},
		{"the end of IPv4", "255.255.255.252/30", nil, "255.255.255.253 255.255.255.254"},
		{"dstack's default", "10.0.0.0/25", prefixes("10.0.0.1/32", "10.0.0.255/32"),
			"10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6 10.0.0.7 10.0.0.8 10.0.0.9"},
		{"IPv6", "fd00::/64", prefixes("fd00::1/128"), "fd00::2 fd00::3 fd00::4 fd00::5 fd00::6 fd00::7 fd00::8 fd00::9"},
		{"half of an IPv6 range", "fd00::/64", prefixes("fd00::/65"),
			"fd00::8000:0:0:0 fd00::8000:0:0:1 fd00::8000:0:0:2 fd00::8000:0:0:3 fd00::8000:0:0:4 fd00::8000:0:0:5 " +
				"fd00::8000:0:0:6 fd00::8000:0:0:7"},
		{"the end of IPv6", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127", nil,
			"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := tunnel.NewPool(netip.MustParsePrefix(tc.clients), tc.reserved...)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(drain(t, p, 8), " "); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestPoolFillsTheLowestGap(t *testing.T) {
	p, err := tunnel.NewPool(netip.MustParsePrefix("10.0.0.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	gap := netip.MustParseAddr("10.0.0.77")
	got, err := p.Allocate(func(a netip.Addr) bool { return a.Less(gap) || gap.Less(a) && a.As4()[3] < 99 })
	if err != nil || got != gap {
		t.Errorf("got %v, %v; want %v", got, err, gap)
	}
}

func TestPoolEnds(t *testing.T) {
	full := func(netip.Addr) bool { return true }
	for _, s := range []string{"10.0.0.0/24", "0.0.0.0/0", "fd00::/8"} {
		p, err := tunnel.NewPool(netip.MustParsePrefix(s))
		if err != nil {
			t.Fatal(err)
		}
		if a, err := p.Allocate(full); !errors.Is(err, tunnel.ErrPoolExhausted) {
			t.Errorf("%s: %v, %v; want ErrPoolExhausted", s, a, err)
		}
	}
	var zero tunnel.Pool
	if a, err := zero.Allocate(func(netip.Addr) bool { return false }); !errors.Is(err, tunnel.ErrPoolExhausted) {
		t.Errorf("the zero pool: %v, %v", a, err)
	}
}

func TestPoolContains(t *testing.T) {
	p, err := tunnel.NewPool(netip.MustParsePrefix("10.0.0.0/25"), prefixes("10.0.0.1/32", "10.0.0.16/28")...)
	if err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string]bool{
		"10.0.0.2": true, "10.0.0.126": true, "10.0.0.0": false, "10.0.0.1": false, "10.0.0.127": false,
		"10.0.0.128": false, "10.0.0.20": false, "10.0.0.32": true, "::ffff:10.0.0.2": false, "fd00::2": false,
	} {
		if got := p.Contains(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: %v, want %v", s, got, want)
		}
	}
	if p.Contains(netip.Addr{}) || (tunnel.Pool{}).Contains(netip.MustParseAddr("10.0.0.2")) {
		t.Error("an address that is none, or of an empty pool")
	}
}

func TestNewPoolRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		clients  netip.Prefix
		reserved []netip.Prefix
		want     string
	}{
		"no range":        {netip.Prefix{}, nil, "not an IPv4 or IPv6 prefix"},
		"mapped":          {netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.0"), 120), nil, "not an IPv4 or IPv6 prefix"},
		"host bits":       {netip.MustParsePrefix("10.0.0.1/24"), nil, "write 10.0.0.0/24"},
		"bad reservation": {netip.MustParsePrefix("10.0.0.0/24"), []netip.Prefix{{}}, "reserved range"},
		"all reserved":    {netip.MustParsePrefix("10.0.0.0/24"), prefixes("10.0.0.0/8"), "every address is reserved"},
		"only unusable is left": {netip.MustParsePrefix("10.0.0.0/30"), prefixes("10.0.0.1/32", "10.0.0.2/32"),
			"every address is reserved"},
	} {
		if _, err := tunnel.NewPool(tc.clients, tc.reserved...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
