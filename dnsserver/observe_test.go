package dnsserver_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	dnstap "github.com/dnstap/golang-dnstap"
	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"dstack.host/dnsserver"
)

func TestMetrics(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	s, server := serve(t, dnsserver.Config{Metrics: registry, RateLimit: dnsserver.RateLimit{PerSecond: 5, Slip: 2}, Workers: 2})
	s.SetZones(bigZone(t))
	for range 3 {
		query(t, server, "gateway.dstack.host", "A")
	}
	query(t, server, "nobody.dstack.host", "AAAA")
	query(t, server, "big.dstack.host", "TXT") // truncated, then over TCP
	query(t, server, "dstack.host", "LOC")
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, dnsserver.DoHPath, strings.NewReader(header))
	r.Header.Set("Content-Type", "application/dns-message")
	s.ServeHTTP(w, r)
	want := `
# HELP dstack_gateway_dns_answers_total Answers, by transport, query type and response code.
# TYPE dstack_gateway_dns_answers_total counter
dstack_gateway_dns_answers_total{rcode="FORMERR",transport="doh",type="none"} 1
dstack_gateway_dns_answers_total{rcode="NOERROR",transport="tcp",type="TXT"} 1
dstack_gateway_dns_answers_total{rcode="NOERROR",transport="udp",type="A"} 3
dstack_gateway_dns_answers_total{rcode="NOERROR",transport="udp",type="TXT"} 1
dstack_gateway_dns_answers_total{rcode="NOERROR",transport="udp",type="other"} 1
dstack_gateway_dns_answers_total{rcode="NXDOMAIN",transport="udp",type="AAAA"} 1
# HELP dstack_gateway_dns_cached_answers_total Answers that came from the cache.
# TYPE dstack_gateway_dns_cached_answers_total counter
dstack_gateway_dns_cached_answers_total{transport="doh"} 0
dstack_gateway_dns_cached_answers_total{transport="dot"} 0
dstack_gateway_dns_cached_answers_total{transport="tcp"} 0
dstack_gateway_dns_cached_answers_total{transport="udp"} 2
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "dstack_gateway_dns_answers_total", "dstack_gateway_dns_cached_answers_total"); err != nil {
		t.Error(err)
	}
	// An answer is counted when it has left, so the histogram may come a moment later.
	counts := func() (udp, other uint64) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			for _, m := range family.GetMetric() {
				if family.GetName() != "dstack_gateway_dns_answer_seconds" {
					continue
				}
				if m.GetLabel()[0].GetValue() == "udp" {
					udp += m.GetHistogram().GetSampleCount()
				} else {
					other += m.GetHistogram().GetSampleCount()
				}
			}
		}
		return udp, other
	}
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		udp, other := counts()
		if udp == 6 && other == 2 {
			break
		}
		if time.Since(begin) > patience {
			t.Fatalf("latencies of %d and %d answers, want 6 and 2", udp, other)
		}
	}
	if lint, err := testutil.GatherAndLint(registry); err != nil || len(lint) > 0 {
		t.Errorf("%v, %v", lint, err)
	}
	// A second server at the same registry is told, not silently uncounted.
	if again, err := dnsserver.New(dnsserver.Config{Listen: []string{"127.0.0.1:0"}, Metrics: registry}); err == nil {
		t.Error("registered twice", again.Close())
	}
}

func TestMetricsOfTheRateLimit(t *testing.T) {
	registry := prometheus.NewRegistry()
	s, server := serve(t, dnsserver.Config{Metrics: registry, RateLimit: dnsserver.RateLimit{PerSecond: 1, Slip: 1}})
	s.SetZones(newZone(t, testZone()))
	for range 4 {
		query(t, server, "gateway.dstack.host", "A") // those beyond the limit come over TCP
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == "dstack_gateway_dns_limited_answers_total" && m.GetLabel()[0].GetValue() == "truncated" && m.GetCounter().GetValue() > 0 {
				return
			}
		}
	}
	t.Errorf("not counted: %v", families)
}

// lockedBuffer may be written and read at once.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Split(strings.TrimSuffix(b.buf.String(), "\n"), "\n")
}

// await polls until there are so many lines.
func (b *lockedBuffer) await(t *testing.T, n int) []string {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		if lines := b.lines(); len(lines) >= n && lines[0] != "" {
			return lines
		}
		if time.Since(begin) > patience {
			t.Fatalf("not %d lines: %q", n, b.lines())
		}
	}
}

func TestQueryLog(t *testing.T) {
	t.Parallel()
	var out lockedBuffer
	s, server := serve(t, dnsserver.Config{QueryLog: slog.New(slog.NewJSONHandler(&out, nil))})
	s.SetZones(bigZone(t))
	query(t, server, "Gateway.dstack.host", "A")
	query(t, server, "nobody.dstack.host", "TLSA")
	var got []map[string]any
	for _, line := range out.await(t, 2) {
		fields := map[string]any{}
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(fields["client"].(string), "127.0.0.1:") || fields["at"] == nil {
			t.Errorf("client or time: %s", line)
		}
		for _, varies := range []string{"time", "at", "client"} {
			delete(fields, varies)
		}
		got = append(got, fields)
	}
	want := []map[string]any{
		{"level": "INFO", "msg": "dns query", "transport": "udp", "name": "Gateway.dstack.host.", "type": "A", "payload": 1232.0, "do": false, "cookie": false,
			"rcode": "NOERROR", "answers": 1.0, "truncated": false, "size": 64.0},
		{"level": "INFO", "msg": "dns query", "transport": "udp", "name": "nobody.dstack.host.", "type": "TLSA", "payload": 1232.0, "do": false, "cookie": false,
			"rcode": "NXDOMAIN", "answers": 0.0, "truncated": false, "size": got[1]["size"]},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestQueryLogSample(t *testing.T) {
	t.Parallel()
	var out lockedBuffer
	s, server := serve(t, dnsserver.Config{QueryLog: slog.New(slog.NewTextHandler(&out, nil)), QueryLogSample: 10, Workers: 1})
	s.SetZones(newZone(t, testZone()))
	for range 50 {
		query(t, server, "gateway.dstack.host", "A")
	}
	if lines := out.await(t, 5); len(lines) != 5 {
		t.Errorf("%d lines of 50 queries", len(lines))
	}
}

// A collector of others reads what we send; until it is there, nothing waits.
func TestDnstap(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "tap")
	s, err := dnsserver.New(dnsserver.Config{Listen: []string{"127.0.0.1:0"}, Dnstap: dnsserver.DnstapConfig{Socket: "unix:" + socket, Identity: "node-one"}})
	if err != nil {
		t.Fatal(err)
	}
	stop, server := run(t, s), s.Addrs()[0].String()
	s.SetZones(newZone(t, testZone()))
	query(t, server, "gateway.dstack.host", "A") // nobody collects yet, and nothing waits for them
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	reader, err := dnstap.NewReader(conn, &dnstap.ReaderOptions{Bidirectional: true, Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	decoder, messages, ended := dnstap.NewDecoder(reader, 1<<16), make(chan *dnstap.Dnstap, 10_000), make(chan error, 1)
	go func() {
		for {
			d := new(dnstap.Dnstap)
			if err := decoder.Decode(d); err != nil {
				ended <- err
				return
			}
			messages <- d
		}
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != io.EOF { // the server says goodbye
			t.Errorf("the stream ended with %v", err)
		}
	})
	var queries, answers []*dnstap.Message
	for begin := time.Now(); len(answers) < 3; {
		if time.Since(begin) > patience {
			t.Fatalf("%d queries and %d answers came", len(queries), len(answers))
		}
		query(t, server, "gateway.dstack.host", "A")
		select {
		case d := <-messages:
			if string(d.Identity) != "node-one" || d.GetType() != dnstap.Dnstap_MESSAGE {
				t.Fatalf("%v", d)
			}
			if d.Message.GetType() == dnstap.Message_AUTH_QUERY {
				queries = append(queries, d.Message)
			} else {
				answers = append(answers, d.Message)
			}
		case <-time.After(time.Millisecond):
		}
	}
	m := new(dns.Msg)
	last := answers[len(answers)-1]
	if err := m.Unpack(last.ResponseMessage); err != nil || len(m.Answer) != 1 {
		t.Errorf("answer %v, %v", m, err)
	}
	if last.GetSocketProtocol() != dnstap.SocketProtocol_UDP || last.GetSocketFamily() != dnstap.SocketFamily_INET || len(last.QueryAddress) != 4 || last.GetQueryPort() == 0 {
		t.Errorf("%v", last)
	}
	if err := m.Unpack(queries[0].QueryMessage); err != nil || m.Question[0].Name != "gateway.dstack.host." {
		t.Errorf("query %v, %v", m, err)
	}
}

func TestDnstapSocketFaults(t *testing.T) {
	for _, socket := range []string{"/run/tap", "unix:", "udp:127.0.0.1:6000", "tap"} {
		if s, err := dnsserver.New(dnsserver.Config{Listen: []string{"127.0.0.1:0"}, Dnstap: dnsserver.DnstapConfig{Socket: socket}}); err == nil {
			t.Errorf("%s accepted: %v", socket, s.Close())
		} else if !strings.Contains(err.Error(), "neither unix:/path nor tcp:host:port") {
			t.Error(err)
		}
	}
}
