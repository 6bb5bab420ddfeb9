package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	nic = 1
	// linkQueue is how many packets wait between the stack and WireGuard.
	linkQueue = 1024
	// netBatch is how many packets WireGuard takes in one read.
	netBatch = bindBatch
)

// netTUN is a TUN whose host side is a TCP/IP stack in this process, without UDP sockets and without forwarding.
//
// It is not the one of wireguard-go's tun/netstack, because that sends on a channel which its Close closes: a timer of
// the stack that fires in between ends the process, and a gateway is closed while connections are open.
type netTUN struct {
	// set by newNetTUN
	stack   *stack.Stack
	link    *channel.Endpoint
	local   []netip.Prefix
	mtu     int
	packets chan *stack.PacketBuffer
	events  chan tun.Event
	done    chan struct{} // closed by Close

	closing sync.Once
}

var _ tun.Device = (*netTUN)(nil)

func newNetTUN(local []netip.Prefix, mtu int) (*netTUN, error) {
	t := &netTUN{
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
			HandleLocal:        true,
		}),
		link:    channel.New(linkQueue, uint32(mtu), ""),
		local:   local,
		mtu:     mtu,
		packets: make(chan *stack.PacketBuffer, linkQueue),
		events:  make(chan tun.Event),
		done:    make(chan struct{}),
	}
	if err := t.configure(); err != nil {
		t.stack.Close()
		return nil, fmt.Errorf("netstack: %s", err)
	}
	t.link.AddNotify(t)
	return t, nil
}

func (t *netTUN) configure() tcpip.Error {
	sack := tcpip.TCPSACKEnabled(true) // off by default
	if err := t.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack); err != nil {
		return err
	}
	if err := t.stack.CreateNIC(nic, t.link); err != nil {
		return err
	}
	for _, own := range t.local {
		full, proto := t.fullAddress(netip.AddrPortFrom(own.Addr(), 0))
		addr := tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: full.Addr.WithPrefix()}
		if err := t.stack.AddProtocolAddress(nic, addr, stack.AddressProperties{}); err != nil {
			return err
		}
		destination := header.IPv4EmptySubnet
		if own.Addr().Is6() {
			destination = header.IPv6EmptySubnet
		}
		t.stack.AddRoute(tcpip.Route{Destination: destination, NIC: nic})
	}
	return nil
}

func (t *netTUN) fullAddress(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	proto := ipv4.ProtocolNumber
	if a.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}, proto
}

// WriteNotify implements channel.Notification: the stack has put a packet on the link. Waiting here is what slows TCP
// down to the speed of WireGuard.
func (t *netTUN) WriteNotify() {
	p := t.link.Read()
	if p == nil {
		return
	}
	select {
	case t.packets <- p:
	case <-t.done:
		p.DecRef()
	}
}

// Read implements tun.Device: it waits for one packet and takes what else is there.
func (t *netTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case p := <-t.packets:
		sizes[0] = copyPacket(bufs[0][offset:], p)
	case <-t.done:
		return 0, os.ErrClosed
	}
	for n := 1; n < len(bufs); n++ {
		select {
		case p := <-t.packets:
			sizes[n] = copyPacket(bufs[n][offset:], p)
		default:
			return n, nil
		}
	}
	return len(bufs), nil
}

// copyPacket gives 0, a packet to skip, for one that does not fit; the link's MTU keeps the stack from making any.
func copyPacket(to []byte, p *stack.PacketBuffer) int {
	defer p.DecRef()
	if p.Size() > len(to) {
		return 0
	}
	n := 0
	for _, b := range p.AsSlices() {
		n += copy(to[n:], b)
	}
	return n
}

// Write implements tun.Device. A packet the stack does not like is its to drop; an error here would only be logged.
func (t *netTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		packet := b[offset:]
		if len(packet) == 0 {
			continue
		}
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
		switch packet[0] >> 4 {
		case 4:
			t.link.InjectInbound(header.IPv4ProtocolNumber, p)
		case 6:
			t.link.InjectInbound(header.IPv6ProtocolNumber, p)
		}
		p.DecRef()
	}
	return len(bufs), nil
}

// Close implements tun.Device. Open connections end with a reset; listeners stop.
func (t *netTUN) Close() error {
	t.closing.Do(func() {
		close(t.done) // first: lets every WriteNotify go
		t.stack.Close()
		t.stack.RemoveNIC(nic)
		// The endpoints need no waiting for, they run on the protocol's goroutines.
		t.stack.TransportProtocolInstance(tcp.ProtocolNumber).Wait()
		t.link.Close()
		for len(t.packets) > 0 {
			select {
			case p := <-t.packets:
				p.DecRef()
			default:
			}
		}
		close(t.events)
	})
	return nil
}

// The rest of tun.Device.

func (t *netTUN) File() *os.File           { return nil }
func (t *netTUN) MTU() (int, error)        { return t.mtu, nil }
func (t *netTUN) Name() (string, error)    { return "netstack", nil }
func (t *netTUN) Events() <-chan tun.Event { return t.events }
func (t *netTUN) BatchSize() int           { return netBatch }

// dial connects to a. The errors that callers tell apart are those of package syscall, as with a kernel socket.
func (t *netTUN) dial(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
	to, proto := t.fullAddress(a)
	// The source is the only address of the family. Binding it first would make its ports few: one for each connection,
	// instead of one for each connection to the same destination.
	c, err := gonet.DialContextTCP(ctx, t.stack, to, proto)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(a), Err: stackError(ctx, err)}
	}
	return c, nil
}

// stackErrors are those that gonet reduces to their text.
var stackErrors = []struct {
	is tcpip.Error
	as error
}{
	{&tcpip.ErrConnectionRefused{}, syscall.ECONNREFUSED},
	{&tcpip.ErrConnectionReset{}, syscall.ECONNRESET},
	{&tcpip.ErrConnectionAborted{}, syscall.ECONNABORTED},
	{&tcpip.ErrTimeout{}, syscall.ETIMEDOUT},
	{&tcpip.ErrHostUnreachable{}, syscall.EHOSTUNREACH},
	{&tcpip.ErrNetworkUnreachable{}, syscall.ENETUNREACH},
	{&tcpip.ErrPortInUse{}, syscall.EADDRINUSE},
	{&tcpip.ErrBadLocalAddress{}, syscall.EADDRNOTAVAIL},
}

func stackError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	for _, e := range stackErrors {
		if err.Error() == e.is.String() {
			return e.as
		}
	}
	return err
}

// contextError is the end of ctx as package net reports it: one that is a net.Error and tells a timeout.
func contextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return ctx.Err()
}

func (t *netTUN) listen(a netip.AddrPort) (net.Listener, error) {
	full, proto := t.fullAddress(a)
	l, err := gonet.ListenTCP(t.stack, full, proto)
	if err != nil {
		return nil, &net.OpError{
			Op: "listen", Net: "tcp", Addr: net.TCPAddrFromAddrPort(a), Err: stackError(context.Background(), err),
		}
	}
	return &netListener{TCPListener: l, done: make(chan struct{})}, nil
}

// netListener adds what package net promises: Accept returns net.ErrClosed once Close was called.
type netListener struct {
	*gonet.TCPListener
	closing sync.Once
	done    chan struct{}
}

// Accept implements net.Listener.
func (l *netListener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err == nil {
		return c, nil
	}
	select {
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: net.ErrClosed}
	default:
		return nil, err
	}
}

// Close implements net.Listener.
func (l *netListener) Close() error {
	l.closing.Do(func() {
		close(l.done)
		l.Shutdown()
		_ = l.TCPListener.Close() // always nil
	})
	return nil
}

// netDevice is WireGuard on a netTUN: no interface of the host is involved.
type netDevice struct {
	*userspace
	inProcess
	tun *netTUN
}

// openNetstack needs no privilege.
func openNetstack(cfg *Config) (platform, error) {
	t, err := newNetTUN(cfg.addresses(), cfg.MTU)
	if err != nil {
		return nil, err
	}
	u := newUserspace(&filtered{Device: t, local: cfg.addresses(), open: cfg.Inbound, ports: cfg.InboundPorts}, cfg)
	return &netDevice{userspace: u, inProcess: inProcess{u.device}, tun: t}, nil
}

func (d *netDevice) dial(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
	return d.tun.dial(ctx, a)
}
func (d *netDevice) listen(a netip.AddrPort) (net.Listener, error) { return d.tun.listen(a) }
func (d *netDevice) route(netip.Addr, bool) error                  { return nil }
