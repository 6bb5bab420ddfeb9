package dnsserver

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// Limits of transfers.
const (
	defaultTransfers = 2
	transferMessage  = 16 << 10 // octets of records from which a message is sent
	maxTransfer      = 10 * time.Minute
)

// TransferConfig says who may have whole zones, and who is told of changes.
type TransferConfig struct {
	// Key is what requests are signed with. Without a name there are no transfers.
	Key TransferKey
	// Secondaries are "address:port" of servers that get a NOTIFY (RFC 1996),
	// signed with the key, when the serial of a zone changes.
	Secondaries []string
	// Max bounds transfers at one time; one more is refused. Zero: 2.
	Max int
}

// transfers is what the goroutines that transfer have in common.
type transfers struct {
	*tsig
	running chan struct{} // holds one for each transfer
}

func newTransfers(c TransferConfig) (*transfers, error) {
	if c.Key.Name == "" {
		if len(c.Secondaries) > 0 {
			return nil, errors.New("dns: Transfer: Secondaries need a Key")
		}
		return nil, nil
	}
	t, err := newTSIG(c.Key)
	if err != nil {
		return nil, err
	}
	if c.Max == 0 {
		c.Max = defaultTransfers
	}
	return &transfers{tsig: t, running: make(chan struct{}, c.Max)}, nil
}

// authenticate makes the response to a query with TSIG one with TSIG, or one
// that tells what is wrong with the query's (RFC 8945 section 5.2).
func (r *responder) authenticate(out, packet []byte, now time.Time) []byte {
	s, ok := r.transfers.check(packet, now)
	switch {
	case !ok:
		return out
	case s.code != 0:
		out = out[:r.query.question]
		clear(out[6:headerOctets])
		out[2] &^= flagAA
		out[3] = dns.RcodeNotAuth
	case len(out)+s.signedOctets() > r.limit():
		out = out[:r.query.question]
		clear(out[6:headerOctets])
		out[2] |= flagTC
	}
	return s.sign(out, now)
}

// transfer answers a query that was read with a whole zone (RFC 5936, RFC
// 1995). It returns false if there is none to have: then it is answered as any other.
func (r *responder) transfer(stream *tcpStream, packet []byte, client netip.AddrPort, zones *Zones, now time.Time) (bool, error) {
	s, ok := r.transfers.check(packet, now)
	if !ok || s.code != 0 || r.query.qclass() != dns.ClassINET || r.query.edns.version != 0 || zones == nil {
		return false, nil
	}
	z, rel := zones.find(r.query.name())
	if z == nil || len(rel) > 0 || !s.fresh(now) {
		return false, nil
	}
	select {
	case r.transfers.running <- struct{}{}:
		defer func() { <-r.transfers.running }()
	default:
		return false, nil
	}
	w := transferWriter{responder: r, stream: stream, signed: s, zone: z, until: now.Add(maxTransfer)}
	err := w.write(packet)
	if err == nil {
		r.answers[r.typePlace()][rcodePlace(dns.RcodeSuccess)].Add(1)
	}
	return true, err
}

// isTransfer tells whether a packet is a query for a whole zone; it reads it.
func (r *responder) isTransfer(packet []byte) bool {
	return r.query.read(packet) == readable && r.query.tsig &&
		(r.query.qtype() == dns.TypeAXFR || r.query.qtype() == dns.TypeIXFR)
}

var errTransfer = errors.New("dns: transfer ended early")

// transferWriter makes the messages of one transfer, one at a time.
type transferWriter struct {
	*responder
	stream *tcpStream
	signed signed
	zone   *Zone
	until  time.Time
	count  int // records in the message so far
}

func (w *transferWriter) write(packet []byte) error {
	soa := w.zone.nodes[""].set(dns.TypeSOA)
	w.begin()
	if err := w.add(soa); err != nil {
		return err
	}
	if w.isCurrent(packet) {
		return w.send()
	}
	for set := range w.zone.sets() {
		if len(set) == 0 {
			return errTransfer // without its end the secondary takes nothing of it
		}
		if set[0].Header().Rrtype == dns.TypeSOA {
			set = set[1:]
		}
		if err := w.add(set); err != nil {
			return err
		}
	}
	if err := w.add(soa); err != nil {
		return err
	}
	return w.send()
}

// isCurrent tells whether a query for changes comes from one who has all of
// them (RFC 1995 section 2).
func (w *transferWriter) isCurrent(packet []byte) bool {
	var m dns.Msg
	if w.query.qtype() != dns.TypeIXFR || m.Unpack(packet) != nil || len(m.Ns) != 1 {
		return false
	}
	have, ok := m.Ns[0].(*dns.SOA)
	return ok && int32(have.Serial-w.zone.serial()) >= 0 // RFC 1982 section 3.2
}

func (w *transferWriter) begin() {
	p := &w.packer
	p.out = append(p.out[:0], make([]byte, headerOctets)...)
	p.header(&dns.Msg{MsgHdr: dns.MsgHdr{Authoritative: true}}, true)
	p.out = append(p.out, w.query.asked()...)
	p.name = w.zone.origin
	w.count = 0
}

func (w *transferWriter) add(rrs []dns.RR) error {
	for _, rr := range rrs {
		if err := w.packer.record(rr); err != nil {
			return err
		}
		if w.count++; len(w.packer.out) >= transferMessage {
			if err := w.send(); err != nil {
				return err
			}
			w.begin()
		}
	}
	return nil
}

// send sends the message; the client has as long for each as for an answer.
func (w *transferWriter) send() error {
	now := time.Now()
	if now.After(w.until) {
		return errTransfer
	}
	out := w.packer.out
	copy(out, w.query.packet[:2])
	binary.BigEndian.PutUint16(out[6:], uint16(w.count))
	if w.query.edns.present {
		binary.BigEndian.PutUint16(out[10:], 1)
		out = w.appendOPT(out, &answer{})
	}
	out = w.signed.sign(out, now)
	w.packer.out = out
	if err := w.stream.put(out); err != nil {
		return err
	}
	return w.stream.flush()
}

// serial is the SOA's.
func (z *Zone) serial() uint32 { return z.nodes[""].set(dns.TypeSOA)[0].(*dns.SOA).Serial }
