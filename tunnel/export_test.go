package tunnel

import (
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

var (
	ParseUAPI = parseUAPI
	UAPISet   = uapiSet
	NewBind   = func(a netip.Addr) conn.Bind { return newBind(a) }
	Solicited = solicited
	Invited   = invited
)

// Message is the message of a change.
func Message(c Change) wgtypes.PeerConfig { return c.message() }

// Configure sends a message to the device behind the back of the tunnel, as wg(8) would.
func (t *Tunnel) Configure(cfg wgtypes.Config) error { return t.device.ConfigureDevice(t.name, cfg) }

// RawDevice reads the device.
func (t *Tunnel) RawDevice() (*wgtypes.Device, error) { return t.device.Device(t.name) }

// CountMessages replaces the device of t by one that counts the configure messages in n.
func (t *Tunnel) CountMessages(n *int) { t.device = counting{t.device, n} }

type counting struct {
	platform
	n *int
}

func (c counting) ConfigureDevice(name string, cfg wgtypes.Config) error {
	*c.n++
	return c.platform.ConfigureDevice(name, cfg)
}

// FailOn lets the messages about key fail with err; the device gets them all the same.
func (t *Tunnel) FailOn(key PublicKey, err error) { t.device = failing{t.device, key, err} }

type failing struct {
	platform
	key PublicKey
	err error
}

func (f failing) ConfigureDevice(name string, cfg wgtypes.Config) error {
	err := f.platform.ConfigureDevice(name, cfg)
	if PublicKey(cfg.Peers[0].PublicKey) == f.key && f.err != nil {
		return f.err
	}
	return err
}
