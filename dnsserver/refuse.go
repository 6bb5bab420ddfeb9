package dnsserver

import (
	"github.com/miekg/dns"
)

// refusal is a response without data: an rcode and, to those who speak EDNS,
// the reason (RFC 8914).
type refusal struct {
	rcode int
	code  uint16 // extended error
	text  string
}

// The refusals; there are no others.
var (
	refuseFormat    = refusal{dns.RcodeFormatError, dns.ExtendedErrorCodeOther, "malformed message"}
	refuseQuestions = refusal{dns.RcodeFormatError, dns.ExtendedErrorCodeOther, "a query has exactly one question"}
	refuseCookie    = refusal{dns.RcodeFormatError, dns.ExtendedErrorCodeOther, "malformed cookie"}
	refuseName      = refusal{dns.RcodeFormatError, dns.ExtendedErrorCodeOther, "malformed name"}
	refuseMetaType  = refusal{dns.RcodeFormatError, dns.ExtendedErrorCodeInvalidQueryType, ""}
	refuseMailType  = refusal{dns.RcodeNotImplemented, dns.ExtendedErrorCodeNotSupported, "obsolete query type"}
	refuseOpcode    = refusal{dns.RcodeNotImplemented, dns.ExtendedErrorCodeNotSupported, "only queries are answered"}
	refuseVersion   = refusal{rcode: dns.RcodeBadVers}
	refuseClass     = refusal{dns.RcodeRefused, dns.ExtendedErrorCodeNotAuthoritative, "only class IN is served"}
	refuseTransfer  = refusal{dns.RcodeRefused, dns.ExtendedErrorCodeProhibited, "no zone transfers"}
	refuseZone      = refusal{dns.RcodeRefused, dns.ExtendedErrorCodeNotAuthoritative, ""}
	refuseNotReady  = refusal{dns.RcodeServerFailure, dns.ExtendedErrorCodeNotReady, "zones are not loaded yet"}
)

// write makes m the refusal.
func (r *refusal) write(m *dns.Msg) {
	m.Rcode = r.rcode
	if opt := m.IsEdns0(); opt != nil && r.rcode != dns.RcodeBadVers {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: r.code, ExtraText: r.text})
	}
}

// refuseMessage refuses by what is around the question: opcode, counts
// (RFC 9619), EDNS (RFC 6891 section 6.1).
func refuseMessage(query *dns.Msg) *refusal {
	if query.Opcode != dns.OpcodeQuery {
		return &refuseOpcode
	}
	if len(query.Question) != 1 {
		return &refuseQuestions
	}
	transfer := query.Question[0].Qtype == dns.TypeIXFR // carries its SOA, RFC 1995 section 3
	if len(query.Answer) > 0 || len(query.Ns) > 1 || len(query.Ns) == 1 && !transfer {
		return &refuseFormat
	}
	if opt := query.IsEdns0(); opt != nil && opt.Version() != 0 {
		return &refuseVersion
	}
	return nil
}

// refuseQuestion refuses types that are no data (RFC 6895 section 3.1) and
// classes that are not served.
func refuseQuestion(question dns.Question) *refusal {
	switch t := question.Qtype; {
	case t == dns.TypeAXFR, t == dns.TypeIXFR:
		return &refuseTransfer
	case t == dns.TypeMAILA, t == dns.TypeMAILB:
		return &refuseMailType
	case t == dns.TypeANY:
	case t == dns.TypeNone, t == dns.TypeOPT, 128 <= t && t <= 255: // 128 is NXNAME, RFC 9824 section 3.5
		return &refuseMetaType
	}
	if question.Qclass != dns.ClassINET {
		return &refuseClass
	}
	return nil
}
