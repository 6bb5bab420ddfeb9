package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// maxPacket is the largest datagram there is, so a query is never cut.
const maxPacket = 65535

// udpSocket is a bound socket. A wildcard one is told the address that each
// packet was sent to, and answers from it: else the kernel picks another and
// the client ignores the answer.
type udpSocket struct {
	conn     *net.UDPConn
	wildcard bool
}

// listenUDP binds a socket.
func listenUDP(address string) (*udpSocket, error) {
	lc := net.ListenConfig{Control: socketOptions}
	pc, err := lc.ListenPacket(context.Background(), "udp", address)
	if err != nil {
		return nil, err
	}
	conn := pc.(*net.UDPConn)
	socket := &udpSocket{conn: conn, wildcard: conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().IsUnspecified()}
	if !socket.wildcard {
		return socket, nil
	}
	// A dual-stack socket gives either kind; a plain one fails at the other.
	err4 := ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst, true)
	err6 := ipv6.NewPacketConn(conn).SetControlMessage(ipv6.FlagDst, true)
	if err4 != nil && err6 != nil {
		return nil, errors.Join(fmt.Errorf("listen udp %s: destination addresses: %w", address, err4), conn.Close())
	}
	return socket, nil
}

// serveUDP is one worker: it reads a packet, answers it, and reads the next.
// Several workers share a socket; together they are all the concurrency there
// is, and the kernel's buffer is the queue.
func (s *Server) serveUDP(ctx context.Context, socket *udpSocket) {
	packet, out := make([]byte, maxPacket), make([]byte, 2*MaxUDPPayload)
	var oob []byte
	if socket.wildcard {
		oob = make([]byte, len(ipv4.NewControlMessage(ipv4.FlagDst))+len(ipv6.NewControlMessage(ipv6.FlagDst)))
	}
	wait := time.Duration(0)
	for ctx.Err() == nil {
		n, oobn, _, from, err := socket.conn.ReadMsgUDPAddrPort(packet, oob)
		switch {
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
			return
		case err != nil:
			s.log.Warn("dns socket", "error", err)
			wait = pause(ctx, wait)
			continue
		}
		wait = 0
		answer := s.zones.Load().respond(out, packet[:n], UDP, MaxUDPPayload)
		if answer == nil || from.Port() == 0 {
			continue
		}
		// An answer that can't be sent is like one that got lost: the client asks again.
		_, _, _ = socket.conn.WriteMsgUDPAddrPort(answer, source(oob[:oobn]), from)
	}
}

// source makes the control message that sends an answer from the address that
// the query was sent to; nil where it is unknown.
func source(oob []byte) []byte {
	if len(oob) == 0 {
		return nil
	}
	dst := destination(oob)
	switch {
	case !dst.IsValid():
		return nil
	case dst.Is4():
		return (&ipv4.ControlMessage{Src: dst.AsSlice()}).Marshal()
	default:
		return (&ipv6.ControlMessage{Src: dst.AsSlice()}).Marshal()
	}
}

func destination(oob []byte) netip.Addr {
	var cm6 ipv6.ControlMessage
	if cm6.Parse(oob) == nil && cm6.Dst != nil {
		addr, _ := netip.AddrFromSlice(cm6.Dst)
		return addr.Unmap()
	}
	var cm4 ipv4.ControlMessage
	if cm4.Parse(oob) == nil && cm4.Dst != nil {
		addr, _ := netip.AddrFromSlice(cm4.Dst)
		return addr.Unmap()
	}
	return netip.Addr{}
}
