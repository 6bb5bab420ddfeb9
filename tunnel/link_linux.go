package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
)

// link is an interface of the host in the network namespace of the process, configured through wgctrl. Addresses, MTU
// and routes go through rtnetlink.
type link struct {
	*wgctrl.Client
	netlink.Link
	local []netip.Prefix
}

// address gives the interface its MTU and its addresses. An address with its prefix is also the route to the peers in
// the prefix.
func (l *link) address(mtu int) error {
	if err := netlink.LinkSetMTU(l.Link, mtu); err != nil {
		return fmt.Errorf("set mtu %d: %w", mtu, err)
	}
	for _, p := range l.local {
		own := ipNet(p)
		if err := netlink.AddrReplace(l.Link, &netlink.Addr{IPNet: &own, Flags: unix.IFA_F_NODAD}); err != nil { // nobody else has it
			return fmt.Errorf("add address %v: %w", p, err)
		}
	}
	return nil
}

// setUp starts the interface.
func (l *link) setUp() error {
	if err := netlink.LinkSetUp(l.Link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// dial binds to this end's address of the family: if the interface is gone, so is the address, and the dial fails instead of leaving
// by another way.
func (l *link) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	own := l.local[0].Addr()
	if len(l.local) > 1 && to.Addr().Is6() {
		own = l.local[1].Addr()
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: own.AsSlice()}, Control: latePort}
	return d.DialContext(ctx, "tcp", to.String())
}

// latePort lets the kernel choose the port when it connects, not when it binds: then two connections to different
// destinations can share one, and their number is not limited to some 28000 for the whole gateway (ip(7)).
func latePort(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("IP_BIND_ADDRESS_NO_PORT: %w", err)
	}
	return nil
}

func (l *link) listen(at netip.AddrPort) (net.Listener, error) {
	return new(net.ListenConfig).Listen(context.Background(), "tcp", at.String())
}

func (l *link) route(peer netip.Addr, add bool) error {
	host := ipNet(netip.PrefixFrom(peer, peer.BitLen()))
	r := netlink.Route{LinkIndex: l.Attrs().Index, Dst: &host, Scope: netlink.SCOPE_LINK}
	if add {
		if err := netlink.RouteReplace(&r); err != nil {
			return fmt.Errorf("add route to %v: %w", peer, err)
		}
		return nil
	}
	if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("remove route to %v: %w", peer, err)
	}
	return nil
}

// unavailable marks err if it tells a missing privilege or a part the kernel does not have.
func unavailable(err error) error {
	for _, e := range []error{
		os.ErrPermission, os.ErrNotExist, unix.EOPNOTSUPP, unix.ENODEV, unix.ENXIO, unix.EAFNOSUPPORT,
		unix.EPROTONOSUPPORT, unix.EROFS,
	} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", errUnavailable, err)
		}
	}
	return err
}
