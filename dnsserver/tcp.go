package dnsserver

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// TCP messages are preceded by their length in two octets, RFC 1035 section 4.2.2.
const (
	lengthOctets = 2
	maxMessage   = 65535
	readBuffer   = 2048

	lastWrite = time.Second // for answers under way when the server stops
)

// connTable holds the open connections and their limits.
type connTable struct {
	max, maxPerClient int // set by init

	mu       sync.Mutex
	open     map[net.Conn]netip.Addr // guarded by mu
	clients  map[netip.Addr]int      // guarded by mu
	stopping bool                    // guarded by mu
}

func (t *connTable) init(limit, perClient int) {
	t.max, t.maxPerClient = limit, perClient
	t.open, t.clients = map[net.Conn]netip.Addr{}, map[netip.Addr]int{}
}

// add admits a connection, or says no. A client is an IPv4 address or an IPv6 /64.
func (t *connTable) add(conn net.Conn) bool {
	client := clientOf(conn)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopping || len(t.open) >= t.max || t.clients[client] >= t.maxPerClient {
		return false
	}
	t.open[conn] = client
	t.clients[client]++
	return true
}

func (t *connTable) remove(conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	client, ok := t.open[conn]
	if !ok {
		return
	}
	delete(t.open, conn)
	if t.clients[client]--; t.clients[client] == 0 {
		delete(t.clients, client)
	}
}

// interrupt makes the connections' reads end; answers under way still have
// lastWrite to leave.
func (t *connTable) interrupt() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopping = true
	for conn := range t.open {
		// These fail only when closed, which is as good.
		_ = conn.SetReadDeadline(time.Unix(1, 0))
		_ = conn.SetWriteDeadline(time.Now().Add(lastWrite))
	}
}

// allowRead gives a connection that long for its next query, unless the server stops.
func (t *connTable) allowRead(conn net.Conn, d time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopping {
		return net.ErrClosed
	}
	return conn.SetReadDeadline(time.Now().Add(d))
}

// allowWrite gives a connection that long to take its answers, less when the server stops.
func (t *connTable) allowWrite(conn net.Conn, d time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopping {
		d = min(d, lastWrite)
	}
	return conn.SetWriteDeadline(time.Now().Add(d))
}

// addressOf is the address of the client.
func addressOf(conn net.Conn) netip.AddrPort {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return plain(tcp.AddrPort())
}

func clientOf(conn net.Conn) netip.Addr {
	addr := addressOf(conn).Addr()
	if addr.Is6() {
		prefix, _ := addr.Prefix(64) // 64 bits always fit IPv6
		return prefix.Addr()
	}
	return addr
}

// accept accepts until the listener is closed, and waits for its connections.
func (s *Server) accept(ctx context.Context, l net.Listener, serve func(net.Conn)) {
	var serving sync.WaitGroup
	defer serving.Wait()
	wait := time.Duration(0)
	for ctx.Err() == nil {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			s.log.Warn("dns listener", "error", err)
			wait = pause(ctx, wait)
			continue
		}
		wait = 0
		if !s.conns.add(conn) {
			_ = conn.Close() // a stranger's connection; nobody is left to tell
			continue
		}
		serving.Go(func() {
			defer s.conns.remove(conn)
			defer conn.Close()
			serve(conn)
		})
	}
}

func (s *Server) serveTCP(conn net.Conn) { s.serveStream(conn, TCP) }

// serveTLS returns what serves the connections of DNS over TLS: the same, after
// a handshake in the time of a query.
func (s *Server) serveTLS() func(net.Conn) {
	config := s.config.TLS.Clone()
	config.NextProtos = []string{"dot"} // RFC 7858 section 3.1 asks for none, RFC 9103 section 7.1 for this
	return func(conn net.Conn) {
		if errors.Join(s.conns.allowRead(conn, s.config.IdleTimeout), s.conns.allowWrite(conn, s.config.IdleTimeout)) != nil {
			return
		}
		secure := tls.Server(conn, config)
		if secure.Handshake() != nil {
			return // a stranger's connection
		}
		defer secure.Close()
		s.serveStream(secure, TLS)
	}
}

// serveStream answers one connection's queries in their order. Queries that
// arrived together are answered in one write (RFC 7766 section 6.2.1.1 and 8).
func (s *Server) serveStream(conn net.Conn, transport Transport) {
	stream := &tcpStream{conn: conn, table: &s.conns, timeout: s.config.IdleTimeout, in: bufio.NewReaderSize(conn, readBuffer)}
	responder, client := responder{shared: &s.shared, counters: s.streams[transport]}, addressOf(conn)
	for {
		query, err := stream.next()
		if err != nil {
			break // the client is gone, idle or talks something else
		}
		begin := time.Now()
		if s.shared.transfers != nil && responder.isTransfer(query) {
			done, err := responder.transfer(stream, query, client, s.view.Load().zones, begin)
			if err != nil {
				return // a transfer without its end is void
			}
			if done {
				continue
			}
		}
		answer := responder.respond(stream.out, query, client, s.view.Load(), begin)
		if answer == nil {
			break // not a query: there is no answer that would keep the stream in step
		}
		responder.took(time.Since(begin), 1)
		stream.out = answer[:0]
		if stream.put(answer) != nil {
			return
		}
	}
	_ = stream.flush() // what was answered before the end; the client may be gone
}

// tcpStream frames messages over a connection.
type tcpStream struct {
	conn    net.Conn
	table   *connTable // keeps the deadlines
	timeout time.Duration
	in      *bufio.Reader

	message []byte // the query read last
	out     []byte // room for the answer
	pending []byte // framed answers that wait for their write
}

// next returns the next query, valid until the call after. Answers wait as long
// as queries are there to read; the deadline is for the whole query, so a slow
// sender gains nothing by sending octets one by one.
func (t *tcpStream) next() ([]byte, error) {
	if !t.buffered() {
		if err := t.flush(); err != nil {
			return nil, err
		}
		if err := t.table.allowRead(t.conn, t.timeout); err != nil {
			return nil, err
		}
	}
	var length [lengthOctets]byte
	if _, err := io.ReadFull(t.in, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n < headerOctets {
		return nil, io.ErrUnexpectedEOF
	}
	if cap(t.message) < n {
		t.message = make([]byte, n)
	}
	t.message = t.message[:n]
	_, err := io.ReadFull(t.in, t.message)
	return t.message, err
}

// buffered tells whether a whole query can be read without waiting.
func (t *tcpStream) buffered() bool {
	have := t.in.Buffered()
	if have < lengthOctets {
		return false
	}
	length, err := t.in.Peek(lengthOctets)
	return err == nil && have >= lengthOctets+int(binary.BigEndian.Uint16(length))
}

// put frames an answer and keeps it until the next flush, which comes at once
// when much is waiting.
func (t *tcpStream) put(answer []byte) error {
	t.pending = binary.BigEndian.AppendUint16(t.pending, uint16(len(answer)))
	t.pending = append(t.pending, answer...)
	if len(t.pending) < readBuffer {
		return nil
	}
	return t.flush()
}

// flush writes what is waiting.
func (t *tcpStream) flush() error {
	if len(t.pending) == 0 {
		return nil
	}
	if err := t.table.allowWrite(t.conn, t.timeout); err != nil {
		return err
	}
	_, err := t.conn.Write(t.pending)
	t.pending = t.pending[:0]
	return err
}
