package dnsserver

import (
	"encoding/binary"
	"strings"

	"github.com/miekg/dns"
)

// packer packs messages. It is what the library's packing is, but for the
// compression: a name is shortened by the question only (RFC 1035 section
// 4.1.4), which is what almost every name of an answer ends like, and needs no
// table of the names seen. It is reused from message to message.
type packer struct {
	out  []byte
	name string // of the question, "" when names can't be found in it
	// pointers are where in out a name points into the question.
	pointers []int

	alone dns.Msg // of one record, only
	only  [1]dns.RR
	spare []byte // for alone, packed
}

// pack packs a message without OPT, with the question as it is given.
func (p *packer) pack(m *dns.Msg, question []byte) ([]byte, error) {
	p.out = append(p.out[:0], make([]byte, headerOctets)...)
	p.header(m, len(question) > 0)
	p.out = append(p.out, question...)
	p.name, p.pointers = "", p.pointers[:0]
	if len(m.Question) == 1 && !strings.Contains(m.Question[0].Name, `\`) {
		p.name = m.Question[0].Name
	}
	for _, section := range [...][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			if err := p.record(rr); err != nil {
				return nil, err
			}
		}
	}
	return p.out, nil
}

// header writes the fixed fields (RFC 1035 section 4.1.1). AD and CD are never set.
func (p *packer) header(m *dns.Msg, question bool) {
	h := p.out
	h[2] = flagQR | byte(m.Opcode)<<3
	if m.Authoritative {
		h[2] |= flagAA
	}
	if m.Truncated {
		h[2] |= flagTC
	}
	h[3] = byte(m.Rcode & 0xf)
	if question {
		h[5] = 1
	}
	extra := len(m.Extra)
	for _, rr := range m.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			extra--
		}
	}
	binary.BigEndian.PutUint16(h[6:], uint16(len(m.Answer)))
	binary.BigEndian.PutUint16(h[8:], uint16(len(m.Ns)))
	binary.BigEndian.PutUint16(h[10:], uint16(extra))
}

// record writes a record. Names in its data are compressed for the types of RFC
// 1035 that answers are made of; no other may be (RFC 3597 section 4).
func (p *packer) record(rr dns.RR) error {
	h := rr.Header()
	if err := p.domain(h.Name, true); err != nil {
		return err
	}
	p.out = binary.BigEndian.AppendUint16(p.out, h.Rrtype)
	p.out = binary.BigEndian.AppendUint16(p.out, h.Class)
	p.out = binary.BigEndian.AppendUint32(p.out, h.Ttl)
	length := len(p.out)
	p.out = append(p.out, 0, 0)
	if err := p.data(rr); err != nil {
		return err
	}
	binary.BigEndian.PutUint16(p.out[length:], uint16(len(p.out)-length-2))
	return nil
}

func (p *packer) data(rr dns.RR) error {
	switch rr := rr.(type) {
	case *dns.NS:
		return p.domain(rr.Ns, true)
	case *dns.CNAME:
		return p.domain(rr.Target, true)
	case *dns.SOA:
		if err := p.domain(rr.Ns, true); err != nil {
			return err
		}
		if err := p.domain(rr.Mbox, true); err != nil {
			return err
		}
		for _, v := range [...]uint32{rr.Serial, rr.Refresh, rr.Retry, rr.Expire, rr.Minttl} {
			p.out = binary.BigEndian.AppendUint32(p.out, v)
		}
		return nil
	}
	return p.other(rr)
}

// other has the library pack a record, and takes its data. It goes in a message
// of its own: dns.PackRR writes to the record, which others are reading.
func (p *packer) other(rr dns.RR) error {
	p.only[0] = rr
	p.alone.Answer = p.only[:]
	packed, err := p.alone.PackBuffer(p.spare)
	if err != nil {
		return err
	}
	p.spare = packed[:cap(packed)]
	owner := parser{packet: packed, off: headerOctets}
	owner.skipName()
	p.out = append(p.out, packed[owner.off+fixedOctets:]...)
	return nil
}

// fixedOctets are those of a record between its owner and its data.
const fixedOctets = 10

// domain writes a name, compressed to the question where it may be.
func (p *packer) domain(name string, compress bool) error {
	if strings.Contains(name, `\`) {
		var buf [maxNameOctets]byte
		end, err := dns.PackDomainName(name, buf[:], 0, nil, false)
		p.out = append(p.out, buf[:end]...)
		return err
	}
	for name != "" && name != "." {
		if at, ok := p.find(name); ok && compress {
			p.pointers = append(p.pointers, len(p.out))
			p.out = binary.BigEndian.AppendUint16(p.out, 0xc000|uint16(at))
			return nil
		}
		label, rest, _ := strings.Cut(name, ".")
		if len(label) == 0 || len(label) > maxLabelOctets {
			return dns.ErrRdata
		}
		p.out = append(append(p.out, byte(len(label))), label...)
		name = rest
	}
	p.out = append(p.out, 0)
	return nil
}

// find returns where the question's name ends like this. Without escapes a
// label lies as far from the beginning in text as in the message: its length
// stands where the dot before it stood.
func (p *packer) find(name string) (offset int, ok bool) {
	at := len(p.name) - len(name)
	if at < 0 || p.name[at:] != name || at > 0 && p.name[at-1] != '.' {
		return 0, false
	}
	return headerOctets + at, true
}
