package dnsserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// Times of keys that are the same everywhere.
const (
	keyTTL = 3600 // seconds, of the DNSKEY, CDS and CDNSKEY records

	defaultParentTTL   = 24 * time.Hour
	defaultPropagation = time.Hour
	maxKeys            = 8 // of a zone, whatever happens
)

// Keys are the keys of one zone with their times, oldest first. All nodes of a
// zone have the same; it is a value: nothing changes one that was returned.
type Keys []TimedKey

// TimedKey is a key and when it does what (RFC 7583 section 3.1). The zero time
// is never.
type TimedKey struct {
	*Key
	Publish time.Time // the DNSKEY record appears
	Sign    time.Time // it begins to sign data, if its role does
	Submit  time.Time // the zone above is asked to name it, if its role signs keys
	// Withdraw is when the zone above is asked to name it no more.
	Withdraw time.Time
	Retire   time.Time // it ends to sign data
	Remove   time.Time // the DNSKEY record goes
}

// within tells whether at is from a time on and before another.
func within(at, from, until time.Time) bool {
	return !from.IsZero() && !at.Before(from) && (until.IsZero() || at.Before(until))
}

func (ks Keys) choose(ok func(TimedKey) bool) (out []*Key) {
	for _, k := range ks {
		if ok(k) {
			out = append(out, k.Key)
		}
	}
	return out
}

// published are the keys that have DNSKEY records.
func (ks Keys) published(at time.Time) []*Key {
	return ks.choose(func(k TimedKey) bool { return within(at, k.Publish, k.Remove) })
}

// signing are the keys that sign data.
func (ks Keys) signing(at time.Time) []*Key {
	return ks.choose(func(k TimedKey) bool { return k.role.signsData() && within(at, k.Sign, k.Retire) })
}

// wanted are the keys that the zone above should name.
func (ks Keys) wanted(at time.Time) []*Key {
	return ks.choose(func(k TimedKey) bool { return k.role.signsKeys() && within(at, k.Submit, k.Withdraw) })
}

// DS returns the DS records that the zone above should have, in presentation form.
func (ks Keys) DS(zone string, at time.Time) (records []string) {
	for _, k := range ks.wanted(at) {
		records = append(records, k.DS(zone))
	}
	return records
}

// Next returns the first time after at from which the zone has to be made with
// other records, or the zero time.
func (ks Keys) Next(at time.Time) (next time.Time) {
	for _, k := range ks {
		for _, t := range []time.Time{k.Publish, k.Sign, k.Submit, k.Withdraw, k.Retire, k.Remove} {
			if t.After(at) && (next.IsZero() || t.Before(next)) {
				next = t
			}
		}
	}
	return next
}

// Policy says which keys a zone has, and how long.
type Policy struct {
	// Algorithm of the keys. Zero: ECDSAP256SHA256. Another one than that of
	// the keys begins an algorithm rollover (RFC 6781 section 4.1.4).
	Algorithm Algorithm
	// Split has a KSK and a ZSK in place of one CSK.
	Split bool
	// ZSKLifetime and KSKLifetime are how long a key is used before the next
	// takes its place; a CSK's is KSKLifetime. Zero: for ever.
	ZSKLifetime, KSKLifetime time.Duration
	// MaxTTL is the longest TTL in the zone. Zero: 7 days, the longest there is.
	MaxTTL time.Duration
	// ParentTTL is the longest TTL of DS records in the zone above. Zero: 24 h.
	ParentTTL time.Duration
	// Propagation is how long a change takes to reach every server of the
	// zone, or of the zone above. Zero: 1 h.
	Propagation time.Duration
}

func (p Policy) complete() Policy {
	if p.Algorithm == 0 {
		p.Algorithm = ECDSAP256SHA256
	}
	if p.MaxTTL == 0 {
		p.MaxTTL = maxTTL
	}
	if p.ParentTTL == 0 {
		p.ParentTTL = defaultParentTTL
	}
	if p.Propagation == 0 {
		p.Propagation = defaultPropagation
	}
	return p
}

// known is how long it takes from when a DNSKEY appears until every cache has it.
func (p Policy) known() time.Duration { return keyTTL*time.Second + p.Propagation }

// Parent is what the zone above says of a zone.
type Parent struct {
	// Asked tells that it was asked and that DS holds all it has.
	Asked bool
	// DS are its DS records in presentation form.
	DS []string
}

// Has tells whether the zone above names a key.
func (p Parent) Has(k *Key) bool {
	return slices.ContainsFunc(p.DS, func(text string) bool {
		rr, err := dns.NewRR(text)
		ds, ok := rr.(*dns.DS)
		return err == nil && ok && names(ds, k.dnskey(ds.Hdr.Name, 0))
	})
}

// Advance returns the keys as a policy wants them at a time: the first ones for
// a zone without, a successor for one that has been used long enough, the end
// of one that nobody needs any more. Changes take their time, so it is called
// again and again; what it does not change it returns as it was. All times are
// whole ResignIntervals, at which all nodes make their zones anew. One rollover
// goes on at a time. A key that the zone above names stays until that zone was
// seen without it.
func (ks Keys) Advance(at time.Time, p Policy, parent Parent) (Keys, error) {
	p = p.complete()
	next := slices.DeleteFunc(slices.Clone(ks), func(k TimedKey) bool { return k.done(at) })
	var err error
	if hour := at.Truncate(ResignInterval); len(next) > 0 && !hour.Equal(at) {
		at = hour.Add(ResignInterval)
	} else {
		at = hour
	}
	switch {
	case len(next) == 0:
		next, err = firstKeys(at, p)
	case !next.steady():
		next.conclude(at, p, parent)
	case !next.fits(p):
		next, err = next.replaceAll(at, p)
	case next.old(at, func(k TimedKey) bool { return k.role.signsKeys() }, p.KSKLifetime):
		next, err = next.rollEntry(at, p)
	case p.Split && next.old(at, func(k TimedKey) bool { return k.role == ZSK }, p.ZSKLifetime):
		next, err = next.rollZSK(at, p)
	}
	if err != nil {
		return ks, err
	}
	if len(next) > maxKeys {
		return ks, fmt.Errorf("DNSSEC: %d keys, at most %d are possible", len(next), maxKeys)
	}
	return next, nil
}

// done tells that a key has no use any more.
func (k TimedKey) done(at time.Time) bool {
	gone := !k.Remove.IsZero() && !at.Before(k.Remove)
	return gone && (!k.role.signsData() || !k.Retire.IsZero() && !at.Before(k.Retire))
}

// steady tells that no rollover goes on: of no role there are two.
func (ks Keys) steady() bool {
	var entry, data int
	for _, k := range ks {
		if k.role.signsKeys() {
			entry++
		}
		if k.role.signsData() {
			data++
		}
	}
	return entry == 1 && data == 1
}

func (ks Keys) fits(p Policy) bool {
	return !slices.ContainsFunc(ks, func(k TimedKey) bool { return k.algorithm != p.Algorithm || (k.role == CSK) == p.Split })
}

func (ks Keys) old(at time.Time, which func(TimedKey) bool, lifetime time.Duration) bool {
	i := slices.IndexFunc(ks, which)
	return lifetime > 0 && i >= 0 && !at.Before(ks[i].Publish.Add(lifetime))
}

func (p Policy) roles() []Role {
	if p.Split {
		return []Role{KSK, ZSK}
	}
	return []Role{CSK}
}

// firstKeys are all used at once: nobody has anything of the zone in a cache.
func firstKeys(at time.Time, p Policy) (ks Keys, err error) {
	return ks.with(p, p.roles(), TimedKey{Publish: at, Sign: at, Submit: at})
}

// with adds keys with the same times, as far as their roles have them.
func (ks Keys) with(p Policy, roles []Role, times TimedKey) (Keys, error) {
	for _, role := range roles {
		k := times
		var err error
		if k.Key, err = ks.newKey(p.Algorithm, role); err != nil {
			return nil, err
		}
		if !role.signsData() {
			k.Sign = time.Time{}
		}
		if !role.signsKeys() {
			k.Submit = time.Time{}
		}
		ks = append(ks, k)
	}
	return ks, nil
}

// newKey makes a key whose tag no other of the zone has: validators try every
// key of a tag, and some give up soon (CVE-2023-50387).
func (ks Keys) newKey(a Algorithm, r Role) (*Key, error) {
	for {
		k, err := NewKey(a, r)
		if err != nil || !slices.ContainsFunc(ks, func(other TimedKey) bool { return other.tag == k.tag }) {
			return k, err
		}
	}
}

// rollZSK plans a whole ZSK rollover: pre-publish (RFC 6781 section 4.1.1.1,
// RFC 7583 section 3.2.1).
func (ks Keys) rollZSK(at time.Time, p Policy) (Keys, error) {
	sign := at.Add(p.known())
	for i := range ks {
		if ks[i].role == ZSK {
			ks[i].Retire = sign
			ks[i].Remove = sign.Add(p.MaxTTL + p.Propagation)
		}
	}
	return ks.with(p, []Role{ZSK}, TimedKey{Publish: at, Sign: sign})
}

// rollEntry begins the rollover of a KSK or CSK: the successor is published
// beside it, then the zone above is asked for it (Double-KSK, RFC 7583 section
// 3.3.1). A CSK's data is signed by the successor as soon as all know that.
func (ks Keys) rollEntry(at time.Time, p Policy) (Keys, error) {
	ready := at.Add(p.known())
	role := KSK
	for i := range ks {
		if ks[i].role.signsKeys() {
			role = ks[i].role
			ks[i].Withdraw = ready
		}
		if ks[i].role == CSK {
			ks[i].Retire = ready
		}
	}
	return ks.with(p, []Role{role}, TimedKey{Publish: at, Sign: ready, Submit: ready})
}

// replaceAll begins the rollover to another algorithm, or between a CSK and two
// keys, the conservative way (RFC 6781 section 4.1.4): first signatures, then
// keys, then the zone above; what was goes in the opposite order.
func (ks Keys) replaceAll(at time.Time, p Policy) (Keys, error) {
	publish := at.Add(p.MaxTTL + p.Propagation)
	submit := publish.Add(p.known())
	for i := range ks {
		if ks[i].role.signsKeys() {
			ks[i].Withdraw = submit
		}
	}
	return ks.with(p, p.roles(), TimedKey{Publish: publish, Sign: at, Submit: submit})
}

// conclude ends the rollover of a KSK or CSK, or of all keys, once the zone
// above names the successor and not what was before. A zone above that names
// nothing leaves nothing to break.
func (ks Keys) conclude(at time.Time, p Policy, parent Parent) {
	was := slices.IndexFunc(ks, func(k TimedKey) bool { return k.role.signsKeys() })
	next := len(ks) - 1
	for next > was && !ks[next].role.signsKeys() {
		next--
	}
	if was < 0 || next == was || !ks[was].Remove.IsZero() || at.Before(ks[next].Submit) || !parent.Asked {
		return
	}
	if len(parent.DS) > 0 && (!parent.Has(ks[next].Key) || parent.Has(ks[was].Key)) {
		return
	}
	remove := at.Add(p.ParentTTL + p.Propagation)
	all := ks[was].algorithm != ks[next].algorithm || ks[was].role != ks[next].role
	for i := range ks {
		switch k := &ks[i]; {
		case all && k.Publish.Before(ks[next].Publish):
			k.Remove = remove
			if k.role.signsData() {
				k.Retire = remove.Add(p.known())
			}
		case !all && i == was:
			k.Remove = remove
			if least := k.Retire.Add(p.MaxTTL + p.Propagation); k.role == CSK && k.Remove.Before(least) {
				k.Remove = least
			}
		}
	}
}

// keyRecord is how a key is kept: it is as secret as the key.
type keyRecord struct {
	Role     Role      `json:"role"`
	Private  []byte    `json:"private_key"` // PKCS #8
	Publish  time.Time `json:"publish"`
	Sign     time.Time `json:"sign"`
	Submit   time.Time `json:"submit"`
	Withdraw time.Time `json:"withdraw"`
	Retire   time.Time `json:"retire"`
	Remove   time.Time `json:"remove"`
}

// Marshal returns the keys with their private parts, as JSON, to be kept
// sealed. Equal keys give equal texts.
func (ks Keys) Marshal() ([]byte, error) {
	records := make([]keyRecord, len(ks))
	for i, k := range ks {
		private, err := k.Key.Marshal()
		if err != nil {
			return nil, err
		}
		records[i] = keyRecord{k.role, private, k.Publish.UTC(), k.Sign.UTC(), k.Submit.UTC(), k.Withdraw.UTC(), k.Retire.UTC(), k.Remove.UTC()}
	}
	return json.Marshal(records)
}

// ParseKeys reads what Marshal writes.
func ParseKeys(text []byte) (Keys, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var records []keyRecord
	if err := d.Decode(&records); err != nil {
		return nil, fmt.Errorf("DNSSEC keys: %w", err)
	}
	if len(records) > maxKeys {
		return nil, errors.New("DNSSEC keys: too many")
	}
	var ks Keys
	for _, r := range records {
		k, err := ParseKey(r.Private, r.Role)
		if err != nil {
			return nil, err
		}
		ks = append(ks, TimedKey{k, r.Publish, r.Sign, r.Submit, r.Withdraw, r.Retire, r.Remove})
	}
	return ks, nil
}
