//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// maxOthers is how many CPUs other processes may use in a round that counts.
const maxOthers = 0.1

// settle is how long a server is asked before a round, without being measured.
const settle = 200 * time.Millisecond

// bench is a run.
type bench struct {
	options
	launcher launcher
	servers  []*server
}

// scenario is a case of the comparison.
type scenario struct {
	name    string
	signed  bool
	source  func() source
	measure func(b *bench, s *server, next source) (figures, error)
	targets map[string]float64 // the least ratio, by peer, of the first metric
	metrics []metric
}

// figures are the results of one round, in the order of the scenario's metrics.
type figures struct {
	values []float64
	others float64
}

func (b *bench) scenarios() []scenario {
	n := b.apps
	load := []metric{cpuPerQuery, rate}
	return []scenario{
		{"hit", false, func() source { return hits(n, false) }, overUDP, map[string]float64{knot: 1.2, coredns: 8}, load},
		{"mixed", false, func() source { return mixed(n) }, overUDP, map[string]float64{knot: 1.2, coredns: 8}, load},
		{"nxdomain", false, func() source { return misses(n) }, overUDP, nil, load},
		{"random-nxdomain", false, func() source { return strangers(false) }, overUDP, nil, load},
		{"tcp-hit", false, func() source { return hits(n, false) }, overTCP(1), nil, load},
		{"tcp-hit-pipelined", false, func() source { return hits(n, false) }, overTCP(8), nil, load},
		{"signed-hit", true, func() source { return hits(n, true) }, overUDP, map[string]float64{knot: 1.2, coredns: 8}, load},
		{"signed-random-nxdomain", true, func() source { return strangers(true) }, overUDP, map[string]float64{knot: 0.9}, load},
		{"hit-in-flood", false, func() source { return hits(n, false) }, inFlood, nil, []metric{p99, p99Quiet}},
		{"hit-dnsperf", false, func() source { return hits(n, false) }, dnsperf, nil, []metric{cpuPerQuery, rate}},
	}
}

// start starts every server, with the same zone, and compares their answers.
func (b *bench) start() error {
	zone, err := dnsserver.NewZone(zoneConfig(b.apps))
	if err != nil {
		return err
	}
	file := filepath.Join(b.launcher.dir, "zone")
	if err := os.WriteFile(file, []byte(zoneFile(dnsserver.NewZones(zone), b.apps)), 0o644); err != nil {
		return err
	}
	if err := b.launch(file, false, ours, knot, nsd, coredns); err != nil {
		return err
	}
	if err := b.launch(file, true, ours, knot); err != nil {
		return err
	}
	if signer := b.find(knot, true); signer != nil {
		if file, err = b.transfer(signer); err != nil {
			return fmt.Errorf("transfer from Knot: %w", err)
		}
		if err := b.launch(file, true, nsd, coredns); err != nil {
			return err
		}
	}
	if err := b.warm(); err != nil {
		return err
	}
	return b.compareAnswers()
}

// warmUp is how long our signed zone is asked before anything is measured: it
// signs when asked, in a share of the CPU, and until then answers with TC. The
// others have signed everything before they answer.
const warmUp = 12 * time.Second

func (b *bench) warm() error {
	s := b.find(ours, true)
	if s == nil {
		return nil
	}
	for _, next := range []source{hits(b.apps, true), strangers(true)} {
		if _, err := load(s.addr, next, min(warmUp, 12*b.duration)); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) launch(zone string, signed bool, names ...string) error {
	for _, name := range names {
		s, err := b.launcher.launch(name, signed, zone)
		if err != nil {
			return err
		}
		if s == nil {
			fmt.Fprintf(os.Stderr, "without %s: it is not installed\n", name)
			continue
		}
		b.servers = append(b.servers, s)
	}
	return nil
}

func (b *bench) find(name string, signed bool) *server {
	i := slices.IndexFunc(b.servers, func(s *server) bool { return s.name == name && s.signed == signed })
	if i < 0 {
		return nil
	}
	return b.servers[i]
}

// transfer writes the zone that a server has signed to a file.
func (b *bench) transfer(s *server) (string, error) {
	out, err := exec.Command("kdig", "@"+s.addr.Addr().String(), "-p", fmt.Sprint(s.addr.Port()), origin, "AXFR").Output()
	if err != nil {
		return "", fmt.Errorf("kdig: %w", err)
	}
	var text strings.Builder
	soas := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || strings.HasPrefix(line, ";") {
			continue
		}
		if fields[3] == "SOA" {
			if soas++; soas > 1 {
				continue // the second one ends the transfer
			}
		}
		text.WriteString(line)
	}
	if soas != 2 {
		return "", fmt.Errorf("kdig: no whole transfer in %d octets", len(out))
	}
	file := filepath.Join(b.launcher.dir, "zone.signed")
	return file, os.WriteFile(file, []byte(text.String()), 0o644)
}

// compareAnswers asks all servers the same, and fails unless they answer the
// same: rcode and answer section, but for signatures.
func (b *bench) compareAnswers() error {
	const questions = 200
	for _, c := range b.scenarios() {
		next := c.source()
		for range questions {
			query := new(dns.Msg)
			if err := query.Unpack(next()); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			want, from := "", ""
			for _, s := range b.servers {
				if s.signed != c.signed {
					continue
				}
				m, err := exchange(query, s)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", c.name, s.name, err)
				}
				got := essence(m)
				if from == "" {
					want, from = got, s.name
				}
				if got != want {
					return fmt.Errorf("%s: %s answers\n%s\nbut %s\n%s", c.name, s.name, got, from, want)
				}
			}
		}
	}
	return nil
}

// exchange asks, over TCP when the answer is truncated.
func exchange(query *dns.Msg, s *server) (*dns.Msg, error) {
	m, err := dns.Exchange(query, s.addr.String())
	if err == nil && m.Truncated {
		m, _, err = (&dns.Client{Net: "tcp"}).Exchange(query, s.addr.String())
	}
	return m, err
}

// essence is what has to be the same of two answers.
func essence(m *dns.Msg) string {
	var records []string
	for _, rr := range m.Answer {
		if rr.Header().Rrtype != dns.TypeRRSIG {
			records = append(records, rr.String())
		}
	}
	slices.Sort(records)
	return strings.Join(append([]string{dns.RcodeToString[m.Rcode]}, records...), "\n")
}

// measure runs all scenarios and returns their rows, those that are complete
// also when it fails.
func (b *bench) measure(ctx context.Context) (rows []row, err error) {
	for _, c := range b.scenarios() {
		if b.find(ours, c.signed) == nil && c.signed {
			continue
		}
		measured, err := b.rounds(ctx, c)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", c.name, err)
		}
		rows = append(rows, c.rows(measured)...)
	}
	return rows, nil
}

// rounds measures the servers in turn. A round that was disturbed is done again,
// as often as there are rounds; then the machine is too busy to measure on.
func (b *bench) rounds(ctx context.Context, c scenario) (map[string][]*series, error) {
	measured := map[string][]*series{}
	for range b.options.rounds {
		for _, s := range b.servers {
			if s.signed != c.signed {
				continue
			}
			if measured[s.name] == nil {
				for range c.metrics {
					measured[s.name] = append(measured[s.name], &series{})
				}
			}
			if err := b.round(ctx, c, s, measured[s.name]); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return measured, nil
}

func (b *bench) round(ctx context.Context, c scenario, s *server, into []*series) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		got, err := c.measure(b, s, c.source())
		if errors.Is(err, errMissing) {
			return nil
		}
		starved := errors.Is(err, errStarved)
		if err != nil && !starved {
			return err
		}
		disturbed := got.others > maxOthers
		if starved || disturbed && !b.disturbed {
			for _, one := range into {
				one.discarded++
			}
			if into[0].discarded > 2*b.options.rounds {
				return fmt.Errorf("other processes use %.2f CPUs: wait until the machine is quiet, or say -accept-disturbed", got.others)
			}
			continue
		}
		for i, value := range got.values {
			into[i].values = append(into[i].values, value)
			into[i].disturbed = into[i].disturbed || disturbed
		}
		return nil
	}
}

// rows compares ours with every peer.
func (c scenario) rows(measured map[string][]*series) (rows []row) {
	for i, m := range c.metrics {
		for _, peer := range []string{knot, nsd, coredns} {
			if them := measured[peer]; them != nil && len(them[i].values) > 0 {
				target := 0.0
				if i == 0 {
					target = c.targets[peer]
				}
				rows = append(rows, compare(c.name, peer, m, measured[ours][i], them[i], target))
			}
		}
		if len(rows) == 0 {
			rows = append(rows, compare(c.name, "", m, measured[ours][i], nil, 0))
		}
	}
	return rows
}

// overUDP measures CPU time and rate.
func overUDP(b *bench, s *server, next source) (figures, error) {
	return b.loaded(s, func(d time.Duration) (tally, error) { return load(s.addr, next, d) })
}

// overTCP measures the same over TCP.
func overTCP(pipeline int) func(b *bench, s *server, next source) (figures, error) {
	return func(b *bench, s *server, next source) (figures, error) {
		return b.loaded(s, func(d time.Duration) (tally, error) { return loadTCP(s.addr, next, pipeline, d) })
	}
}

func (b *bench) loaded(s *server, load func(time.Duration) (tally, error)) (figures, error) {
	if _, err := load(settle); err != nil {
		return figures{}, err
	}
	m, err := startMeter(s.cmd.Process.Pid)
	if err != nil {
		return figures{}, err
	}
	t, err := load(b.duration)
	if err != nil {
		return figures{}, err
	}
	used, err := m.stop(0)
	switch {
	case err != nil:
		return figures{}, err
	case t.answers == 0:
		return figures{}, errStarved
	case t.rcodes[dns.RcodeSuccess]+t.rcodes[dns.RcodeNameError] != t.answers:
		return figures{}, fmt.Errorf("rcodes %v", t.rcodes)
	}
	if t.truncated > 0 {
		fmt.Fprintf(os.Stderr, "%s, signed %v: %d of %d answers were truncated and do not count\n", s.name, s.signed, t.truncated, t.truncated+t.answers)
	}
	n := float64(t.answers)
	return figures{[]float64{used.server.Seconds() * 1e6 / n, n / t.took.Seconds()}, used.others}, nil
}

// floodRate is how many strangers' names a second are asked for beside the hits:
// less than what the slowest server measured here can answer.
const floodRate = 10_000

// inFlood measures how long hits take, first with and then without a flood.
func inFlood(b *bench, s *server, next source) (figures, error) {
	m, err := startMeter(s.cmd.Process.Pid)
	if err != nil {
		return figures{}, err
	}
	var values []float64
	for _, flood := range []int{floodRate, 0} {
		latencies, err := probe(s.addr, next, strangers(false), flood, b.duration/2)
		if err != nil {
			return figures{}, err
		}
		if len(latencies) == 0 {
			return figures{}, errStarved
		}
		values = append(values, latencies[len(latencies)*99/100].Seconds()*1e6)
	}
	used, err := m.stop(0)
	return figures{values, used.others}, err
}

// A round without a result: the program is not there, or the server got no CPU.
var (
	errMissing = errors.New("not installed")
	errStarved = errors.New("no answers")
)

var (
	dnsperfDone = regexp.MustCompile(`Queries completed:\s+(\d+)`)
	dnsperfRate = regexp.MustCompile(`Queries per second:\s+([0-9.]+)`)
)

// dnsperf measures hits with a load generator of others. It tops out below what
// the servers can do, so its rate is that of the load; the CPU time is the server's.
func dnsperf(b *bench, s *server, _ source) (figures, error) {
	program, err := exec.LookPath("dnsperf")
	if err != nil {
		return figures{}, errMissing
	}
	file := filepath.Join(b.launcher.dir, "dnsperf")
	if _, err := os.Stat(file); err != nil {
		var queries strings.Builder
		for i := range b.apps {
			fmt.Fprintf(&queries, "%s.%s A\n", appID(i), origin)
		}
		if err := os.WriteFile(file, []byte(queries.String()), 0o644); err != nil {
			return figures{}, err
		}
	}
	m, err := startMeter(s.cmd.Process.Pid)
	if err != nil {
		return figures{}, err
	}
	seconds := max(1, int(b.duration.Seconds()+0.5))
	cmd := exec.Command(program, "-s", s.addr.Addr().String(), "-p", fmt.Sprint(s.addr.Port()), "-d", file, "-e", "-l", fmt.Sprint(seconds), "-c", "4", "-T", "1", "-q", "150")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return figures{}, fmt.Errorf("%w\n%s", err, out)
	}
	used, err := m.stop(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime())
	done, each := dnsperfDone.FindSubmatch(out), dnsperfRate.FindSubmatch(out)
	if err != nil || done == nil || each == nil {
		return figures{}, fmt.Errorf("dnsperf: %w\n%s", err, out)
	}
	n, _ := strconv.ParseFloat(string(done[1]), 64)
	perSecond, _ := strconv.ParseFloat(string(each[1]), 64)
	return figures{[]float64{used.server.Seconds() * 1e6 / n, perSecond}, used.others}, nil
}
