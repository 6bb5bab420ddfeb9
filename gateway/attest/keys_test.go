package attest_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dstack.host/gateway/attest"
	"dstack.host/gateway/store"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

func openStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{DataDir: t.TempDir(), Key: store.Key{1}, ClusterID: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// failing is a platform whose quotes can be made to fail.
type failing struct {
	*platform
	fail atomic.Bool
}

var errNoQuote = errors.New("the quoting enclave does not answer")

func (f *failing) Quote(ctx context.Context, data ratls.ReportData) ([]byte, error) {
	if f.fail.Load() {
		return nil, errNoQuote
	}
	return f.platform.Quote(ctx, data)
}

// acmeInfo is what a test reads of acme-info.
type acmeInfo struct {
	Keys []struct {
		PublicKey string    `json:"public_key"`
		Quote     string    `json:"quote"`
		MadeAt    time.Time `json:"made_at"`
	} `json:"quoted_hist_keys"`
}

func (s *scene) acmeInfo(t *testing.T) (info acmeInfo) {
	t.Helper()
	if err := json.Unmarshal(s.get("/acme-info").Body.Bytes(), &info); err != nil {
		t.Fatal(err)
	}
	return info
}

func TestAnAttestedKeyIsOnRecordWhenAttestKeyReturns(t *testing.T) {
	kept := openStore(t)
	tee := new(failing)
	s := newScene(t, 0, func(c *attest.Config, p *platform) {
		tee.platform = p
		c.Store, c.Platform = kept, tee
	})
	key := newKey(t).SPKI
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	tee.fail.Store(true)
	if err := s.attester.AttestKey(ctx, key); !errors.Is(err, errNoQuote) {
		t.Errorf("without a quote: %v", err)
	}
	tee.fail.Store(false)
	if err := s.attester.AttestKey(ctx, key); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, k := range s.acmeInfo(t).Keys {
		if k.PublicKey != hex.EncodeToString(key) {
			continue
		}
		found = true
		var quote struct {
			ReportData string `json:"report_data"`
		}
		want := ratls.TaggedReportData(ratls.TagZTCertificate, key)
		if err := json.Unmarshal([]byte(k.Quote), &quote); err != nil || quote.ReportData != want.String() {
			t.Errorf("quoted over %s (%v), want %s", quote.ReportData, err, want)
		}
		if age := time.Since(k.MadeAt); age < 0 || age > time.Minute {
			t.Errorf("dated %s", k.MadeAt)
		}
	}
	if !found {
		t.Error("acme-info lacks the key")
	}
	before := tee.quotes.Load()
	tee.fail.Store(true)
	if err := s.attester.AttestKey(ctx, key); err != nil || tee.quotes.Load() != before {
		t.Errorf("asked again: %v, %d more quotes", err, tee.quotes.Load()-before)
	}
	if err := s.attester.AttestAccount(ctx, "https://acme.example/1"); !errors.Is(err, errNoQuote) {
		t.Errorf("an account without a quote: %v", err)
	}
}

// A node that has not seen the store yet can't know, so it waits; and what is in the store must be what its path says.
func TestARecordOfAnotherKeyIsNone(t *testing.T) {
	kept := openStore(t)
	key, other := newKey(t).SPKI, newKey(t).SPKI
	first := newScene(t, 0, func(c *attest.Config, _ *platform) { c.Store = kept })
	if err := first.attester.AttestKey(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	entries, _, err := kept.List(t.Context(), attest.KeyPrefix)
	if err != nil {
		t.Fatal(err)
	}
	path := first.attester.KeyPath(key)
	for _, e := range entries {
		if e.Path != first.attester.KeyPath(other) {
			continue
		}
		if _, err := kept.Commit(t.Context(), nil, []store.Op{store.Put(path, e.Value)}); err != nil {
			t.Fatal(err)
		}
	}
	second := newScene(t, 0, func(c *attest.Config, _ *platform) { c.Store = kept })
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := second.attester.AttestKey(ctx, key); err == nil {
		t.Error("the record of another key counts")
	}
}

// After an update the key is vouched for by the image that has it now too: a relying party can't take the word of the former one
// for it.
func TestAnotherImageQuotesTheKeyAgain(t *testing.T) {
	kept := openStore(t)
	key := newKey(t).SPKI
	for i, mrtd := range []ratls.Measurement{{1}, {2}, {1}} {
		s := newScene(t, 0, func(c *attest.Config, p *platform) {
			authority, err := simtdx.New(simtdx.Options{})
			if err != nil {
				t.Fatal(err)
			}
			machine, err := authority.Machine(simtdx.MachineOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if p.TD, err = machine.Boot(simtdx.VM{AppCompose: "{}", MRTD: mrtd}); err != nil {
				t.Fatal(err)
			}
			c.Store = kept
		})
		if err := s.attester.AttestKey(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		records := 0
		for _, k := range s.acmeInfo(t).Keys {
			if k.PublicKey == hex.EncodeToString(key) {
				records++
			}
		}
		if want := min(i+1, 2); records != want {
			t.Errorf("image %d: %d records of the key, want %d", i, records, want)
		}
	}
}

func TestTheHistoryIsBounded(t *testing.T) {
	kept := openStore(t)
	s := newScene(t, 0, func(c *attest.Config, _ *platform) { c.Store = kept })
	used := s.certs.Keys()[0].SPKI
	var last []byte
	for i := range attest.MaxRecords + 4 {
		last = fmt.Appendf(nil, "key %d", i)
		if err := s.attester.AttestKey(t.Context(), last); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		var keys []string
		for _, k := range s.acmeInfo(t).Keys {
			keys = append(keys, k.PublicKey)
		}
		if len(keys) <= attest.MaxRecords+1 {
			if !slices.Contains(keys, hex.EncodeToString(used)) || !slices.Contains(keys, hex.EncodeToString(last)) {
				t.Errorf("a key that serves, or the newest, was forgotten: %s", strings.Join(keys, " "))
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d keys are remembered", len(keys))
		}
		time.Sleep(10 * time.Millisecond)
	}
}
