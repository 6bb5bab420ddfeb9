package enroll

import (
	"net"
	"net/netip"
	"sync"
)

// perSource is a listener that hangs up on a network that has too many connections open, so that no single host can have
// all of them.
type perSource struct {
	net.Listener
	most int

	mu   sync.Mutex
	open map[netip.Prefix]int // guarded by mu
}

func newPerSource(l net.Listener, most int) *perSource {
	return &perSource{Listener: l, most: most, open: make(map[netip.Prefix]int)}
}

// Accept returns the next connection of a network that may have one more.
func (l *perSource) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := network(conn.RemoteAddr())
		if l.enter(source) {
			return &counted{Conn: conn, leave: sync.OnceFunc(func() { l.leave(source) })}, nil
		}
		_ = conn.Close()
	}
}

// network is what one host usually has: an IPv4 address, or an IPv6 /64.
func network(addr net.Addr) netip.Prefix {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	return networkOf(tcp.AddrPort().Addr())
}

func networkOf(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	prefix, _ := ip.Prefix(bits) // the bits fit
	return prefix
}

func (l *perSource) enter(source netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[source] >= l.most {
		return false
	}
	l.open[source]++
	return true
}

func (l *perSource) leave(source netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[source]--; l.open[source] == 0 {
		delete(l.open, source)
	}
}

// counted is a connection that counts until it is closed.
type counted struct {
	net.Conn
	leave func()
}

func (c *counted) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
