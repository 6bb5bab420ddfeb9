package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const auto = "auto"

// controller configures WireGuard devices and reads them. *wgctrl.Client is one.
type controller interface {
	// ConfigureDevice applies cfg to what the device has; fields that are nil change nothing.
	ConfigureDevice(name string, cfg wgtypes.Config) error
	// Device returns the device with its peers.
	Device(name string) (*wgtypes.Device, error)
}

// platform is a device and the way into the tunnel behind it.
type platform interface {
	controller
	// up makes a configured device listen and carry packets.
	up() error
	// dial connects to an address inside the tunnel, from this end's address.
	dial(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// listen takes connections from inside the tunnel.
	listen(at netip.AddrPort) (net.Listener, error)
	// route adds or removes the route to one peer. Removing one that is not there is no error.
	route(peer netip.Addr, add bool) error
	// close removes the device and waits for what ran it. It can be called at any time after creation.
	close() error
}

// errUnavailable marks the reasons for which "auto" tries the next device: a missing privilege or a missing part of
// the system. Everything else, like a name that is taken, is the operator's to solve.
var errUnavailable = errors.New("not available")

type opener struct {
	name string
	open func(*Config) (platform, error)
}

// openers are the devices in the order of their worth.
var openers = []opener{{"kernel", openKernel}, {"tun", openTUN}, {"netstack", openNetstack}}

// openPlatform creates the device cfg asks for and says which it is and why.
func openPlatform(cfg *Config) (platform, string, error) {
	var passed []string
	for _, o := range openers {
		if cfg.Device != auto && cfg.Device != o.name {
			continue
		}
		p, err := o.open(cfg)
		switch {
		case err == nil:
			return p, describe(o.name, cfg.Device, passed), nil
		case cfg.Device != auto, !errors.Is(err, errUnavailable):
			return nil, "", fmt.Errorf("device %s: %w", o.name, err)
		}
		passed = append(passed, fmt.Sprintf("%s: %v", o.name, err))
	}
	return nil, "", fmt.Errorf("no device: %s", strings.Join(passed, "; "))
}

func describe(name, asked string, passed []string) string {
	switch {
	case asked != auto:
		return name + " (configured)"
	case len(passed) == 0:
		return name + " (the best available)"
	}
	return name + " (" + strings.Join(passed, "; ") + ")"
}
