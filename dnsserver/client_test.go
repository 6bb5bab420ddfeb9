package dnsserver_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// fake answers UDP queries one after the other with what the functions make of them.
func fake(t *testing.T, answers ...func(query *dns.Msg) *dns.Msg) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { conn.Close() })
	serving.Go(func() {
		buf := make([]byte, 4096)
		for i := 0; ; i++ {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			query := new(dns.Msg)
			if err := query.Unpack(buf[:n]); err != nil {
				t.Errorf("query: %v", err)
				return
			}
			m := answers[min(i, len(answers)-1)](query)
			if m == nil {
				continue
			}
			out, err := m.Pack()
			if err != nil {
				t.Errorf("answer: %v", err)
				return
			}
			if _, err := conn.WriteTo(out, from); err != nil {
				return
			}
		}
	})
	return conn.LocalAddr().String()
}

func TestQueryRepeatsWhatGotLost(t *testing.T) {
	right := func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 3},
			Txt: []string{`a\`, `"b\200c\\d`}}}
		return m
	}
	otherQuestion := func(q *dns.Msg) *dns.Msg {
		m := right(q)
		m.Question = []dns.Question{{Name: "other.", Qtype: dns.TypeTXT, Qclass: dns.ClassINET}}
		return m
	}
	noResponse := func(q *dns.Msg) *dns.Msg { return q }
	server := fake(t, otherQuestion, noResponse, right)
	r := query(t, server, "x.example.org", "txt")
	if diff := cmp.Diff([]string{"a\"b\xc8c\\d"}, r.Answers); diff != "" || r.TTL != 3*time.Second {
		t.Errorf("%+v (-want +got)\n%s", r, diff)
	}
}

func TestQueryEndsWithItsContext(t *testing.T) {
	silent := fake(t, func(*dns.Msg) *dns.Msg { return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := dnsserver.Query(ctx, silent, "x.example.org", "A"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	server := fake(t, func(*dns.Msg) *dns.Msg { cancel(); return nil })
	if _, err := dnsserver.Query(ctx, server, "x.example.org", "A"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestQueryErrors(t *testing.T) {
	server := fake(t, func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(q, dns.RcodeBadVers).SetEdns0(1232, false) })
	if r := query(t, server, "x.example.org", "A"); r.Rcode != "BADVERS" || r.Answers != nil {
		t.Errorf("%+v", r)
	}
	for _, row := range []struct{ server, name, qtype, want string }{
		{server, "x.example.org", "NOPE", `dns type "NOPE": unknown`},
		{server, "x..example.org", "A", "dns query x..example.org A at"},
		{"127.0.0.1", "x.example.org", "A", "missing port"},
	} {
		if _, err := dnsserver.Query(timeout(t), row.server, row.name, row.qtype); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%v: %v", row, err)
		}
	}
}
