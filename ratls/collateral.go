package ratls

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-tdx-guest/pcs"
)

// The four answers of the vendor that a verification needs, by their place in endorsements.answers.
const (
	answerTCBInfo = iota
	answerQEIdentity
	answerPCKCRL
	answerRootCRL
	answers
)

// issuerChainHeader is the header, in canonical form, that carries the issuer chain of each answer; the root's list needs none.
var issuerChainHeader = [answers]string{
	answerTCBInfo:    pcs.TcbInfoIssuerChainPhrase,
	answerQEIdentity: pcs.SgxQeIdentityIssuerChainPhrase,
	answerPCKCRL:     pcs.SgxPckCrlIssuerChainPhrase,
}

// endorsements is the record of collateral of one verification. go-tdx-guest reads the same bytes from it that our own checks
// read. It serves one call.
type endorsements struct {
	answers    [answers]Collateral
	tcbInfo    pcs.TcbInfo
	qeIdentity pcs.EnclaveIdentity
	crls       [2]*x509.RevocationList
}

// Collateral returns everything that a stranger needs to verify raw offline with [Stapled], verbatim: TCB info, QE identity,
// PCK revocation list and root revocation list. The signatures of the quote are verified first, the collateral is not.
func (v *Verifier) Collateral(ctx context.Context, raw []byte) ([]Collateral, error) {
	pck, err := v.authenticate(raw, v.now())
	if err != nil {
		return nil, err
	}
	answers, err := v.fetch(ctx, pck.FMSPC)
	if err != nil {
		return nil, err
	}
	return answers[:], nil
}

// gather fetches the collateral for the platforms of fmspc and reads it; its signatures are not verified yet.
func (v *Verifier) gather(ctx context.Context, fmspc string) (*endorsements, error) {
	fetched, err := v.fetch(ctx, fmspc)
	if err != nil {
		return nil, err
	}
	set := &endorsements{answers: fetched}
	if err := set.read(); err != nil {
		v.forget(set)
		return nil, &Refusal{Check: CheckCollateral, Err: clip(err)}
	}
	return set, nil
}

// fetch asks for all answers at once. Of several errors it returns that of the first in order, so that the same evidence is always
// refused in the same words. The place of the root's revocation list is read from the trusted root, not from a
// certificate that came with an answer.
func (v *Verifier) fetch(ctx context.Context, fmspc string) (set [answers]Collateral, err error) {
	urls := [answers]string{
		answerTCBInfo:    pcs.TcbInfoURL(fmspc),
		answerQEIdentity: pcs.QeIdentityURL(),
		answerPCKCRL:     pcs.PckCrlURL("platform"),
		answerRootCRL:    v.root.CRLDistributionPoints[0],
	}
	var errs [answers]error
	var all sync.WaitGroup
	for i, url := range urls {
		all.Go(func() {
			header, body, err := v.getter.Get(ctx, url)
			if err != nil {
				errs[i] = fmt.Errorf("collateral %s: %w", url, err)
				return
			}
			set[i] = Collateral{URL: url, Body: body}
			if name := issuerChainHeader[i]; name != "" {
				set[i].Headers = map[string]string{name: header.Get(name)}
			}
		})
	}
	all.Wait()
	return set, cmp.Or(errs[:]...)
}

// read decodes the answers.
func (e *endorsements) read() error {
	if err := readSigned(e.answers[answerTCBInfo].Body, "tcbInfo", &e.tcbInfo); err != nil {
		return err
	}
	if err := readSigned(e.answers[answerQEIdentity].Body, "enclaveIdentity", &e.qeIdentity); err != nil {
		return err
	}
	for i, answer := range e.answers[answerPCKCRL:] {
		list, err := x509.ParseRevocationList(answer.Body)
		if err != nil {
			return fmt.Errorf("revocation list %s: %w", answer.URL, err)
		}
		e.crls[i] = list
	}
	return nil
}

// readSigned decodes the named member of an answer into v. The answer must consist of that member and its signature:
// go-tdx-guest verifies the signature over the member with exactly that name, but judges what encoding/json merged from every
// spelling of it, so that an unsigned "TCBINFO" behind the signed "tcbInfo" would be believed.
func readSigned(body []byte, name string, v any) error {
	parts, err := members(body)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(parts) != 2 || parts[name] == nil || parts["signature"] == nil {
		return fmt.Errorf("%s: want an object of exactly %q and %q", name, name, "signature")
	}
	if err := json.Unmarshal(parts[name], v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// members splits one JSON object, and refuses a member that occurs twice and whatever follows the object.
func members(body []byte) (map[string]json.RawMessage, error) {
	decoder := json.NewDecoder(bytes.NewReader(body))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	parts := make(map[string]json.RawMessage)
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, err
		}
		key := name.(string) // the decoder yields nothing else in this place
		if _, twice := parts[key]; twice {
			return nil, fmt.Errorf("member %q occurs twice", key)
		}
		parts[key] = value
	}
	if _, err := decoder.Token(); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("more data follows the JSON object")
	}
	return parts, nil
}

// fresh checks what go-tdx-guest does not: that nothing was issued in the future or longer ago than the policy allows, and
// that the TCB evaluation is recent enough. It looks at signed values only, after their verification.
func (e *endorsements) fresh(p Policy, now time.Time) error {
	for _, part := range []struct {
		name   string
		issued time.Time
	}{
		{"TCB info", e.tcbInfo.IssueDate},
		{"QE identity", e.qeIdentity.IssueDate},
		{"PCK revocation list", e.crls[0].ThisUpdate},
		{"root revocation list", e.crls[1].ThisUpdate},
	} {
		if part.issued.After(now) {
			return refuse(CheckCollateral, "%s was issued in the future, %s", part.name, part.issued.Format(time.RFC3339))
		}
		if age := now.Sub(part.issued); p.MaxCollateralAge > 0 && age > p.MaxCollateralAge {
			return refuse(CheckCollateral, "%s was issued %s ago, more than %s", part.name, age.Round(time.Second), p.MaxCollateralAge)
		}
	}
	number := min(e.tcbInfo.TcbEvaluationDataNumber, e.qeIdentity.TcbEvaluationDataNumber)
	if int64(number) < int64(p.MinEvaluationDataNumber) {
		return refuse(CheckCollateral, "TCB evaluation %d is older than the minimum, %d", number, p.MinEvaluationDataNumber)
	}
	return nil
}

// Get serves go-tdx-guest, which knows no context here: everything has been fetched.
func (e *endorsements) Get(url string) (map[string][]string, []byte, error) {
	for i := range e.answers {
		if answer := &e.answers[i]; answer.URL == url {
			return answer.header(), answer.Body, nil
		}
	}
	return nil, nil, fmt.Errorf("%s is not the place of any collateral of this quote", url)
}

// header converts the headers.
func (c *Collateral) header() http.Header {
	header := make(http.Header, len(c.Headers))
	for name, value := range c.Headers {
		header.Set(name, value)
	}
	return header
}

// stapled answers from what a document carries.
type stapled map[string]Collateral

// Stapled returns a Getter that answers only from list, as a relying party does that verifies a document offline. Of two
// entries with one URL the first counts.
func Stapled(list []Collateral) Getter {
	s := make(stapled, len(list))
	for _, c := range list {
		if _, ok := s[c.URL]; !ok {
			s[c.URL] = c
		}
	}
	return s
}

// Get implements Getter.
func (s stapled) Get(_ context.Context, url string) (http.Header, []byte, error) {
	c, ok := s[url]
	if !ok {
		return nil, nil, fmt.Errorf("not among the %d stapled answers", len(s))
	}
	return c.header(), c.Body, nil
}
