package verify

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"dstack.host/ratls"
)

// certificate is the check that a browser makes.
func (j *judgement) certificate() ratls.Check {
	leaf := j.chain[0]
	j.claim(ratls.HopCertificate, ratls.FromCertificate, "spki_sha256", fmt.Sprintf("%x", sha256.Sum256(leaf.RawSubjectPublicKeyInfo)))
	j.claim(ratls.HopCertificate, ratls.FromCertificate, "names", strings.Join(leaf.DNSNames, " "))
	j.claim(ratls.HopCertificate, ratls.FromCertificate, "not_after", leaf.NotAfter.UTC().Format(time.RFC3339))
	options := x509.VerifyOptions{DNSName: j.target.host, Roots: j.options.CAs, Intermediates: x509.NewCertPool(), CurrentTime: j.now}
	for _, c := range j.chain[1:] {
		options.Intermediates.AddCert(c)
	}
	verified, err := leaf.Verify(options)
	if err != nil {
		return fail(CheckCertificate, "%v", err)
	}
	j.public = j.options.CAs == nil
	root := verified[0][len(verified[0])-1]
	j.claim(ratls.HopCertificate, ratls.FromCertificate, "issuer_root", root.Subject.String())
	return pass(CheckCertificate, "valid for %s until %s, issued below %q", j.target.host, leaf.NotAfter.UTC().Format(time.RFC3339), root.Subject.CommonName)
}

// minLogs is how many logs browsers want to have promised to publish a certificate that they take (Chrome's and Apple's
// certificate transparency policies, certificates of at most 180 days).
const minLogs = 2

// timestamps counts the logs that promised to publish the certificate. Their signatures are not verified: which logs can be
// believed changes by the month. Whoever looks a log up finds the certificate there, or has caught the log lying.
func (j *judgement) timestamps() ratls.Check {
	list, err := j.scts()
	logs := map[string]bool{}
	for _, t := range list {
		if t.at.After(j.now.Add(24 * time.Hour)) { // a log merges within a day
			err = errors.Join(err, fmt.Errorf("a timestamp is of %s, which is yet to come", t.at.Format(time.RFC3339)))
		}
		logs[t.log] = true
	}
	var names []string
	for name := range logs {
		names = append(names, name)
		j.claim(ratls.HopCertificate, ratls.FromCertificate, "sct_log", name)
	}
	slices.Sort(names)
	found := fmt.Sprintf("%d of %d logs: %s", len(list), len(logs), strings.Join(names, ", "))
	if len(list) == 0 {
		found = "there are none"
	}
	switch {
	case j.options.CAs != nil:
		return skip(CheckSCT, "not needed below roots that are not publicly trusted; %s", found)
	case !j.public:
		return skip(CheckSCT, "not reached, because %s failed; %s", CheckCertificate, found)
	case err != nil:
		return fail(CheckSCT, "%v", err)
	case len(logs) < minLogs:
		return fail(CheckSCT, "a publicly trusted certificate needs timestamps of %d logs; %s", minLogs, found)
	}
	return pass(CheckSCT, "%s; present, their signatures not verified", found)
}

// sct is a signed certificate timestamp (RFC 6962 section 3.2).
type sct struct {
	log string // base64 of the log's id, as log lists name it
	at  time.Time
}

// sctExtension holds the list in a certificate (RFC 6962 section 3.3).
var sctExtension = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}

// scts are the timestamps in the leaf and in the TLS extension.
func (j *judgement) scts() (all []sct, err error) {
	texts := slices.Clone(j.bundle.TLS.SCTs)
	for _, e := range j.chain[0].Extensions {
		if !e.Id.Equal(sctExtension) {
			continue
		}
		embedded, err := sctList(e.Value)
		if err != nil {
			return nil, err
		}
		texts = append(texts, embedded...)
	}
	for _, text := range texts {
		t, err := parseSCT(text)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// sctList splits the list of a certificate's extension.
func sctList(value []byte) (texts []ratls.Base64, err error) {
	var octets []byte
	if rest, err := asn1.Unmarshal(value, &octets); err != nil || len(rest) > 0 {
		return nil, errors.New("the certificate's list of timestamps is malformed")
	}
	outer, list := cryptobyte.String(octets), cryptobyte.String(nil)
	if !outer.ReadUint16LengthPrefixed(&list) || !outer.Empty() {
		return nil, errors.New("the certificate's list of timestamps is malformed")
	}
	for !list.Empty() {
		var text cryptobyte.String
		if !list.ReadUint16LengthPrefixed(&text) || len(texts) == maxSCTs {
			return nil, errors.New("the certificate's list of timestamps is malformed, or too long")
		}
		texts = append(texts, ratls.Base64(text))
	}
	return texts, nil
}

func parseSCT(text []byte) (sct, error) {
	s := cryptobyte.String(text)
	var version, hash, algorithm uint8
	var log []byte
	var millis uint64
	var extensions, signature cryptobyte.String
	ok := s.ReadUint8(&version) && version == 0 && s.ReadBytes(&log, 32) && s.ReadUint64(&millis) &&
		s.ReadUint16LengthPrefixed(&extensions) && s.ReadUint8(&hash) && s.ReadUint8(&algorithm) &&
		s.ReadUint16LengthPrefixed(&signature) && s.Empty() && len(signature) > 0 && millis < 1<<48
	if !ok {
		return sct{}, errors.New("a timestamp of the certificate is malformed")
	}
	return sct{log: base64.StdEncoding.EncodeToString(log), at: time.UnixMilli(int64(millis)).UTC()}, nil
}
