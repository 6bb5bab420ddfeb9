package tunnel

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
)

// kernelDevice is a WireGuard interface of the Linux kernel. It outlives the process that made it if that is killed;
// the next one takes it over, and its peers keep their sessions.
type kernelDevice struct {
	link
	created bool
}

// openKernel needs CAP_NET_ADMIN and the module.
func openKernel(cfg *Config) (platform, error) {
	d, err := kernelLink(cfg)
	if err != nil {
		return nil, err
	}
	if d.Client, err = wgctrl.New(); err != nil {
		return nil, errors.Join(fmt.Errorf("wgctrl: %w", err), d.remove())
	}
	if err := d.address(cfg.MTU); err != nil {
		return nil, errors.Join(err, d.close())
	}
	if !cfg.Inbound || cfg.InboundPorts != nil {
		cfg.Logger.Warn("a kernel device can't keep peers from opening connections to this host, the firewall must", "open", cfg.InboundPorts,
			"example", fmt.Sprintf("nft add rule inet filter input iifname %s ct state new drop", cfg.Name))
	}
	return d, nil
}

// kernelLink creates the interface or finds it.
func kernelLink(cfg *Config) (*kernelDevice, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = cfg.Name, cfg.MTU
	err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	created := err == nil
	if err != nil && !errors.Is(err, syscall.EEXIST) {
		return nil, unavailable(fmt.Errorf("add interface %s: %w", cfg.Name, err))
	}
	l, err := netlink.LinkByName(cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", cfg.Name, err)
	}
	if l.Type() != "wireguard" {
		return nil, fmt.Errorf("interface %s exists and is no kernel WireGuard device but %q: choose another name",
			cfg.Name, l.Type())
	}
	return &kernelDevice{link: link{Link: l, local: cfg.addresses()}, created: created}, nil
}

// up is also where the kernel opens its UDP sockets, so a taken port is told here.
func (d *kernelDevice) up() error { return d.setUp() }

func (d *kernelDevice) remove() error {
	if !d.created {
		return nil
	}
	d.created = false
	return netlink.LinkDel(d.Link)
}

// close removes an interface that Open made; one that was taken over stays, as it was found.
func (d *kernelDevice) close() error { return errors.Join(d.Client.Close(), d.remove()) }
