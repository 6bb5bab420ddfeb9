package join_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"dstack.host/gateway/join"
)

const patience = 20 * time.Second

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// upper is an app that answers, once its client has said everything, with that in capitals.
func upper(t *testing.T, l net.Listener) {
	t.Helper()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				text, err := io.ReadAll(c)
				if err == nil {
					_, _ = c.Write(bytes.ToUpper(text))
				}
			}()
		}
	}()
}

// say connects, says something, and returns the answer.
func say(t *testing.T, to net.Addr, text string) (string, error) {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(c)
	return string(answer), err
}

// syncBuffer takes a log.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestForwardingKeepsHalfClosedConnections(t *testing.T) {
	app, front := listen(t), listen(t)
	upper(t, app)
	var log syncBuffer
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- join.ServePort(ctx, front, app.Addr().String(), 2, slog.New(slog.NewTextHandler(&log, nil)))
	}()
	big := strings.Repeat("x", 1<<20)
	var talks sync.WaitGroup
	for range 8 { // four times as many as are forwarded at once
		talks.Go(func() {
			if got, err := say(t, front.Addr(), big); err != nil || got != strings.ToUpper(big) {
				t.Errorf("%d octets, %v", len(got), err)
			}
		})
	}
	talks.Wait()
	if log.String() != "" {
		t.Error(log.String())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAnAppThatIsNotThereIsToldOnce(t *testing.T) {
	app, front := listen(t), listen(t)
	at := app.Addr().String()
	_ = app.Close()
	var log syncBuffer
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- join.ServePort(ctx, front, at, 2, slog.New(slog.NewTextHandler(&log, nil)))
	}()
	for range 3 {
		if got, _ := say(t, front.Addr(), "hi"); got != "" {
			t.Errorf("%q from an app that is not there", got)
		}
	}
	if n := strings.Count(log.String(), "can't be reached"); n != 1 {
		t.Errorf("told %d times:\n%s", n, log.String())
	}
	app, err := net.Listen("tcp", at)
	if err != nil {
		t.Skipf("the port was taken in between: %v", err)
	}
	defer func() { _ = app.Close() }()
	upper(t, app)
	if got, err := say(t, front.Addr(), "hi"); err != nil || got != "HI" {
		t.Errorf("%q, %v", got, err)
	}
	if !strings.Contains(log.String(), "reached again") {
		t.Error(log.String())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTheEndClosesWhatIsForwarded(t *testing.T) {
	app, front := listen(t), listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- join.ServePort(ctx, front, app.Addr().String(), 1, slog.New(slog.DiscardHandler)) }()
	client, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	inner, err := app.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = inner.Close() }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, c := range []net.Conn{client, inner} {
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a connection outlived the forwarding: %v", err)
		}
	}
}
