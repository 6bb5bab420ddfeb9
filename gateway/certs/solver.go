package certs

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libdns/libdns"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// challengeTimeout bounds publishing and withdrawing one challenge record.
const challengeTimeout = time.Minute

// provider is the libdns provider of the zones that this gateway serves. It knows TXT records only.
type provider struct{ challenges Challenges }

var (
	_ libdns.RecordAppender = provider{}
	_ libdns.RecordDeleter  = provider{}
)

// AppendRecords publishes the values and returns when our servers answer them. After an error the records before the
// failed one are published.
func (p provider) AppendRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	return p.each(ctx, zone, recs, p.challenges.SetTXT)
}

// DeleteRecords withdraws exactly the given values; others at the same name stay.
func (p provider) DeleteRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	return p.each(ctx, zone, recs, p.challenges.DeleteTXT)
}

func (p provider) each(ctx context.Context, zone string, recs []libdns.Record, do func(ctx context.Context, fqdn, value string) error) ([]libdns.Record, error) {
	var done []libdns.Record
	for _, rec := range recs {
		rr := rec.RR()
		if rr.Type != "TXT" || rr.Data == "" {
			return done, fmt.Errorf("record %s %s: only TXT records with a value", rr.Name, rr.Type)
		}
		fqdn := strings.TrimSuffix(libdns.AbsoluteName(rr.Name, zone), ".")
		if err := do(ctx, fqdn, rr.Data); err != nil {
			return done, fmt.Errorf("TXT %s: %w", fqdn, err)
		}
		done = append(done, libdns.TXT{Name: rr.Name, TTL: rr.TTL, Text: rr.Data})
	}
	return done, nil
}

// dns01 solves dns-01 challenges in the zones that this gateway serves.
//
// It stands in place of certmagic.DNS01Solver, which finds the zone of a name by asking resolvers for SOA records (the
// internet's, or servers given by address): here the zones are known, and a question before the record exists would plant a negative answer
// in caches. Nor is there a propagation check to wait for: SetTXT returns when the record is served.
type dns01 struct {
	provider provider
	domains  []string
}

var _ acmez.Solver = dns01{}

// Present publishes the answer to chal beside those of other challenges: a base domain and its wildcard are validated at
// the same name.
func (s dns01) Present(ctx context.Context, chal acme.Challenge) error {
	zone, rec, err := s.record(chal)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, challengeTimeout)
	defer cancel()
	_, err = s.provider.AppendRecords(ctx, zone, []libdns.Record{rec})
	return err
}

// CleanUp withdraws the answer to chal, also when ctx has ended.
func (s dns01) CleanUp(ctx context.Context, chal acme.Challenge) error {
	zone, rec, err := s.record(chal)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), challengeTimeout)
	defer cancel()
	_, err = s.provider.DeleteRecords(ctx, zone, []libdns.Record{rec})
	return err
}

func (s dns01) record(chal acme.Challenge) (zone string, rec libdns.TXT, err error) {
	domain := chal.Identifier.Value
	if chal.Identifier.Type != "dns" || !slices.Contains(s.domains, domain) {
		return "", libdns.TXT{}, fmt.Errorf("challenge for %q, which is not a base domain of this gateway", domain)
	}
	return domain + ".", libdns.TXT{Name: challengeLabel, Text: chal.DNS01KeyAuthorization()}, nil
}
