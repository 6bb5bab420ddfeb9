package tunnel

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// inProcess configures a wireguard-go device of this process by the text of the cross-platform configuration protocol,
// the same that wgctrl writes to a socket. wgctrl itself can't reach such a device: it looks for sockets only in
// /var/run/wireguard, which it has no way to change and which only root can write, and the netstack device exists
// precisely for processes without that privilege. A fixed folder would also join two gateways in one test process.
type inProcess struct{ device *device.Device }

// ConfigureDevice implements controller. The name is not used: there is one device.
func (c inProcess) ConfigureDevice(_ string, cfg wgtypes.Config) error {
	return c.device.IpcSet(uapiSet(cfg))
}

// Device implements controller.
func (c inProcess) Device(name string) (*wgtypes.Device, error) {
	text, err := c.device.IpcGet()
	if err != nil {
		return nil, err
	}
	d, err := parseUAPI(text)
	if err != nil {
		return nil, err
	}
	d.Name = name
	return d, nil
}

// uapiSet writes cfg as the lines of a "set" operation.
func uapiSet(cfg wgtypes.Config) string {
	var b strings.Builder
	if cfg.PrivateKey != nil {
		fmt.Fprintf(&b, "private_key=%x\n", cfg.PrivateKey[:])
	}
	if cfg.ListenPort != nil {
		fmt.Fprintf(&b, "listen_port=%d\n", *cfg.ListenPort)
	}
	if cfg.FirewallMark != nil {
		fmt.Fprintf(&b, "fwmark=%d\n", *cfg.FirewallMark)
	}
	if cfg.ReplacePeers {
		b.WriteString("replace_peers=true\n")
	}
	for i := range cfg.Peers {
		uapiSetPeer(&b, &cfg.Peers[i])
	}
	return b.String()
}

func uapiSetPeer(b *strings.Builder, p *wgtypes.PeerConfig) {
	fmt.Fprintf(b, "public_key=%x\n", p.PublicKey[:])
	if p.UpdateOnly {
		b.WriteString("update_only=true\n")
	}
	if p.Remove {
		b.WriteString("remove=true\n")
	}
	if p.PresharedKey != nil {
		fmt.Fprintf(b, "preshared_key=%x\n", p.PresharedKey[:])
	}
	if p.Endpoint != nil {
		fmt.Fprintf(b, "endpoint=%s\n", p.Endpoint.AddrPort())
	}
	if p.PersistentKeepaliveInterval != nil {
		fmt.Fprintf(b, "persistent_keepalive_interval=%d\n", *p.PersistentKeepaliveInterval/time.Second)
	}
	if p.ReplaceAllowedIPs {
		b.WriteString("replace_allowed_ips=true\n")
	}
	for i := range p.AllowedIPs {
		fmt.Fprintf(b, "allowed_ip=%s\n", p.AllowedIPs[i].String())
	}
}

// parseUAPI reads the answer of a "get" operation: lines of key=value, the device's first, then those of each peer
// after its public_key. Keys it does not know are skipped, as the protocol asks; a value that does not parse is an
// error.
func parseUAPI(text string) (*wgtypes.Device, error) {
	r := uapiReader{device: &wgtypes.Device{Type: wgtypes.Userspace}}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			break
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("uapi: line %d: no key=value", n)
		}
		if err := r.line(key, value); err != nil {
			return nil, fmt.Errorf("uapi: line %d: %s: %w", n, key, err) // not the value: it may be a key
		}
	}
	return r.device, nil
}

// uapiReader fills device, and the handshake's seconds until its nanoseconds arrive.
type uapiReader struct {
	device  *wgtypes.Device
	seconds int64
}

func (r *uapiReader) line(key, value string) (err error) {
	if key == "public_key" {
		k, err := uapiKey(value)
		r.device.Peers = append(r.device.Peers, wgtypes.Peer{PublicKey: k})
		r.seconds = 0
		return err
	}
	if n := len(r.device.Peers); n > 0 {
		return r.peerLine(&r.device.Peers[n-1], key, value)
	}
	d := r.device
	switch key {
	case "private_key":
		if d.PrivateKey, err = uapiKey(value); err == nil {
			d.PublicKey = wgtypes.Key(PrivateKey(d.PrivateKey).PublicKey())
		}
	case "listen_port":
		d.ListenPort, err = uapiInt[int](value, 16)
	case "fwmark":
		d.FirewallMark, err = uapiInt[int](value, 32)
	case "errno":
		if value != "0" {
			err = errors.New("the device reports an error")
		}
	}
	return err
}

func (r *uapiReader) peerLine(p *wgtypes.Peer, key, value string) (err error) {
	switch key {
	case "preshared_key":
		p.PresharedKey, err = uapiKey(value)
	case "endpoint":
		var e netip.AddrPort
		if e, err = netip.ParseAddrPort(value); err == nil {
			p.Endpoint = net.UDPAddrFromAddrPort(e)
		}
	case "last_handshake_time_sec":
		r.seconds, err = uapiInt[int64](value, 63)
	case "last_handshake_time_nsec":
		var nanos int64
		if nanos, err = uapiInt[int64](value, 30); err == nil && (r.seconds != 0 || nanos != 0) {
			p.LastHandshakeTime = time.Unix(r.seconds, nanos)
		}
	case "tx_bytes":
		p.TransmitBytes, err = uapiInt[int64](value, 63)
	case "rx_bytes":
		p.ReceiveBytes, err = uapiInt[int64](value, 63)
	case "persistent_keepalive_interval":
		var seconds int
		seconds, err = uapiInt[int](value, 16)
		p.PersistentKeepaliveInterval = time.Duration(seconds) * time.Second
	case "allowed_ip":
		var prefix netip.Prefix
		if prefix, err = netip.ParsePrefix(value); err == nil {
			p.AllowedIPs = append(p.AllowedIPs, ipNet(prefix))
		}
	case "protocol_version":
		p.ProtocolVersion, err = uapiInt[int](value, 31)
	}
	return err
}

func uapiInt[T int | int64](s string, bits int) (T, error) {
	v, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		return 0, errors.New("not a number in range")
	}
	return T(v), nil
}

func uapiKey(s string) (k wgtypes.Key, err error) {
	if len(s) != hex.EncodedLen(len(k)) {
		return k, io.ErrUnexpectedEOF
	}
	if _, err = hex.Decode(k[:], []byte(s)); err != nil {
		return wgtypes.Key{}, errors.New("not hex")
	}
	return k, nil
}
