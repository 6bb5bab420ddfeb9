package ratls_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
)

const collateralURL = "https://api.trustedservices.intel.com/tdx/certification/v4/qe/identity"

// service is a vendor's service: what it answers, how long that is valid, and how often it was asked.
type service struct {
	mu    sync.Mutex
	asked int           // guarded by mu
	life  time.Duration // of the answers
	slow  time.Duration
	err   error
	size  int
}

func (s *service) Get(ctx context.Context, _ string) (http.Header, []byte, error) {
	s.mu.Lock()
	s.asked++
	n, life, slow, err, size := s.asked, s.life, s.slow, s.err, s.size
	s.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	if err != nil {
		return nil, nil, err
	}
	text := fmt.Sprintf(`{"enclaveIdentity":{"n":%d,"nextUpdate":"%s","pad":"%s"},"signature":"00"}`, n, time.Now().Add(life).UTC().Format(time.RFC3339), strings.Repeat("x", size))
	return http.Header{"Set-Cookie": {"x"}}, []byte(text), nil
}

func (s *service) set(change func(*service)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *service) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func TestCollateralIsFetchedOnceAndAgainAtHalfOfItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{life: 10 * time.Hour, slow: time.Second}
		c := ratls.NewCache(ratls.CacheConfig{Getter: s})
		get := func() (string, error) {
			_, body, err := c.Get(t.Context(), collateralURL)
			return string(body), err
		}
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if _, err := get(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := s.calls(); n != 1 {
			t.Errorf("20 callers at once: %d fetches", n)
		}
		time.Sleep(5*time.Hour - 2*time.Second)
		if _, err := get(); err != nil || s.calls() != 1 {
			t.Errorf("before half of its life: %v, %d fetches", err, s.calls())
		}
		time.Sleep(3 * time.Second)
		if body, err := get(); err != nil || s.calls() != 2 || !strings.Contains(body, `"n":2`) {
			t.Errorf("at half of its life: %v, %d fetches, %.40s", err, s.calls(), body)
		}

		s.set(func(s *service) { s.err = errors.New("away") })
		time.Sleep(6 * time.Hour)
		if body, err := get(); err != nil || !strings.Contains(body, `"n":2`) || s.calls() != 3 {
			t.Errorf("the service is away, the old answer lives: %v, %d fetches, %.40s", err, s.calls(), body)
		}
		time.Sleep(4 * time.Hour)
		if _, err := get(); err == nil || s.calls() != 4 {
			t.Errorf("beyond its next update: %v, %d fetches", err, s.calls())
		}
		for range 5 {
			if _, err := get(); err == nil || s.calls() != 4 {
				t.Errorf("the error is not remembered: %v, %d fetches", err, s.calls())
			}
		}
		s.set(func(s *service) { s.err = nil })
		time.Sleep(11 * time.Second)
		if _, err := get(); err != nil {
			t.Errorf("the service is back: %v", err)
		}
	})
}

func TestAnswersThatDoNotHoldAreForgottenAtARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{life: 24 * time.Hour}
		c := ratls.NewCache(ratls.CacheConfig{Getter: s})
		for range 30 {
			if _, _, err := c.Get(t.Context(), collateralURL); err != nil {
				t.Fatal(err)
			}
			c.Forget(collateralURL)
			time.Sleep(time.Second)
		}
		if n := s.calls(); n < 2 || n > 4 {
			t.Errorf("%d fetches in 30 s of complaints, want one every 10 s", n)
		}
		c.Forget("https://api.trustedservices.intel.com/never/asked")
	})
}

func TestTheCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{life: time.Hour}
		c := ratls.NewCache(ratls.CacheConfig{Getter: s, MaxEntries: 2, MaxBody: 1 << 10})
		get := func(path string) error {
			_, _, err := c.Get(t.Context(), "https://api.trustedservices.intel.com/"+path)
			time.Sleep(time.Millisecond)
			return err
		}
		for _, path := range []string{"a", "b", "a", "c", "a"} {
			if err := get(path); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.calls(); n != 3 {
			t.Errorf("%d fetches: the one that was used last should have stayed", n)
		}
		if err := get("b"); err != nil || s.calls() != 4 {
			t.Errorf("the one that was used least: %v, %d fetches", err, s.calls())
		}
		s.set(func(s *service) { s.size = 1 << 10 })
		if err := get("large"); err == nil || !strings.Contains(err.Error(), "at most 1024 are taken") {
			t.Errorf("too large: %v", err)
		}
		s.set(func(s *service) { s.size, s.life = 0, -time.Hour })
		if err := get("old"); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("expired: %v", err)
		}
	})
}

func TestOnlyTheVendorsHostsAreAsked(t *testing.T) {
	s := &service{life: time.Hour}
	c := ratls.NewCache(ratls.CacheConfig{Getter: s})
	for _, url := range []string{
		"http://api.trustedservices.intel.com/x", "https://evil.example/x", "https://api.trustedservices.intel.com.evil.example/x", "https://api.trustedservices.intel.com:444/x",
		"https://u@api.trustedservices.intel.com/x", "https:///x", "file:///etc/passwd", "://", "",
	} {
		if _, _, err := c.Get(t.Context(), url); err == nil {
			t.Errorf("%q was fetched", url)
		}
	}
	if s.calls() != 0 {
		t.Errorf("%d fetches", s.calls())
	}
	if header, _, err := c.Get(t.Context(), collateralURL); err != nil || header.Get("Set-Cookie") != "" {
		t.Errorf("%v, header %v: only issuer chains are kept", err, header)
	}
}

// A service that once gave a bad answer is asked again, instead of refusing every CVM for a day.
func TestABadAnswerOfTheVendorDoesNotStay(t *testing.T) {
	a := vendor(t)
	bad := true
	getter := ratls.GetterFunc(func(ctx context.Context, url string) (http.Header, []byte, error) {
		header, body, err := a.Getter().Get(ctx, url)
		if bad && strings.Contains(url, "/qe/identity") {
			i := strings.LastIndex(string(body), `"signature":"`) + len(`"signature":"`)
			body[i] ^= 1 // another digit of hex, mostly
			if body[i] < '0' {
				body[i] ^= 3
			}
		}
		return header, body, err
	})
	clock := now
	cache := ratls.NewCache(ratls.CacheConfig{Getter: getter, Hosts: append(ratls.IntelHosts(), simtdx.Host), Now: func() time.Time { return clock }})
	v := verifier(t, a, cache, ratls.Policy{})
	raw := quote(t, boot(t, a, machine{}, vm{}))
	if _, err := v.Verify(t.Context(), raw); refusedBy(err) != ratls.CheckCollateral {
		t.Fatalf("a bad signature: %v", err)
	}
	bad = false
	clock = clock.Add(11 * time.Second)
	_, _ = v.Verify(t.Context(), raw) // by what is held, which is then forgotten
	if _, err := v.Verify(t.Context(), raw); err != nil {
		t.Errorf("the vendor's answer is good again: %v", err)
	}
}
