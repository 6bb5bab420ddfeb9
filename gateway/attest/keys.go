package attest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"dstack.host/gateway/certs"
	"dstack.host/gateway/store"
	"dstack.host/ratls"
)

const (
	// keyPrefix is where the records lie in the store.
	keyPrefix = "attested-keys/"
	// maxRecords is how many keys are remembered; the oldest go first.
	maxRecords = 64
	// attestRetry is how soon a key that could not be quoted is tried again.
	attestRetry = 5 * time.Second
)

// record is a key of a certificate, or the ACME account, with a quote of this gateway over it. Its JSON lies sealed in the store.
type record struct {
	PublicKey ratls.Base64 `json:"public_key"` // DER SubjectPublicKeyInfo; empty for the account
	Account   string       `json:"account"`    // URI; "" for a key
	Quote     string       `json:"quote"`      // as dstack's guest agent answers GetQuote: JSON text
	MadeAt    time.Time    `json:"made_at"`
	// Image is that of the gateway whose quote it is; empty in records of versions that did not tell them apart.
	Image ratls.Hex `json:"image"`

	revision int64 // of the store: which came later, whatever the clocks of the nodes say
}

// path is where a record lies: one for each key and account, and each image that vouches for it. A gateway that was updated has to
// say for itself that its key is its own.
func (r record) path() string {
	sum := sha256.Sum256(slices.Concat([]byte(r.Account+":"), []byte(r.PublicKey), []byte(r.Image)))
	return keyPrefix + hex.EncodeToString(sum[:16])
}

// imageOf identifies firmware, kernel and file system of whoever made a quote, as a verifier of the key history compares them.
func imageOf(raw []byte) (ratls.Hex, error) {
	q, err := ratls.ParseQuote(raw)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(slices.Concat(q.MRTD[:], q.RTMR[1][:], q.RTMR[2][:]))
	return sum[:16], nil
}

// reportData is what the quote is over (dstack 0.6 gateway/src/distributed_certbot.rs).
func (r record) reportData() ratls.ReportData {
	if r.Account != "" {
		return ratls.TaggedReportData(ratls.TagACMEAccount, []byte(r.Account))
	}
	return ratls.TaggedReportData(ratls.TagZTCertificate, r.PublicKey)
}

// keyring is what is recorded, as the store has it. It is replaced, never changed.
type keyring struct {
	all     map[string]record // by path; nil before the store has told
	changed chan struct{}     // closed when the next takes its place
}

// list returns the records, newest first.
func (k *keyring) list() []record {
	list := slices.Collect(maps.Values(k.all))
	slices.SortFunc(list, func(a, b record) int {
		return cmp.Or(cmp.Compare(b.revision, a.revision), strings.Compare(a.path(), b.path()))
	})
	return list
}

// watchKeys follows the store until ctx ends.
func (a *Attester) watchKeys(ctx context.Context) error {
	return a.config.Store.Watch(ctx, keyPrefix, func(u store.Update) error {
		old := a.keys.Load()
		next := &keyring{all: map[string]record{}, changed: make(chan struct{})}
		for path, r := range old.all {
			if !u.Reset || slices.Contains(u.Skipped, path) {
				next.all[path] = r
			}
		}
		for _, e := range u.Puts {
			var r record
			if err := ratls.DecodeStrict(e.Value, store.MaxValue, false, &r); err != nil || r.path() != e.Path {
				a.log.Error("the record of an attested key makes no sense; it is left out", "path", e.Path, "error", err)
				continue
			}
			r.revision = e.Revision
			next.all[e.Path] = r
		}
		for _, path := range u.Deletes {
			delete(next.all, path)
		}
		a.keys.Store(next)
		close(old.changed)
		return nil
	})
}

// AttestKey has this gateway's TEE quote a public key, DER SubjectPublicKeyInfo, and returns when the record is in the
// store and acme-info tells it. A key that has its record costs nothing. Run must be running.
func (a *Attester) AttestKey(ctx context.Context, spki []byte) error {
	return a.ensure(ctx, record{PublicKey: spki})
}

// AttestAccount is AttestKey for the URI of an ACME account.
func (a *Attester) AttestAccount(ctx context.Context, uri string) error {
	return a.ensure(ctx, record{Account: uri})
}

// ensure returns when there is a record of r.
func (a *Attester) ensure(ctx context.Context, r record) error {
	if a.config.Store == nil {
		return errors.New("no store to keep the record of an attested key in")
	}
	for made := false; ; {
		keys := a.keys.Load()
		if a.vouched(keys, r) {
			return nil
		}
		if keys.all != nil && !made { // the store tells first what there is
			if err := a.attest(ctx, r); err != nil {
				return err
			}
			made = true
			continue // now it is known which image this is, and it may have a record already
		}
		select {
		case <-keys.changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the store to tell of an attested key: %w", context.Cause(ctx))
		}
	}
}

// vouched reports whether this image has a record of r. Before its first quote it does not know which one it is.
func (a *Attester) vouched(keys *keyring, r record) bool {
	own := a.image.Load()
	if own == nil {
		return false
	}
	r.Image = *own
	_, known := keys.all[r.path()]
	return known
}

// attestKeys has every key that serves, and the ACME account, quoted once, until ctx ends. That none serves before is AttestKey's
// work; this brings records back that somebody took from the store.
func (a *Attester) attestKeys(ctx context.Context) {
	for {
		certified, recorded := a.config.Certs.Changed(), a.keys.Load().changed
		var again <-chan time.Time
		if err := a.attestMissing(ctx); err != nil && ctx.Err() == nil {
			a.log.Error("the keys of the certificates could not be attested; trying again", "error", err, "after", attestRetry)
			again = time.After(attestRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-certified:
		case <-recorded:
		case <-again:
		}
	}
}

// Recorded reports whether every key that serves has its record, so that acme-info tells of it.
func (a *Attester) Recorded() bool {
	if a.config.Store == nil {
		return true
	}
	recorded, keys := a.keys.Load(), a.config.Certs.Keys()
	return recorded.all != nil && len(keys) > 0 && !slices.ContainsFunc(keys, func(k certs.Key) bool {
		return !a.vouched(recorded, record{PublicKey: k.SPKI})
	})
}

// attestMissing makes the records that there should be and are not.
func (a *Attester) attestMissing(ctx context.Context) error {
	recorded := a.keys.Load()
	if recorded.all == nil {
		return nil // the store tells first
	}
	var wanted []record
	for _, key := range a.config.Certs.Keys() {
		wanted = append(wanted, record{PublicKey: key.SPKI})
	}
	if account := a.config.Certs.Account(); account != "" {
		wanted = append(wanted, record{Account: account})
	}
	var errs []error
	for _, r := range wanted {
		if !a.vouched(recorded, r) {
			errs = append(errs, a.attest(ctx, r))
		}
	}
	return errors.Join(append(errs, a.forgetKeys(ctx, wanted))...)
}

// attest has one record quoted and stores it. Another node that was faster has done the work.
func (a *Attester) attest(ctx context.Context, r record) error {
	ctx, cancel := context.WithTimeout(ctx, quoteTimeout)
	defer cancel()
	release, err := a.turn(ctx)
	if err != nil {
		return err
	}
	evidence, err := a.prover.Quote(ctx, r.reportData())
	release()
	if err != nil {
		return err
	}
	if r.Image, err = imageOf(evidence.Quote); err != nil {
		return fmt.Errorf("own quote: %w", err)
	}
	a.image.Store(&r.Image)
	if r.Quote, err = dstackQuote(evidence, r.reportData()); err != nil {
		return err
	}
	r.MadeAt = time.Now().UTC().Truncate(time.Second)
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = a.config.Store.Commit(ctx, []store.Cond{{Path: r.path()}}, []store.Op{store.Put(r.path(), value)})
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	if err == nil {
		a.log.Info("attested", "key_sha256", fmt.Sprintf("%x", sha256.Sum256(r.PublicKey)), "account", r.Account)
	}
	return err
}

// forgetKeys removes the oldest records beyond maxRecords, none of those that are in use.
func (a *Attester) forgetKeys(ctx context.Context, used []record) error {
	list := a.keys.Load().list()
	var errs []error
	for i := len(list) - 1; i >= maxRecords; i-- {
		path := list[i].path()
		if slices.ContainsFunc(used, func(u record) bool { u.Image = list[i].Image; return u.path() == path }) {
			continue
		}
		_, err := a.config.Store.Commit(ctx, nil, []store.Op{store.Delete(path)})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// dstackQuote is what dstack's guest agent answers GetQuote with, as JSON text.
func dstackQuote(e ratls.GatewayEvidence, data ratls.ReportData) (string, error) {
	log, err := marshal(e.EventLog)
	if err != nil {
		return "", err
	}
	text, err := marshal(struct {
		Quote      ratls.Hex        `json:"quote"`
		EventLog   string           `json:"event_log"`
		ReportData ratls.ReportData `json:"report_data"`
		VMConfig   string           `json:"vm_config"`
	}{ratls.Hex(e.Quote), strings.TrimSpace(string(log)), data, e.VMConfig})
	return strings.TrimSpace(string(text)), err
}

// ACMEInfo is the JSON of dstack's AcmeInfoResponse, with the member hist_keys that its certificate transparency monitor insists on (dstack 0.6
// gateway/rpc/proto/gateway_rpc.proto, ct_monitor/src/main.rs), and of each key when it was quoted. The newest come first.
func (a *Attester) ACMEInfo() ([]byte, error) {
	type quoted struct {
		PublicKey   ratls.Hex `json:"public_key"`
		Quote       string    `json:"quote"`
		Attestation string    `json:"attestation"`
		MadeAt      time.Time `json:"made_at"`
	}
	info := struct {
		AccountURI         string      `json:"account_uri"`
		HistKeys           []ratls.Hex `json:"hist_keys"`
		QuotedHistKeys     []quoted    `json:"quoted_hist_keys"`
		AccountQuote       string      `json:"account_quote"`
		AccountAttestation string      `json:"account_attestation"`
	}{AccountURI: a.config.Certs.Account(), HistKeys: []ratls.Hex{}, QuotedHistKeys: []quoted{}}
	for _, r := range a.keys.Load().list() {
		switch r.Account {
		case "":
			info.QuotedHistKeys = append(info.QuotedHistKeys, quoted{PublicKey: ratls.Hex(r.PublicKey), Quote: r.Quote, MadeAt: r.MadeAt})
		case info.AccountURI:
			info.AccountQuote = r.Quote
		}
	}
	return marshal(info)
}
