package tunnel

import (
	"fmt"
	"log/slog"
	"sync"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// userspace is a wireguard-go device.
type userspace struct {
	device  *device.Device
	closing sync.Once
}

func newUserspace(t tun.Device, cfg *Config) *userspace {
	return &userspace{device: device.NewDevice(t, newBind(cfg.Listen.Addr()), deviceLogger(cfg.Logger))}
}

// up opens the UDP socket; its error names the address and the port.
func (u *userspace) up() error { return u.device.Up() }

// close stops the device, its TUN and every goroutine of both.
func (u *userspace) close() error {
	u.closing.Do(u.device.Close)
	return nil
}

// deviceLogger passes what wireguard-go says on at Debug, its errors too: they are conditions of one peer that repeat
// every few seconds for as long as a CVM is away ("no known endpoint for peer"), and those of configuration are also
// returned to us.
func deviceLogger(log *slog.Logger) *device.Logger {
	say := func(format string, args ...any) {
		log.Debug("wireguard", "event", lazyf{format, args})
	}
	return &device.Logger{Verbosef: say, Errorf: say}
}

// lazyf formats only if the record is written.
type lazyf struct {
	format string
	args   []any
}

// LogValue implements slog.LogValuer.
func (l lazyf) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf(l.format, l.args...)) }
