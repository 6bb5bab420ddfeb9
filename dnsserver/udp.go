package dnsserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"
)

// maxQuery is the largest datagram that is read whole; a longer one is cut and
// so malformed. Queries with every option there is are far shorter.
const maxQuery = 4096

// listenUDP binds n sockets to one address. The kernel spreads the clients
// among them, so that each worker has its own and shares nothing.
//
// The first is bound as if it were the only one, for then a port that somebody
// else has is refused; only after that it lets the others in.
func listenUDP(address string, n int) (conns []*net.UDPConn, err error) {
	defer func() {
		if err != nil {
			for _, conn := range conns {
				err = errors.Join(err, conn.Close())
			}
			conns = nil
		}
	}()
	for i := range n {
		lc := net.ListenConfig{Control: socketOptions(i > 0)}
		pc, err := lc.ListenPacket(context.Background(), "udp", address)
		if err != nil {
			return conns, err
		}
		conn := pc.(*net.UDPConn)
		conns = append(conns, conn)
		if i == 0 && n > 1 {
			if err := shareAddress(conn); err != nil {
				return conns, err
			}
			address = conn.LocalAddr().String()
		}
	}
	return conns, nil
}

// isWildcard tells whether a socket takes packets for every address of the
// machine. It is told which one each packet was sent to, and answers from it:
// else the kernel picks another and the client ignores the answer.
func isWildcard(conn *net.UDPConn) bool {
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().IsUnspecified()
}

// packetWorker answers the packets of one socket.
type packetWorker struct {
	server    *Server
	conn      *net.UDPConn
	responder responder
}

// serveUDP answers the packets of one socket until it is closed or interrupted.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn, counters *counters) {
	w := &packetWorker{server: s, conn: conn, responder: responder{shared: &s.shared, counters: counters}}
	wait := time.Duration(0)
	for ctx.Err() == nil {
		err := w.run(func() { wait = 0 })
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		s.log.Warn("dns socket", "error", err)
		wait = pause(ctx, wait)
	}
}

// answer answers one packet. An answer is in buf, which has room for any.
func (w *packetWorker) answer(buf, packet []byte, from netip.AddrPort, at *view, now time.Time) []byte {
	if from.Port() == 0 { // nobody can be there
		return nil
	}
	return w.responder.respond(buf, packet, from, at, now)
}
