package join

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"dstack.host/tunnel"
)

const (
	// maxConnections bounds those that are forwarded at a time, over all ports; more wait in the listener's queue.
	maxConnections = 4096
	dialTimeout    = 5 * time.Second
)

// forwarder brings the connections of one open tunnel to the app.
type forwarder struct {
	places chan struct{} // one for each connection
	log    *slog.Logger
	// unreached is set while the app can't be reached, so that a log tells when that begins and ends.
	unreached atomic.Bool
}

// port is one that is listened on.
type port struct {
	net.Listener
	to string
}

// listen takes the ports of the tunnel, all or none.
func (f *forwarder) listen(t *tunnel.Tunnel, forwards []Forward) (ports []port, err error) {
	for _, fw := range forwards {
		listener, err := t.Listen(netip.AddrPortFrom(t.Address().Addr(), fw.Port))
		if err == nil {
			ports = append(ports, port{listener, fw.To})
			continue
		}
		for _, p := range ports {
			_ = p.Close()
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("%w: what has the port is reached without forwarding, so give --port %d instead of --to %d=%s", err, fw.Port, fw.Port, fw.To)
		}
		return nil, err
	}
	return ports, nil
}

// serve forwards until ctx ends, and returns when every connection is closed. Without ports it waits.
func (f *forwarder) serve(ctx context.Context, ports []port) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { <-ctx.Done(); return nil })
	for _, p := range ports {
		tasks.Go(func() error { return f.accept(ctx, p, p.to) })
	}
	return tasks.Wait()
}

// accept forwards the connections of one port.
func (f *forwarder) accept(ctx context.Context, listener net.Listener, to string) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	var connections sync.WaitGroup
	defer connections.Wait()
	for {
		select {
		case f.places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := listener.Accept()
		if err != nil {
			<-f.places
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		connections.Go(func() {
			defer func() { <-f.places }()
			f.forward(ctx, c, to)
		})
	}
}

// forward carries one connection, and closes it.
func (f *forwarder) forward(ctx context.Context, in net.Conn, to string) {
	defer func() { _ = in.Close() }()
	out, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", to)
	if err != nil {
		if ctx.Err() == nil && !f.unreached.Swap(true) {
			f.log.Warn("the app can't be reached: is it running, and does it listen there?", "to", to, "error", err)
		}
		return
	}
	defer func() { _ = out.Close() }()
	if f.unreached.Swap(false) {
		f.log.Info("the app is reached again", "to", to)
	}
	stop := context.AfterFunc(ctx, func() { _, _ = in.Close(), out.Close() })
	defer stop()
	up := make(chan struct{})
	go func() {
		defer close(up)
		relay(out, in)
	}()
	relay(in, out)
	<-up
}

// relay copies until the source ends, and passes its end on. A copy that fails breaks the connection in both directions.
func relay(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		_, _ = to.Close(), from.Close()
		return
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
