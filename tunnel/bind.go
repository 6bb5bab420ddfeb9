package tunnel

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.zx2c4.com/wireguard/conn"
)

// bindBatch is how many datagrams one system call moves. The device reserves 64 KiB for each.
const bindBatch = 32

// newBind returns the UDP sockets of a userspace device. The bind that comes with wireguard-go listens on every
// address of both families, which is what an unspecified address asks for; for one address only there is addrBind.
func newBind(addr netip.Addr) conn.Bind {
	if !addr.IsValid() || addr.IsUnspecified() {
		return conn.NewStdNetBind()
	}
	return &addrBind{addr: addr.Unmap(), messages: sync.Pool{New: newMessages}}
}

// addrBind is a conn.Bind with one socket on one local address, so that the device is reachable there and nowhere
// else, and sends from there. It reaches peers of that address family only.
type addrBind struct {
	// set by newBind
	addr     netip.Addr
	messages sync.Pool // of *[]ipv4.Message, bindBatch long, one buffer each

	// guarded by mu
	mu     sync.Mutex
	socket *net.UDPConn
	batch  batchConn
}

// batchConn is what ipv4.PacketConn and ipv6.PacketConn share: recvmmsg and sendmmsg on Linux, one datagram for one
// call elsewhere. Their Message types are the same.
type batchConn interface {
	ReadBatch(ms []ipv4.Message, flags int) (int, error)
	WriteBatch(ms []ipv4.Message, flags int) (int, error)
}

func newMessages() any {
	ms := make([]ipv4.Message, bindBatch)
	for i := range ms {
		ms[i].Buffers = make([][]byte, 1)
	}
	return &ms
}

// Open implements conn.Bind.
func (b *addrBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.socket != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	pc, err := new(net.ListenConfig).ListenPacket(context.Background(), "udp", netip.AddrPortFrom(b.addr, port).String())
	if err != nil {
		return nil, 0, err
	}
	socket := pc.(*net.UDPConn)
	// Bursts of 64 KiB segments overrun the default buffers. The kernel caps the size; less is only slower.
	_ = socket.SetReadBuffer(4 << 20)
	_ = socket.SetWriteBuffer(4 << 20)
	var batch batchConn = ipv4.NewPacketConn(socket)
	if b.addr.Is6() {
		batch = ipv6.NewPacketConn(socket)
	}
	b.socket, b.batch = socket, batch
	actual := socket.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	receive := func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		return b.receive(batch, packets, sizes, eps)
	}
	return []conn.ReceiveFunc{receive}, actual, nil
}

func (b *addrBind) receive(batch batchConn, packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	pooled := b.messages.Get().(*[]ipv4.Message)
	defer b.messages.Put(pooled)
	ms := (*pooled)[:min(len(packets), bindBatch)]
	for i := range ms {
		ms[i].Buffers[0], ms[i].N, ms[i].Addr = packets[i], 0, nil
	}
	n, err := batch.ReadBatch(ms, 0)
	if err != nil {
		return 0, err
	}
	for i := range ms[:n] {
		sizes[i] = 0 // a datagram to skip
		if from, ok := ms[i].Addr.(*net.UDPAddr); ok {
			ap := from.AddrPort()
			eps[i] = &endpoint{netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}
			sizes[i] = ms[i].N
		}
		ms[i].Buffers[0], ms[i].Addr = nil, nil
	}
	return n, nil
}

// Send implements conn.Bind.
func (b *addrBind) Send(packets [][]byte, ep conn.Endpoint) error {
	to, ok := ep.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	b.mu.Lock()
	batch := b.batch
	b.mu.Unlock()
	if batch == nil {
		return net.ErrClosed
	}
	if to.Addr().Is6() != b.addr.Is6() {
		return syscall.EAFNOSUPPORT
	}
	pooled := b.messages.Get().(*[]ipv4.Message)
	defer b.messages.Put(pooled)
	addr := net.UDPAddrFromAddrPort(to.AddrPort)
	for chunk := range slices.Chunk(packets, bindBatch) {
		ms := (*pooled)[:len(chunk)]
		for i := range ms {
			ms[i].Buffers[0], ms[i].Addr = chunk[i], addr
		}
		err := writeAll(batch, ms)
		for i := range ms {
			ms[i].Buffers[0], ms[i].Addr = nil, nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeAll(batch batchConn, ms []ipv4.Message) error {
	for len(ms) > 0 {
		n, err := batch.WriteBatch(ms, 0)
		if err != nil {
			return err
		}
		ms = ms[n:]
	}
	return nil
}

// Close implements conn.Bind.
func (b *addrBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.socket == nil {
		return nil
	}
	err := b.socket.Close()
	b.socket, b.batch = nil, nil
	return err
}

// SetMark implements conn.Bind. This package sets no mark, and a mark nobody honours must not look honoured.
func (b *addrBind) SetMark(mark uint32) error {
	if mark == 0 {
		return nil
	}
	return syscall.ENOTSUP
}

// ParseEndpoint implements conn.Bind.
func (b *addrBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &endpoint{netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}, nil
}

// BatchSize implements conn.Bind.
func (b *addrBind) BatchSize() int { return bindBatch }

// endpoint is the address of a peer. The source is always the socket's, so there is none to keep.
type endpoint struct{ netip.AddrPort }

func (e *endpoint) ClearSrc()           {}
func (e *endpoint) SrcToString() string { return "" }
func (e *endpoint) SrcIP() netip.Addr   { return netip.Addr{} }
func (e *endpoint) DstToString() string { return e.String() }
func (e *endpoint) DstIP() netip.Addr   { return e.Addr() }

// DstToBytes implements conn.Endpoint; the cookie of a peer under load is computed over it.
func (e *endpoint) DstToBytes() []byte {
	b, _ := e.MarshalBinary() // never fails
	return b
}
