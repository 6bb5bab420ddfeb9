package dnsserver_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	octets, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return octets
}

// The cookies of RFC 9018 appendix A, which every implementation makes.
func TestCookieVectors(t *testing.T) {
	for _, row := range []struct{ name, secret, client, addr, server string }{
		{"A.1", "e5e973e5a6b2a43f48e7dc849e37bfcf", "2464c4abcf10c957", "198.51.100.100", "010000005cf79f111f8130c3eee29480"},
		{"A.2", "e5e973e5a6b2a43f48e7dc849e37bfcf", "2464c4abcf10c957", "198.51.100.100", "010000005cf7a871d4a564a1442aca77"},
		{"A.3", "e5e973e5a6b2a43f48e7dc849e37bfcf", "fc93fc62807ddb86", "203.0.113.203", "010000005cf7a9acf73a7810aca2381e"},
		{"A.4", "445536bcd2513298075a5d379663c962", "22681ab97d52c298", "2001:db8:220:1:59de:d0f4:8769:82b8", "010000005cf7c609a6bb79d16625507a"},
	} {
		server := unhex(t, row.server)
		got := dnsserver.BakeCookie([16]byte(unhex(t, row.secret)), unhex(t, row.client), netip.MustParseAddr(row.addr), binary.BigEndian.Uint32(server[4:]))
		if !bytes.Equal(got[:], server) {
			t.Errorf("%s: %x, want %x", row.name, got, server)
		}
	}
	// A.3's cookie came from an implementation that uses the reserved octets: they are hashed as they are.
	head := unhex(t, "01abcdef5cf78f71")
	got := dnsserver.CookieHash([16]byte(unhex(t, "e5e973e5a6b2a43f48e7dc849e37bfcf")), unhex(t, "fc93fc62807ddb86"), head, netip.MustParseAddr("203.0.113.203"))
	if want := binary.LittleEndian.Uint64(unhex(t, "a314227b6679ebf5")); got != want {
		t.Errorf("A.3: %016x, want %016x", got, want)
	}
}

// askCookie sends a cookie option with a query and returns the server cookie
// of the answer, nil without.
func askCookie(t *testing.T, r *dnsserver.Responder, option string) (*dns.Msg, []byte) {
	t.Helper()
	query := askEDNS("gateway.dstack.host.", dns.TypeA, 1232)
	query.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: option}}
	packet, err := query.Pack()
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	answer := r.Respond(nil, packet)
	if answer == nil {
		return nil, nil
	}
	if err := m.Unpack(answer); err != nil {
		t.Fatal(err)
	}
	for _, o := range m.IsEdns0().Option {
		if c, ok := o.(*dns.EDNS0_COOKIE); ok {
			if len(option) >= 16 && c.Cookie[:16] != option[:16] {
				t.Errorf("another client's cookie: %s", c.Cookie)
			}
			return m, unhex(t, c.Cookie[16:])
		}
	}
	return m, nil
}

func TestCookies(t *testing.T) {
	const client = "0123456789abcdef"
	// Just before a secret's end, with 23 h 50 min of its day gone.
	begin := time.Date(2035, 5, 17, 23, 50, 0, 0, time.UTC)
	key := []byte("a key that servers have in common")
	start := func(at time.Time, addr string, key []byte) *dnsserver.Responder {
		r := dnsserver.NewResponder(newZones(t), dnsserver.UDP, dnsserver.Config{CookieKey: key, RateLimit: dnsserver.RateLimit{PerSecond: 1}}, true)
		r.Now, r.Client = at, netip.MustParseAddr(addr)
		return r
	}
	first, server := askCookie(t, start(begin, "192.0.2.1", key), client)
	if first.Rcode != dns.RcodeSuccess || len(first.Answer) != 1 || len(server) != 16 {
		t.Fatalf("cookie %x in %v", server, first)
	}

	for _, row := range []struct {
		name         string
		after        time.Duration
		addr, client string
		server       []byte
		key          []byte
		valid, kept  bool
	}{
		{"at once", 0, "192.0.2.1", client, server, key, true, true},
		{"by the next secret's time", 20 * time.Minute, "192.0.2.1", client, server, key, true, true},
		{"after half an hour a new one", 31 * time.Minute, "192.0.2.1", client, server, key, true, false},
		{"after an hour", 61 * time.Minute, "192.0.2.1", client, server, key, false, false},
		{"after three days", 72 * time.Hour, "192.0.2.1", client, server, key, false, false},
		{"a clock that is behind", -4 * time.Minute, "192.0.2.1", client, server, key, true, true},
		{"a clock that is far behind", -6 * time.Minute, "192.0.2.1", client, server, key, false, false},
		{"from another address", 0, "192.0.2.2", client, server, key, false, false},
		{"from an IPv6 address", 0, "2001:db8::1", client, server, key, false, false},
		{"of another client", 0, "192.0.2.1", "1123456789abcdef", server, key, false, false},
		{"of a server with another key", 0, "192.0.2.1", client, server, []byte("quite another key"), false, false},
		{"changed", 0, "192.0.2.1", client, append(bytes.Clone(server[:15]), server[15]^1), key, false, false},
		{"another version", 0, "192.0.2.1", client, append([]byte{2}, server[1:]...), key, false, false},
		{"of 8 octets", 0, "192.0.2.1", client, server[:8], key, false, false},
		{"of 32 octets", 0, "192.0.2.1", client, append(bytes.Clone(server), server...), key, false, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := start(begin.Add(row.after), row.addr, row.key)
			_, got := askCookie(t, r, row.client+hex.EncodeToString(row.server))
			if len(got) != 16 || bytes.Equal(got, row.server) != row.kept {
				t.Errorf("got %x, sent %x", got, row.server)
			}
			// A limit of one a second is used up; only who has a valid cookie is answered in full.
			again, _ := askCookie(t, r, row.client+hex.EncodeToString(row.server))
			if again.Truncated == row.valid {
				t.Errorf("taken for valid: %v", !again.Truncated)
			}
		})
	}
}

func TestCookiesOfImpossibleLength(t *testing.T) {
	r := dnsserver.NewResponder(newZones(t), dnsserver.UDP, dnsserver.Config{}, true)
	for _, n := range []int{0, 1, 7, 9, 15, 41, 1000} {
		m, cookie := askCookie(t, r, strings.Repeat("00", n))
		if m.Rcode != dns.RcodeFormatError || cookie != nil || len(m.Answer) > 0 {
			t.Errorf("%d octets: %v", n, m)
		}
	}
}

// A query without a question is one for a cookie, RFC 7873 section 5.4.
func TestCookieWithoutQuestion(t *testing.T) {
	r := dnsserver.NewResponder(newZones(t), dnsserver.UDP, dnsserver.Config{}, true)
	packet := "\x12\x34\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + option("\x00\x0a\x00\x08cookie88")
	m := new(dns.Msg)
	if err := m.Unpack(r.Respond(nil, []byte(packet))); err != nil {
		t.Fatal(err)
	}
	if m.Rcode != dns.RcodeSuccess || len(m.Question) != 0 || len(m.IsEdns0().Option) != 1 {
		t.Errorf("%v", m)
	}
}

// options are what an answer's OPT says of itself, by code.
func options(t *testing.T, answer []byte) map[uint16]string {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(answer); err != nil {
		t.Fatal(err)
	}
	found := map[uint16]string{}
	for _, o := range m.IsEdns0().Option {
		found[o.Option()] = o.String()
	}
	return found
}

func TestOptionsInKind(t *testing.T) {
	zones := richZones(t)
	nsid, keepalive, padding := "\x00\x03\x00\x00", "\x00\x0b\x00\x00", "\x00\x0c\x00\x01x"
	all := headerAR + question + option(nsid+keepalive+padding)
	for _, row := range []struct {
		name      string
		packet    string
		transport dnsserver.Transport
		config    dnsserver.Config
		want      []uint16
	}{
		{"NSID over UDP, nothing else", all, dnsserver.UDP, dnsserver.Config{NSID: "one"}, []uint16{dns.EDNS0NSID}},
		{"no NSID configured", all, dnsserver.UDP, dnsserver.Config{}, nil},
		{"TCP", all, dnsserver.TCP, dnsserver.Config{NSID: "one"}, []uint16{dns.EDNS0NSID, dns.EDNS0TCPKEEPALIVE}},
		{"TLS", all, dnsserver.TLS, dnsserver.Config{NSID: "one"}, []uint16{dns.EDNS0NSID, dns.EDNS0TCPKEEPALIVE, dns.EDNS0PADDING}},
		{"HTTPS", all, dnsserver.HTTPS, dnsserver.Config{NSID: "one"}, []uint16{dns.EDNS0NSID, dns.EDNS0PADDING}},
		{"not asked", headerAR + question + opt, dnsserver.TLS, dnsserver.Config{NSID: "one"}, nil},
		{"another version's options", headerAR + question + all[len(headerAR+question):][:6] + "\x01" + all[len(headerAR+question):][7:], dnsserver.TLS, dnsserver.Config{NSID: "one"}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.config.IdleTimeout = 25 * time.Second
			answer := dnsserver.NewResponder(zones, row.transport, row.config, true).Respond(nil, []byte(row.packet))
			got := options(t, answer)
			want := map[uint16]string{}
			for _, code := range row.want {
				want[code] = map[uint16]string{dns.EDNS0NSID: "6f6e65", dns.EDNS0TCPKEEPALIVE: "use tcp keep-alive, timeout set to 250", dns.EDNS0PADDING: got[dns.EDNS0PADDING]}[code]
			}
			for code := range got {
				if code == dns.EDNS0TCPKEEPALIVE && strings.Contains(got[code], "250") {
					got[code] = want[code]
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if _, padded := got[dns.EDNS0PADDING]; padded && len(answer)%468 != 0 {
				t.Errorf("padded to %d octets", len(answer))
			}
		})
	}
}

// What is added for the client counts: nothing ever exceeds what it takes.
func TestOptionsDoNotExceedThePayload(t *testing.T) {
	c := testZone()
	for i := range 40 {
		c.TXT["n"+strings.Repeat("x", i)] = []string{strings.Repeat("a", 250), strings.Repeat("b", 120+i), strings.Repeat("c", i)}
	}
	zones := dnsserver.NewZones(newZone(t, c))
	truncated := 0
	for i := range 40 {
		for _, size := range []string{"\x02\x00", "\x02\x10", "\x04\xd0"} {
			extra := option("\x00\x03\x00\x00\x00\x0a\x00\x08cookie88")
			name := string(rune(1+i)) + "n" + strings.Repeat("x", i)
			packet := []byte(headerAR + name + zoneName + "\x00\x10\x00\x01" + extra[:3] + size + extra[5:])
			answer := dnsserver.NewResponder(zones, dnsserver.UDP, dnsserver.Config{NSID: strings.Repeat("n", 20)}, true).Respond(nil, packet)
			if limit := int(size[0])<<8 | int(size[1]); len(answer) > limit {
				t.Errorf("%d octets, taken: %d", len(answer), limit)
			}
			if len(options(t, answer)) != 2 {
				t.Errorf("options %v", options(t, answer))
			}
			if answer[2]&0x02 != 0 {
				truncated++
			}
		}
	}
	if truncated == 0 || truncated == 120 {
		t.Errorf("%d of 120 truncated: the row is not at the limit", truncated)
	}
}
