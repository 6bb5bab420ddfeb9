package attest

import (
	"encoding/base64"
	"strconv"
	"strings"
)

// formKind is one of the representations of a document.
type formKind uint8

const (
	formJSON formKind = iota
	formHTML
	formCMW
	formQuote
	formCount
)

// mediaTypes are what the forms are asked for by, in the order of preference among equals.
var mediaTypes = [formCount]string{
	formJSON:  "application/json",
	formHTML:  "text/html",
	formCMW:   "application/cmw+json",
	formQuote: "application/octet-stream",
}

// contentTypes are the Content-Type fields of the forms.
var contentTypes = [formCount][]string{
	formJSON:  {"application/json"},
	formHTML:  {"text/html; charset=utf-8"},
	formCMW:   {"application/cmw+json"},
	formQuote: {"application/octet-stream"},
}

// maxAccept bounds how much of an Accept field is read.
const maxAccept = 2 << 10

// negotiate chooses the form that a client likes best (RFC 9110 section 12.5.1). Without a field it is JSON; false when nothing
// that there is was asked for.
func negotiate(accept []string) (formKind, bool) {
	if len(accept) == 0 {
		return formJSON, true
	}
	field := strings.Join(accept, ",")
	if len(field) > maxAccept {
		field = field[:maxAccept]
	}
	best, weight := formJSON, 0.0
	for kind, media := range mediaTypes {
		if q := quality(field, media); q > weight {
			best, weight = formKind(kind), q
		}
	}
	return best, weight > 0
}

// quality is the weight of a media type: that of the most specific range which includes it.
func quality(field, media string) float64 {
	q, specific := 0.0, 0
	for entry := range strings.SplitSeq(field, ",") {
		name, parameters, _ := strings.Cut(entry, ";")
		name = strings.ToLower(strings.TrimSpace(name))
		s := 0
		switch {
		case name == media:
			s = 3
		case strings.HasSuffix(name, "/*") && strings.HasPrefix(media, strings.TrimSuffix(name, "*")):
			s = 2
		case name == "*/*":
			s = 1
		}
		if s > specific {
			q, specific = weightOf(parameters), s
		}
	}
	return q
}

// weightOf reads the parameter q; what is no weight refuses.
func weightOf(parameters string) float64 {
	for parameter := range strings.SplitSeq(parameters, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(parameter), "=")
		if !strings.EqualFold(name, "q") {
			continue
		}
		q, err := strconv.ParseFloat(value, 64)
		if err != nil || !(q >= 0 && q <= 1) {
			return 0
		}
		return q
	}
	return 1
}

// Indicators of a conceptual message (draft-ietf-rats-msg-wrap, "cm-ind"): bits for reference values, endorsements, evidence and
// attestation results.
const (
	cmEndorsements = 1 << 1
	cmEvidence     = 1 << 2
)

// wrap is the document and its raw quote as a collection of RATS conceptual messages in JSON: each a record of media type,
// base64url value and indicator (draft-ietf-rats-msg-wrap).
func wrap(document, quote []byte) ([]byte, error) {
	return marshal(map[string]any{
		"__cmwc_t": "tag:dstack.host,2026:ra-https-v1",
		"document": []any{mediaTypes[formJSON], base64.RawURLEncoding.EncodeToString(document), cmEndorsements | cmEvidence},
		"quote":    []any{mediaTypes[formQuote], base64.RawURLEncoding.EncodeToString(quote), cmEvidence},
	})
}
