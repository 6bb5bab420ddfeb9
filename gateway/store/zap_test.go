package store_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"dstack.host/gateway/store"
	"go.uber.org/zap"
)

func TestEtcdLogsQuietly(t *testing.T) {
	var out bytes.Buffer
	z := store.NewZap(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo}))).With(zap.Int("member", 1))
	z.Debug("one")
	z.Info("two")
	z.Warn("three", zap.String("k", "v"))
	z.Warn("simple token is not cryptographically signed")
	z.Error("four")
	done := make(chan struct{})
	go func() {
		defer close(done)
		store.Fatal(z)
		t.Error("goes on after Fatal")
	}()
	<-done
	var got []string
	for line := range strings.Lines(out.String()) {
		_, line, _ = strings.Cut(strings.TrimSpace(line), " ")
		got = append(got, line)
	}
	want := "level=INFO msg=three component=etcd member=1 k=v|level=WARN msg=four component=etcd member=1|level=ERROR msg=fatal component=etcd member=1"
	if strings.Join(got, "|") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "|"), want)
	}
}

// lines collects what is written from any goroutine.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestStartIsSilent(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		var out lines
		s := open(t, in(dir), func(c *store.Config) {
			c.Logger = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo}))
		})
		// Not more than the start: later a slow disk may be worth a word.
		if said := out.String(); said != "" {
			t.Errorf("says\n%s", said)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
