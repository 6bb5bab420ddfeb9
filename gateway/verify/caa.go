package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"dstack.host/dnsserver"
	"dstack.host/ratls"
)

// caaRecord is one CAA record, read so that two of the same meaning are equal.
type caaRecord struct {
	tag        string // "issue" or "issuewild"
	issuer     string // domain of the authority, "" for nobody
	parameters string // "name=value" in order, joined by ";"
}

func (r caaRecord) String() string {
	if r.issuer == "" && r.parameters == "" {
		return r.tag + " nobody"
	}
	return strings.TrimSuffix(fmt.Sprintf("%s %s;%s", r.tag, r.issuer, r.parameters), ";")
}

// parameter returns the value of a parameter, "" when it is not there.
func (r caaRecord) parameter(name string) string {
	for _, p := range strings.Split(r.parameters, ";") {
		if n, value, _ := strings.Cut(p, "="); n == name {
			return value
		}
	}
	return ""
}

// readCAA reads a property (RFC 8659 section 4.2); ok is false for one that does not decide who issues certificates of names.
func readCAA(tag, value string) (r caaRecord, ok bool) {
	tag = strings.ToLower(tag)
	if tag != "issue" && tag != "issuewild" {
		return caaRecord{}, false
	}
	issuer, rest, _ := strings.Cut(value, ";")
	var parameters []string
	for _, p := range strings.Split(rest, ";") {
		if name, v, _ := strings.Cut(strings.TrimSpace(p), "="); name != "" {
			parameters = append(parameters, strings.ToLower(strings.TrimSpace(name))+"="+strings.TrimSpace(v))
		}
	}
	slices.Sort(parameters)
	return caaRecord{tag: tag, issuer: strings.ToLower(strings.TrimSpace(issuer)), parameters: strings.Join(parameters, ";")}, true
}

// claimedCAA reads the records of a statement, each as `flags tag "value"`.
func claimedCAA(texts []string) (records []caaRecord, err error) {
	for _, text := range texts {
		words := strings.SplitN(text, " ", 3)
		if len(words) < 3 {
			return nil, fmt.Errorf("the statement's CAA record %q has no flags, tag and value", text)
		}
		value, err := strconv.Unquote(words[2])
		if err != nil {
			return nil, fmt.Errorf("the statement's CAA record %q has no quoted value", text)
		}
		if r, ok := readCAA(words[1], value); ok {
			records = append(records, r)
		}
	}
	return unique(records), nil
}

// publishedCAA reads the records of an answer.
func publishedCAA(answer []dnsserver.CAA) (records []caaRecord) {
	for _, c := range answer {
		if r, ok := readCAA(c.Tag, c.Value); ok {
			records = append(records, r)
		}
	}
	return unique(records)
}

func unique(records []caaRecord) []caaRecord {
	slices.SortFunc(records, func(a, b caaRecord) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(records)
}

// pins reports why records do not leave issuance to one account by dns-01 alone (RFC 8657), for names and for wildcards.
func pins(records []caaRecord, account string) error {
	for _, tag := range []string{"issue", "issuewild"} {
		if !slices.ContainsFunc(records, func(r caaRecord) bool { return r.tag == tag }) {
			return fmt.Errorf("no %s record says who may issue", tag)
		}
	}
	for _, r := range records {
		switch {
		case r.issuer == "":
		case r.parameter("accounturi") != account:
			return fmt.Errorf("%q is not limited to the statement's account %s", r, account)
		case r.parameter("validationmethods") != "dns-01":
			return fmt.Errorf("%q is not limited to dns-01", r)
		}
	}
	return nil
}

// texts renders records for people.
func texts(records []caaRecord) string {
	if len(records) == 0 {
		return "none"
	}
	out := make([]string, len(records))
	for i, r := range records {
		out[i] = r.String()
	}
	return strings.Join(out, ", ")
}

// caa holds what DNS says to what the statement says.
func (j *judgement) caa(ctx context.Context) ratls.Check {
	if c, ok := j.unquoted(CheckCAA); !ok {
		return c
	}
	statement := j.report.Statement
	claimed, err := claimedCAA(statement.CAA)
	switch {
	case err != nil:
		return fail(CheckCAA, "%v", err)
	case len(claimed) == 0 && statement.ACMEAccount == "":
		return skip(CheckCAA, "the statement names no ACME account and claims no CAA records")
	case statement.ACMEAccount != "":
		if err := pins(claimed, statement.ACMEAccount); err != nil {
			return fail(CheckCAA, "of the statement's records, %v", err)
		}
	}
	if j.options.SkipDNS {
		return skip(CheckCAA, "DNS was not to be asked (--skip-dns); the statement claims %s", texts(claimed))
	}
	if j.memory.silent(j.target.host) {
		return skip(CheckCAA, "names below localhost are not in the DNS; give --resolver to ask the gateway's own server")
	}
	resolver, err := j.published(ctx, claimed)
	switch {
	case errors.Is(err, errNobody):
		return fail(CheckCAA, "%v; give --resolver, or --skip-dns to do without", err)
	case err != nil:
		return fail(CheckCAA, "%v", err)
	}
	return pass(CheckCAA, "%s publishes what the statement claims: %s; asked %s", j.target.base, texts(claimed), resolver)
}

// published holds the records of the base domain, and of the name itself where it has its own, to those that are claimed:
// certificates of the wildcard go by the first, one of the name alone by the second (RFC 8659 section 3).
func (j *judgement) published(ctx context.Context, claimed []caaRecord) (resolver string, err error) {
	for _, name := range []string{j.target.base, j.target.host} {
		said, from, err := j.resolution(ctx, name, "CAA")
		if err != nil {
			return from, err
		}
		if name == j.target.base {
			for _, c := range said.CAA {
				j.claim(ratls.HopCertificate, ratls.FromDNS, "caa", fmt.Sprintf("%s %q", c.Tag, c.Value))
			}
		}
		records := publishedCAA(said.CAA)
		if name == j.target.host && name != j.target.base && len(said.CAA) == 0 {
			continue // the base domain's count
		}
		if !slices.Equal(records, claimed) {
			return from, fmt.Errorf("%s at %s publishes %s, the statement claims %s", from, name, texts(records), texts(claimed))
		}
		resolver = from
	}
	return resolver, nil
}

// resolution asks a question and reads the answer. One that is neither data nor their absence is an error.
func (j *judgement) resolution(ctx context.Context, name, qtype string) (said dnsserver.Resolution, resolver string, err error) {
	message, resolver, err := j.memory.ask(ctx, name, qtype)
	if err != nil {
		return said, resolver, err
	}
	if said, err = dnsserver.ParseResolution(message, name, qtype); err != nil {
		return said, resolver, fmt.Errorf("%s: %w", resolver, err)
	}
	if said.Rcode != "NOERROR" && said.Rcode != "NXDOMAIN" {
		return said, resolver, fmt.Errorf("%s answers %s to %s %s %s", resolver, said.Rcode, name, qtype, said.Error)
	}
	return said, resolver, nil
}

// dnssec tells whether the CAA records are signed: validated here when that is demanded, else by what the resolver says.
func (j *judgement) dnssec(ctx context.Context) ratls.Check {
	if j.options.DNSSEC {
		return j.validate(ctx)
	}
	if c, ok := j.unquoted(CheckDNSSEC); !ok {
		return c
	}
	if j.options.SkipDNS {
		return skip(CheckDNSSEC, "not demanded, and DNS was not to be asked")
	}
	if j.memory.silent(j.target.host) {
		return skip(CheckDNSSEC, "names below localhost are not in the DNS")
	}
	said, resolver, err := j.resolution(ctx, j.target.base, "CAA")
	switch {
	case errors.Is(err, errNobody):
		return skip(CheckDNSSEC, "not demanded, and not known: %v", errNobody)
	case err != nil:
		return skip(CheckDNSSEC, "not demanded, and not known: %v", err)
	}
	if said.Authenticated {
		return pass(CheckDNSSEC, "%s says that it validated the answer (AD): that is its word; --dnssec validates here", resolver)
	}
	keys, _, err := j.resolution(ctx, j.target.base, "DNSKEY")
	if err != nil {
		return skip(CheckDNSSEC, "not demanded; %s did not validate the answer, and of keys: %v", resolver, err)
	}
	return skip(CheckDNSSEC, "not demanded; %s did not validate the answer (no AD), the zone has %d DNSKEY records", resolver, keys.Keys)
}

// validate walks the chain of DNSSEC.
func (j *judgement) validate(ctx context.Context) ratls.Check {
	anchors := j.options.Anchors
	if anchors == nil {
		anchors = dnsserver.RootAnchors()
	}
	ask := func(name, qtype string) ([]byte, error) {
		message, _, err := j.memory.ask(ctx, name, qtype)
		return message, err
	}
	zone, err := dnsserver.Validate(ask, j.target.base, "CAA", anchors, j.now)
	if err != nil {
		return fail(CheckDNSSEC, "%v", err)
	}
	return pass(CheckDNSSEC, "the CAA records of %s are signed by zone %s, which is below the root's keys", j.target.base, zone)
}
