package dnsserver_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// Times of the simulated world: those of the policy, used to the full.
const (
	simStep      = 20 * time.Minute
	simMaxTTL    = 2 * time.Hour
	simParentTTL = 3 * time.Hour
	simKeyTTL    = time.Hour
	simDelay     = time.Hour // propagation
)

// moment is what the servers of the zone and the zone above say at a time.
type moment struct {
	ds, keys, data []uint16 // tags
}

// world follows a zone's keys with time compressed.
type world struct {
	t       *testing.T
	at      time.Time
	keys    dnsserver.Keys
	parent  []string // DS records that the zone above has
	seen    map[uint16]*dnsserver.Key
	moments []moment // the latest last
}

// tick lets a step of time pass: the keys advance, the zone above follows CDS
// when it looks, and every cache that could be is checked.
func (w *world) tick(p dnsserver.Policy, look bool) {
	w.t.Helper()
	var err error
	if w.keys, err = w.keys.Advance(w.at, p, dnsserver.Parent{Asked: true, DS: w.parent}); err != nil {
		w.t.Fatal(err)
	}
	if look {
		w.parent = w.keys.DS("dstack.host", w.at)
	}
	m := moment{}
	for _, k := range w.keys {
		w.seen[k.Tag()] = k.Key
		if !k.Publish.IsZero() && !w.at.Before(k.Publish) && (k.Remove.IsZero() || w.at.Before(k.Remove)) {
			m.keys = append(m.keys, k.Tag())
		}
		if !k.Sign.IsZero() && !w.at.Before(k.Sign) && (k.Retire.IsZero() || w.at.Before(k.Retire)) {
			m.data = append(m.data, k.Tag())
		}
		if (dnsserver.Parent{DS: w.parent}).Has(k.Key) {
			m.ds = append(m.ds, k.Tag())
		}
	}
	w.moments = append(w.moments, m)
	w.check()
	w.at = w.at.Add(simStep)
}

// recent are the different values of what a cache, or a server that is behind, may have.
func (w *world) recent(back time.Duration, of func(moment) []uint16) (out [][]uint16) {
	from := max(0, len(w.moments)-1-int((back+simDelay-simStep)/simStep))
	for _, m := range w.moments[from:] {
		if v := of(m); !slices.ContainsFunc(out, func(o []uint16) bool { return slices.Equal(o, v) }) {
			out = append(out, v)
		}
	}
	return out
}

// check holds every combination of old and new DS, DNSKEY and signed data
// against what validators demand: for every algorithm of the DS set and of the
// keys a chain (RFC 4035 sections 2.2 and 5, RFC 6840 section 5.11).
func (w *world) check() {
	w.t.Helper()
	for _, ds := range w.recent(simParentTTL, func(m moment) []uint16 { return m.ds }) {
		for _, keys := range w.recent(simKeyTTL, func(m moment) []uint16 { return m.keys }) {
			for _, data := range w.recent(simMaxTTL, func(m moment) []uint16 { return m.data }) {
				w.chain(ds, keys, data)
			}
		}
	}
}

func (w *world) chain(ds, keys, data []uint16) {
	w.t.Helper()
	algorithms := map[dnsserver.Algorithm]bool{}
	for _, tag := range slices.Concat(ds, keys) {
		algorithms[w.seen[tag].Algorithm()] = true
	}
	of := func(a dnsserver.Algorithm, tags []uint16) (out []uint16) {
		for _, tag := range tags {
			if w.seen[tag].Algorithm() == a {
				out = append(out, tag)
			}
		}
		return out
	}
	shared := func(a, b []uint16) bool {
		return slices.ContainsFunc(a, func(tag uint16) bool { return slices.Contains(b, tag) })
	}
	for a := range algorithms {
		if d := of(a, ds); len(d) > 0 && !shared(d, keys) {
			w.t.Fatalf("%v: DS %d with the keys %d: no chain of %v", w.at, ds, keys, a)
		}
		if k := of(a, keys); len(k) > 0 && !shared(of(a, data), keys) {
			w.t.Fatalf("%v: keys %d, data signed by %d: no chain of %v", w.at, keys, data, a)
		}
	}
}

func simPolicy(p dnsserver.Policy) dnsserver.Policy {
	p.MaxTTL, p.ParentTTL, p.Propagation = simMaxTTL, simParentTTL, simDelay
	return p
}

// A year of rollovers, in which no resolver, whatever it has in its cache, ever
// fails to validate.
func TestRolloversNeverBreakTheChain(t *testing.T) {
	const day = 24 * time.Hour
	for _, row := range []struct {
		name     string
		policy   func(day int) dnsserver.Policy
		least    int           // different keys that are seen
		look     time.Duration // how often the zone above does; zero: in every step
		unsigned bool          // the zone above never names any key
	}{
		{name: "CSK for ever", policy: func(int) dnsserver.Policy { return dnsserver.Policy{} }, least: 1},
		{name: "CSK a month each", policy: func(int) dnsserver.Policy { return dnsserver.Policy{KSKLifetime: 30 * day} }, least: 5},
		{name: "ZSK a week each", policy: func(int) dnsserver.Policy { return dnsserver.Policy{Split: true, ZSKLifetime: 7 * day} }, least: 15},
		{name: "ZSK and KSK", policy: func(int) dnsserver.Policy {
			return dnsserver.Policy{Split: true, ZSKLifetime: 7 * day, KSKLifetime: 20 * day, Algorithm: dnsserver.Ed25519}
		}, least: 15, look: 6 * day},
		{name: "algorithm", policy: func(day int) dnsserver.Policy {
			if day < 20 {
				return dnsserver.Policy{Split: true}
			}
			return dnsserver.Policy{Split: true, Algorithm: dnsserver.Ed25519}
		}, least: 4},
		{name: "algorithm there and back, and one key in place of two", policy: func(day int) dnsserver.Policy {
			switch {
			case day < 20:
				return dnsserver.Policy{}
			case day < 60:
				return dnsserver.Policy{Split: true, Algorithm: dnsserver.Ed25519}
			}
			return dnsserver.Policy{KSKLifetime: 40 * 24 * time.Hour}
		}, least: 5, look: 6 * day},
		{name: "no DS at all", policy: func(int) dnsserver.Policy { return dnsserver.Policy{KSKLifetime: 10 * day} }, least: 10, unsigned: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := &world{t: t, at: zoneAt, seen: map[uint16]*dnsserver.Key{}}
			for i := range int(180 * day / simStep) {
				days := int(time.Duration(i) * simStep / day)
				every := max(1, int(row.look/simStep))
				w.tick(simPolicy(row.policy(days)), i%every == every-1 && !row.unsigned)
			}
			if len(w.seen) < row.least {
				t.Errorf("%d keys in half a year, want at least %d", len(w.seen), row.least)
			}
			if last := w.moments[len(w.moments)-1]; len(last.keys) > 4 {
				t.Errorf("%d keys are left", len(last.keys))
			}
		})
	}
}

// The old key stays for as long as the zone above may name it.
func TestRolloverWaitsForTheParent(t *testing.T) {
	p := dnsserver.Policy{KSKLifetime: 24 * time.Hour}
	ks := newKeys(t, p)
	old := ks[0].Key
	at := zoneAt
	advance := func(parent dnsserver.Parent, d time.Duration) {
		t.Helper()
		at = at.Add(d)
		var err error
		if ks, err = ks.Advance(at, p, parent); err != nil {
			t.Fatal(err)
		}
	}
	advance(dnsserver.Parent{}, 48*time.Hour)
	if len(ks) != 2 || len(ks.DS("dstack.host", at)) != 1 || ks.DS("dstack.host", at)[0] != old.DS("dstack.host") {
		t.Fatalf("after the lifetime: %v", ks)
	}
	both := []string{ks[0].DS("dstack.host"), ks[1].DS("dstack.host")}
	for _, parent := range []dnsserver.Parent{
		{}, {Asked: true, DS: both[:1]}, {Asked: true, DS: both}, {Asked: false, DS: both[1:]}, {Asked: true, DS: []string{"nonsense"}},
	} {
		advance(parent, 72*time.Hour)
		if len(ks) != 2 || !ks[0].Remove.IsZero() {
			t.Fatalf("%v: the old key goes: %v", parent, ks[0])
		}
	}
	if ds := ks.DS("dstack.host", at); len(ds) != 1 || ds[0] != both[1] {
		t.Fatalf("the parent is asked for %v", ds)
	}
	advance(dnsserver.Parent{Asked: true, DS: both[1:]}, time.Hour)
	if ks[0].Remove.IsZero() || ks.Next(at).IsZero() {
		t.Fatalf("the old key stays: %v", ks[0])
	}
	advance(dnsserver.Parent{}, 30*24*time.Hour)
	if slices.ContainsFunc(ks, func(k dnsserver.TimedKey) bool { return k.Tag() == old.Tag() }) {
		t.Fatal("the old key is still kept")
	}
}

func TestKeysAreKept(t *testing.T) {
	for _, p := range []dnsserver.Policy{{}, {Algorithm: dnsserver.Ed25519, Split: true}} {
		ks := newKeys(t, p)
		text, err := ks.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := dnsserver.ParseKeys(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fmt.Sprint(ks), fmt.Sprint(again)); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		twice, err := again.Marshal()
		if err != nil || !bytes.Equal(text, twice) {
			t.Errorf("%v: kept again it is another", err)
		}
		if strings.Contains(fmt.Sprintf("%v %+v %#v", ks, ks[0], ks[0].Key.String()), "PRIVATE") {
			t.Error("a key shows itself")
		}
	}
	for _, text := range []string{"", "{}", "[{}]", `[{"role":"ksk","private_key":"AA=="}]`, `[{"x":1}]`, "[" + strings.Repeat("{},", 20) + "{}]"} {
		if ks, err := dnsserver.ParseKeys([]byte(text)); err == nil {
			t.Errorf("%s: %v", text, ks)
		}
	}
}

func TestDSIsThatOfTheLibrary(t *testing.T) {
	ks := newKeys(t, dnsserver.Policy{})
	zs := dnsserver.NewZones(newZone(t, signedConfig(t, dnsserver.Policy{}, dnsserver.DenialBlock, 0)))
	m := zs.Answer(askDO("dstack.host.", dns.TypeDNSKEY), dnsserver.TCP, dns.MaxMsgSize)
	cds := zs.Answer(askDO("dstack.host.", dns.TypeCDS), dnsserver.TCP, dns.MaxMsgSize)
	want := m.Answer[0].(*dns.DNSKEY).ToDS(dns.SHA256)
	if got := cds.Answer[0].(*dns.CDS); got.Digest != want.Digest || got.KeyTag != want.KeyTag {
		t.Errorf("CDS %v, want the data of %v", got, want)
	}
	if got := ks[0].DS("dstack.host"); !strings.HasPrefix(got, "dstack.host.\t0\tIN\tDS\t") {
		t.Errorf("DS %q", got)
	}
}
