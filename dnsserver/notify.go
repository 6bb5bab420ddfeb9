package dnsserver

import (
	"context"
	"encoding/base64"
	"fmt"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// notifyInterval is the least time between two notices to one secondary, so
	// that a zone that changes often is not transferred all the time.
	notifyInterval = time.Second
	notifyAttempts = 5 // each waits twice as long as the one before
)

// notifier tells one secondary of changes.
type notifier struct {
	address string
	changed chan struct{}     // one is enough for all changes so far
	told    map[string]uint32 // serials by origin; owned by run
}

func (s *Server) runNotifiers(ctx context.Context, running *sync.WaitGroup) {
	for _, n := range s.notifiers {
		running.Go(func() { s.notify(ctx, n) })
	}
}

func (s *Server) notify(ctx context.Context, n *notifier) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		}
		for _, z := range s.Zones().byOrigin {
			if serial, ok := n.told[z.origin]; ok && serial == z.serial() {
				continue
			}
			n.told[z.origin] = z.serial()
			if err := s.notifyOf(ctx, n.address, z); err != nil && ctx.Err() == nil {
				s.log.Warn("dns secondary was not told of a change, and learns it from its refresh", "secondary", n.address, "zone", z.origin, "error", err)
			}
		}
		timer.Reset(notifyInterval)
	}
}

// notifyOf sends one NOTIFY until it is answered (RFC 1996 section 3.6).
func (s *Server) notifyOf(ctx context.Context, address string, z *Zone) (err error) {
	wait := time.Second
	for range notifyAttempts {
		attempt, cancel := context.WithTimeout(ctx, wait)
		if err = s.shared.transfers.notify(attempt, address, z); err != nil {
			<-attempt.Done()
		}
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		wait *= 2
	}
	return err
}

// notify sends one NOTIFY and takes its answer, which is signed too.
func (t *transfers) notify(ctx context.Context, address string, z *Zone) error {
	client := &dns.Client{TsigSecret: map[string]string{t.name: base64.StdEncoding.EncodeToString(t.secret)}}
	conn, err := client.DialContext(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // fails only when closed
	defer stop()
	m := new(dns.Msg).SetNotify(z.origin)
	m.Answer = []dns.RR{dns.Copy(z.nodes[""].set(dns.TypeSOA)[0])}
	m.SetTsig(t.name, dns.HmacSHA256, maxFudge, time.Now().Unix())
	answer, _, err := client.ExchangeWithConnContext(ctx, m, conn)
	if err == nil && answer.Rcode != dns.RcodeSuccess {
		return fmt.Errorf("answered %s", dns.RcodeToString[answer.Rcode])
	}
	return err
}
