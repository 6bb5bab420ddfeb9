package dnsserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socketOptions makes answers independent of path MTU discovery: a forged
// "fragmentation needed" can't make the kernel fragment them, and they carry
// no DF (RFC 9715 section 3.1). On an IPv6 socket both options are set, for
// it may carry IPv4. A shared socket is one of several at its address.
func socketOptions(shared bool) func(network, address string, raw syscall.RawConn) error {
	return func(network, _ string, raw syscall.RawConn) error {
		return control(raw, func(fd int) error {
			if shared {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
					return err
				}
			}
			err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT)
			if network != "udp4" {
				err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_OMIT)
			}
			if errors.Is(err, unix.ENOPROTOOPT) { // a sandbox's own network stack, without path MTU discovery
				return nil
			}
			return err
		})
	}
}

// shareAddress lets further sockets bind the same address.
func shareAddress(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return control(raw, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
}

func control(raw syscall.RawConn, do func(fd int) error) (err error) {
	if controlErr := raw.Control(func(fd uintptr) { err = do(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}

// maxSockets is how many sockets an address can have.
const maxSockets = 1 << 10

// Sizes of a batch. Room for packets is not a power of two, so that the
// batch's packets do not all lie in the same set of the processor's cache.
const (
	batchSize   = 64
	queryRoom   = maxQuery + 64
	answerRoom  = MaxUDPPayload + 48
	controlRoom = 64 // octets; a pktinfo takes 32 or 40
)

// mmsghdr is struct mmsghdr of recvmmsg(2): a message and how long it got.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// batch is what one system call receives or sends. The golang.org/x/net
// batches allocate an address for every packet and parse its control message;
// here both go back to the kernel as they came.
type batch struct {
	raw  syscall.RawConn
	in   [batchSize]mmsghdr
	out  [batchSize]mmsghdr
	inv  [batchSize]unix.Iovec
	outv [batchSize]unix.Iovec
	from [batchSize]unix.RawSockaddrInet6 // or the shorter RawSockaddrInet4
	info [batchSize][controlRoom]byte
	room []byte // batchSize times queryRoom and answerRoom

	wildcard       bool
	received, sent int // of the call under way
	sending        int
	err            error
	receive, send  func(fd uintptr) bool // made once: a method value would be made anew for every call
}

func newBatch(conn *net.UDPConn) (*batch, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &batch{raw: raw, room: make([]byte, batchSize*(queryRoom+answerRoom)), wildcard: isWildcard(conn)}
	if b.wildcard {
		if err := control(raw, receiveDestination); err != nil {
			return nil, fmt.Errorf("destination addresses: %w", err)
		}
	}
	b.receive, b.send = b.recvmmsg, b.sendmmsg
	for i := range batchSize {
		b.inv[i].Base = &b.query(i)[0]
		b.inv[i].SetLen(maxQuery)
		b.in[i].hdr.Iov, b.in[i].hdr.Iovlen = &b.inv[i], 1
		b.in[i].hdr.Name = (*byte)(unsafe.Pointer(&b.from[i]))
		b.in[i].hdr.Control = &b.info[i][0]
		b.out[i].hdr.Iov, b.out[i].hdr.Iovlen = &b.outv[i], 1
		b.reset(i)
	}
	return b, nil
}

// receiveDestination asks for the destination address of each packet. An IPv6
// socket tells that of IPv4 packets mapped, and takes it so for answers.
func receiveDestination(fd int) error {
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain == unix.AF_INET6 {
		return errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
}

func (b *batch) query(i int) []byte { return b.room[i*queryRoom:][:queryRoom:queryRoom] }

func (b *batch) answer(i int) []byte {
	return b.room[batchSize*queryRoom+i*answerRoom:][:0:answerRoom]
}

// reset makes place i ready to receive: the kernel writes lengths there.
func (b *batch) reset(i int) {
	b.in[i].hdr.Namelen = unix.SizeofSockaddrInet6
	if b.wildcard {
		b.in[i].hdr.SetControllen(controlRoom)
	} else {
		b.in[i].hdr.Control = nil
	}
}

// recvmmsg receives what is there, and tells whether something was.
func (b *batch) recvmmsg(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), batchSize, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			b.received, b.err = int(n), nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default:
			b.received, b.err = 0, errno
		}
		return true
	}
}

// sendmmsg sends what is ready, and tells whether the socket took all. An
// answer that can't be sent is like one that got lost: the client asks again.
func (b *batch) sendmmsg(fd uintptr) bool {
	for b.sent < b.sending {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.out[b.sent])), uintptr(b.sending-b.sent), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			b.sent += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			b.sent++
		}
	}
	return true
}

// source returns who sent packet i.
func (b *batch) source(i int) netip.AddrPort {
	from := &b.from[i]
	port := (*[2]byte)(unsafe.Pointer(&from.Port)) // network byte order
	number := binary.BigEndian.Uint16(port[:])
	if from.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(from)).Addr), number)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(from.Addr).Unmap(), number)
}

// reply makes an answer to packet i the next to be sent.
func (b *batch) reply(i int, answer []byte) {
	in, out := &b.in[i].hdr, &b.out[b.sending].hdr
	b.outv[b.sending].Base = &answer[0]
	b.outv[b.sending].SetLen(len(answer))
	out.Name, out.Namelen = in.Name, in.Namelen
	out.Control, out.Controllen = nil, 0
	if b.wildcard && in.Controllen > 0 && fromDestination(b.info[i][:in.Controllen]) {
		out.Control, out.Controllen = in.Control, in.Controllen
	}
	b.sending++
}

// fromDestination makes a received pktinfo one to send by: without the
// interface, except where only that says which address is meant.
func fromDestination(info []byte) bool {
	if len(info) < unix.SizeofCmsghdr {
		return false
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&info[0]))
	data := info[unix.CmsgLen(0):]
	switch {
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		(*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0])).Ifindex = 0
		return true
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		pktinfo := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
		if !netip.AddrFrom16(pktinfo.Addr).IsLinkLocalUnicast() {
			pktinfo.Ifindex = 0
		}
		return true
	}
	return false
}

// run answers batch after batch until the socket fails. It calls worked when
// one was received.
func (w *packetWorker) run(worked func()) error {
	b, err := newBatch(w.conn)
	if err != nil {
		return err
	}
	for {
		if err := b.raw.Read(b.receive); err != nil {
			return err
		}
		if b.err != nil {
			return b.err
		}
		worked()
		begin := w.answerBatch(b)
		if err := b.raw.Write(b.send); err != nil {
			return err
		}
		if b.sending > 0 {
			w.responder.took(time.Since(begin), b.sending)
		}
		for i := range b.received {
			b.reset(i)
		}
	}
}

// answerBatch answers what was received, and returns when it began. Nothing is
// allocated for answers that the cache has.
func (w *packetWorker) answerBatch(b *batch) time.Time {
	at, now := w.server.view.Load(), time.Now()
	b.sending, b.sent = 0, 0
	for i := range b.received {
		packet := b.query(i)[:b.in[i].n]
		if answer := w.answer(b.answer(i), packet, b.source(i), at, now); answer != nil {
			b.reply(i, answer)
		}
	}
	return now
}
