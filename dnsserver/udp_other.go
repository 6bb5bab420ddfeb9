//go:build !linux

package dnsserver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// socketOptions does nothing where path MTU discovery has no such switch.
func socketOptions(bool) func(string, string, syscall.RawConn) error { return nil }

// shareAddress is impossible here: an address has one socket.
func shareAddress(*net.UDPConn) error { return errors.ErrUnsupported }

// maxSockets is how many sockets an address can have.
const maxSockets = 1

// run reads a packet, answers it, and reads the next, until the socket fails.
// It calls worked when one was received.
func (w *packetWorker) run(worked func()) error {
	var oob []byte
	if isWildcard(w.conn) {
		// A dual-stack socket gives either kind; a plain one fails at the other.
		err4 := ipv4.NewPacketConn(w.conn).SetControlMessage(ipv4.FlagDst, true)
		err6 := ipv6.NewPacketConn(w.conn).SetControlMessage(ipv6.FlagDst, true)
		if err4 != nil && err6 != nil {
			return fmt.Errorf("destination addresses: %w", err4)
		}
		oob = make([]byte, len(ipv4.NewControlMessage(ipv4.FlagDst))+len(ipv6.NewControlMessage(ipv6.FlagDst)))
	}
	packet, buf := make([]byte, maxQuery), make([]byte, MaxUDPPayload)
	for {
		n, oobn, _, from, err := w.conn.ReadMsgUDPAddrPort(packet, oob)
		if err != nil {
			return err
		}
		worked()
		unmapped := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		begin := time.Now()
		if answer := w.answer(buf, packet[:n], unmapped, w.server.view.Load(), begin); answer != nil {
			// An answer that can't be sent is like one that got lost: the client asks again.
			_, _, _ = w.conn.WriteMsgUDPAddrPort(answer, source(oob[:oobn]), from)
			w.responder.took(time.Since(begin), 1)
		}
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
