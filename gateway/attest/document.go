package attest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"dstack.host/gateway/registry"
	"dstack.host/ratls"
)

// document is a finished document without a challenge, in all its forms. What it says does not change.
type document struct {
	subject   subject
	made      proven
	requote   time.Time // from here on it is quoted anew in the background
	until     time.Time // from here on it is not given out any more
	content   ratls.Document
	forms     [formCount]form // those that are not made yet are made by whoever asks first
	appInfo   func() ([]byte, error)
	size      int
	fresh     atomic.Pointer[freshness]
	confirmed atomic.Pointer[registry.Snapshot] // whose instances are those of the statement
}

// form is a representation, and the header fields that come with it. It does not change.
type form struct {
	once   sync.Once
	make   func() ([]byte, error)
	body   []byte
	err    error
	tag    string
	etag   []string
	length []string
}

// freshness is a Cache-Control field that holds for one second.
type freshness struct {
	second int64
	value  []string
}

// newDocument prepares all forms of a document, and makes the one that is most asked for.
func (a *Attester) newDocument(s subject, p proven) (*document, error) {
	pieces, err := p.batch.Text(0)
	if err != nil {
		return nil, err
	}
	body := append(bytes.Join(pieces[:], nil), '\n')
	d := &document{
		subject: s, made: p, content: *p.batch.Document(0), size: 4 * len(body),
		requote: p.issued.Add(a.config.Validity / 2), until: p.expires.Add(-a.config.Validity / 10),
	}
	d.forms[formJSON].make = func() ([]byte, error) { return body, nil }
	d.forms[formQuote].make = func() ([]byte, error) { return d.content.Gateway.Quote, nil }
	d.forms[formCMW].make = func() ([]byte, error) { return wrap(body, d.content.Gateway.Quote) }
	d.forms[formHTML].make = func() ([]byte, error) { return a.page(s, &d.content, body) }
	d.appInfo = sync.OnceValues(func() ([]byte, error) { return a.describe(&d.content) })
	_, err = d.form(formJSON)
	return d, err
}

// form returns a representation, which is made once.
func (d *document) form(k formKind) (*form, error) {
	f := &d.forms[k]
	f.once.Do(func() {
		if f.body, f.err = f.make(); f.err != nil {
			return
		}
		sum := sha256.Sum256(f.body)
		f.tag = `"` + hex.EncodeToString(sum[:16]) + `"`
		f.etag, f.length = []string{f.tag}, []string{strconv.Itoa(len(f.body))}
		f.make = nil
	})
	return f, f.err
}

// cacheControl is the field for now: a cache may keep the document until a newer one is made, but not beyond its end.
func (d *document) cacheControl(now time.Time) []string {
	if held := d.fresh.Load(); held != nil && held.second == now.Unix() {
		return held.value
	}
	age := max(0, int64(d.requote.Sub(now)/time.Second))
	made := &freshness{second: now.Unix(), value: []string{"public, max-age=" + strconv.FormatInt(age, 10)}}
	d.fresh.Store(made)
	return made.value
}

// holds reports whether a document says what is true now, and has not ended.
func (a *Attester) holds(d *document, now time.Time) bool {
	if !now.Before(d.until) {
		return false
	}
	select {
	case <-d.made.changed:
		return false
	default:
	}
	snapshot := a.config.Registry.Snapshot()
	if d.confirmed.Load() == snapshot {
		return true
	}
	if !sameInstances(d.made.instances, d.subject.instances(snapshot)) {
		return false
	}
	d.confirmed.Store(snapshot)
	return true
}

// marshal writes compact JSON that keeps <, > and & as they are, with a line end.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(v)
	return b.Bytes(), err
}
