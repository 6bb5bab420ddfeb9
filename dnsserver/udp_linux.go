package dnsserver

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketOptions makes answers independent of path MTU discovery: a forged
// "fragmentation needed" can't make the kernel fragment them, and they carry
// no DF (RFC 9715 section 3.1). On an IPv6 socket both options are set, for
// it may carry IPv4.
func socketOptions(network, _ string, raw syscall.RawConn) error {
	var err error
	control := func(fd uintptr) {
		err4 := unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT)
		if network == "udp4" {
			err = err4
			return
		}
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_OMIT)
	}
	if controlErr := raw.Control(control); controlErr != nil {
		return controlErr
	}
	if errors.Is(err, unix.ENOPROTOOPT) { // a sandbox's own network stack, without path MTU discovery
		return nil
	}
	return err
}
