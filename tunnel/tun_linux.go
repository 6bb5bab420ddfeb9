package tunnel

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
)

// tunDevice is wireguard-go on a TUN interface of the host. It listens on the UAPI socket of its name, so wg(8) and
// wgctrl, ours included, reach it like any other.
type tunDevice struct {
	link
	*userspace
	uapi *uapiServer
}

// openTUN needs CAP_NET_ADMIN, /dev/net/tun and the right to write /var/run/wireguard.
func openTUN(cfg *Config) (_ platform, err error) {
	client, err := wgctrl.New()
	if err != nil {
		return nil, unavailable(fmt.Errorf("wgctrl: %w", err))
	}
	d := &tunDevice{link: link{Client: client, local: cfg.addresses()}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.uapi, err = openUAPI(cfg.Name); err != nil {
		return nil, unavailable(fmt.Errorf("uapi socket: %w", err))
	}
	t, err := tun.CreateTUN(cfg.Name, cfg.MTU)
	if err != nil {
		return nil, unavailable(fmt.Errorf("create tun %s: %w", cfg.Name, err))
	}
	t = watch(&filtered{Device: t, local: cfg.addresses(), open: cfg.Inbound, ports: cfg.InboundPorts})
	d.userspace = newUserspace(t, cfg)
	d.uapi.serve(d.device)
	if d.Link, err = netlink.LinkByName(cfg.Name); err != nil {
		return nil, fmt.Errorf("find interface %s: %w", cfg.Name, err)
	}
	return d, d.address(cfg.MTU)
}

// up listens before the interface carries packets, so that nothing is lost and a taken port is told first.
func (d *tunDevice) up() error {
	if err := d.userspace.up(); err != nil {
		return err
	}
	return d.setUp()
}

func (d *tunDevice) close() error {
	var faults []error
	if d.uapi != nil {
		faults = append(faults, d.uapi.close())
	}
	if d.userspace != nil {
		faults = append(faults, d.userspace.close())
	}
	return errors.Join(append(faults, d.Client.Close())...)
}

// watched hides the events of a TUN. wireguard-go would close its UDP sockets when the interface goes down and open
// them when it comes up, later and where nobody sees the error; the event of a fresh interface being down arrives at
// any time after up. The MTU is ours to set, so nothing else in the events matters.
type watched struct {
	tun.Device
	events  chan tun.Event // never sent to
	drained chan struct{}
	closing sync.Once
}

func watch(t tun.Device) *watched {
	w := &watched{Device: t, events: make(chan tun.Event), drained: make(chan struct{})}
	go func() {
		defer close(w.drained)
		for range t.Events() {
		}
	}()
	return w
}

// Events implements tun.Device.
func (w *watched) Events() <-chan tun.Event { return w.events }

// Close implements tun.Device.
func (w *watched) Close() (err error) {
	w.closing.Do(func() {
		err = w.Device.Close()
		<-w.drained
		close(w.events)
	})
	return err
}

// acceptPause is the time between attempts to accept while the process can't.
const acceptPause = 100 * time.Millisecond

// uapiServer answers the configuration protocol on /var/run/wireguard/<name>.sock.
type uapiServer struct {
	listener net.Listener
	work     sync.WaitGroup

	// guarded by mu
	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]struct{}
}

// openUAPI takes the socket, which also keeps a second process from the same name.
func openUAPI(name string) (*uapiServer, error) {
	file, err := ipc.UAPIOpen(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	// Not ipc.UAPIListen: its goroutines stay when it is closed.
	l, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(true)
	}
	return &uapiServer{listener: l, conns: make(map[net.Conn]struct{})}, nil
}

// serve accepts until close.
func (s *uapiServer) serve(d *device.Device) {
	s.work.Go(func() {
		for {
			c, err := s.listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // out of file descriptors: without this socket the device can't be configured any more
				time.Sleep(acceptPause)
				continue
			}
			if !s.track(c) {
				return
			}
			s.work.Go(func() {
				d.IpcHandle(c) // closes c
				s.mu.Lock()
				defer s.mu.Unlock()
				delete(s.conns, c)
			})
		}
	})
}

func (s *uapiServer) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

// close ends the socket and every connection to it, and waits.
func (s *uapiServer) close() error {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	err := s.listener.Close()
	s.work.Wait()
	return err
}
