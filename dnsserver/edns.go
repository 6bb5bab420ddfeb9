package dnsserver

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// edns is the OPT of a query (RFC 6891 section 6.1). The zero value is a query
// without.
type edns struct {
	present bool
	version uint8
	flags   uint16 // those that answers depend on
	size    uint16

	cookie    []byte // client cookie, and what follows it as server cookie; nil without
	badCookie bool   // of an impossible length
	nsid      bool
	keepalive bool
	padding   bool
}

// Sizes of cookies, RFC 7873 section 4.
const (
	clientCookie    = 8
	minServerCookie = 8
	maxServerCookie = 32
)

// optOctets is the size of an OPT without options, and optionOctets that of an
// option without data.
const (
	optOctets    = 11
	optionOctets = 4
)

// read reads an OPT, of which there is one at most (RFC 6891 section 6.1.1),
// at the root. Options are those of its version only.
func (e *edns) read(root bool, fixed, data []byte) bool {
	if e.present || !root {
		return false
	}
	*e = edns{
		present: true,
		size:    binary.BigEndian.Uint16(fixed[2:]),
		version: fixed[5],
		flags:   binary.BigEndian.Uint16(fixed[6:]) & ednsFlags,
	}
	for len(data) > 0 {
		if len(data) < optionOctets {
			return false
		}
		size := optionOctets + int(binary.BigEndian.Uint16(data[2:]))
		if len(data) < size {
			return false
		}
		if e.version == 0 {
			e.option(binary.BigEndian.Uint16(data), data[optionOctets:size])
		}
		data = data[size:]
	}
	return true
}

// option reads one option. Others than these are ignored (RFC 6891 section 6.1.2).
func (e *edns) option(code uint16, data []byte) {
	switch code {
	case dns.EDNS0COOKIE:
		if e.cookie != nil {
			return // the first one counts, RFC 7873 section 5.2
		}
		e.cookie = data
		server := len(data) - clientCookie
		e.badCookie = server != 0 && (server < minServerCookie || server > maxServerCookie)
	case dns.EDNS0NSID:
		e.nsid = true
	case dns.EDNS0TCPKEEPALIVE:
		e.keepalive = true
	case dns.EDNS0PADDING:
		e.padding = true
	}
}

// paddingBlock is what answers are padded to, RFC 8467 section 4.1.
const paddingBlock = 468

// optSize is the size of the OPT that goes with an answer, without padding.
func (r *responder) optSize(a *answer) int {
	if !r.query.edns.present {
		return 0
	}
	return optOctets + len(a.options) + r.ownOptions()
}

// ownOptions is the size of the options that depend on the query, without padding.
func (r *responder) ownOptions() (size int) {
	e := &r.query.edns
	if r.sendsCookie() {
		size += optionOctets + clientCookie + serverCookie
	}
	if r.sendsNSID() {
		size += optionOctets + len(r.nsid)
	}
	if r.sendsKeepalive() {
		size += optionOctets + 2
	}
	if e.padding && r.private() {
		size += optionOctets
	}
	return size
}

func (r *responder) sendsCookie() bool {
	e := &r.query.edns
	return r.cookies != nil && e.cookie != nil && !e.badCookie
}
func (r *responder) sendsNSID() bool { return r.query.edns.nsid && len(r.nsid) > 0 }
func (r *responder) sendsKeepalive() bool {
	return r.query.edns.keepalive && (r.transport == TCP || r.transport == TLS)
}
func (r *responder) private() bool { return r.transport == TLS || r.transport == HTTPS }

// appendOPT adds the OPT that answers the query's.
func (r *responder) appendOPT(out []byte, a *answer) []byte {
	e := &r.query.edns
	out = append(out, 0, 0, byte(dns.TypeOPT), MaxUDPPayload>>8, MaxUDPPayload&0xff)
	out = binary.BigEndian.AppendUint32(out, a.ttl)
	length := len(out)
	out = append(out, 0, 0)
	out = append(out, a.options...)
	if r.sendsCookie() {
		out = appendOption(out, dns.EDNS0COOKIE, clientCookie+serverCookie)
		out = append(out, e.cookie[:clientCookie]...)
		out = append(out, r.cookie[:]...)
	}
	if r.sendsNSID() {
		out = appendOption(out, dns.EDNS0NSID, len(r.nsid))
		out = append(out, r.nsid...)
	}
	if r.sendsKeepalive() { // in units of 100 ms, RFC 7828 section 3.1
		out = appendOption(out, dns.EDNS0TCPKEEPALIVE, 2)
		out = binary.BigEndian.AppendUint16(out, r.keepalive)
	}
	if e.padding && r.private() {
		out = appendPadding(out, r.limit())
	}
	binary.BigEndian.PutUint16(out[length:], uint16(len(out)-length-2))
	return out
}

func appendOption(out []byte, code uint16, size int) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(out, code), uint16(size))
}

// appendPadding pads a message to full blocks, but not beyond its limit.
func appendPadding(out []byte, limit int) []byte {
	size := len(out) + optionOctets
	padded := min((size+paddingBlock-1)/paddingBlock*paddingBlock, limit)
	out = appendOption(out, dns.EDNS0PADDING, padded-size)
	for range padded - size {
		out = append(out, 0)
	}
	return out
}
