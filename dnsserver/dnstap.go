package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	dnstap "github.com/dnstap/golang-dnstap"
	framestream "github.com/farsightsec/golang-framestream"
)

// DnstapConfig says where dnstap messages (https://dnstap.info) go: each query
// with its answer, or one of so many.
type DnstapConfig struct {
	// Socket is the collector's: "unix:/path" or "tcp:host:port". Empty: none.
	Socket string
	// Sample is that only one query of so many is told. Zero: every one.
	Sample int
	// Identity names this server in the messages.
	Identity string
}

// Times of the connection to a collector.
const (
	dnstapTimeout = 2 * time.Second
	dnstapPause   = time.Second // until a collector that is away is tried again
	dnstapFlush   = time.Second // how long messages may wait for more
)

// address returns network and address of the socket.
func (c DnstapConfig) address() (network, address string, err error) {
	network, address, ok := strings.Cut(c.Socket, ":")
	if !ok || address == "" || network != "unix" && network != "tcp" {
		return "", "", fmt.Errorf("dns: Dnstap.Socket %q: neither unix:/path nor tcp:host:port", c.Socket)
	}
	return network, address, nil
}

// tap sends observations to a collector, as long as ctx goes on. When the
// collector is away, what is observed is lost.
func (c DnstapConfig) tap(log *slog.Logger) func(context.Context, <-chan observation) {
	return func(ctx context.Context, queue <-chan observation) {
		told := false
		for ctx.Err() == nil {
			err := c.connect(ctx, queue, func() { told = false })
			if ctx.Err() != nil {
				break
			}
			if !told {
				log.Warn("dnstap collector", "socket", c.Socket, "error", err)
				told = true
			}
			discard(ctx, queue, dnstapPause)
		}
	}
}

// discard takes what comes for so long.
func discard(ctx context.Context, queue <-chan observation, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-queue:
		}
	}
}

// connect sends over one connection until it fails or ctx ends.
func (c DnstapConfig) connect(ctx context.Context, queue <-chan observation, connected func()) error {
	network, address, err := c.address()
	if err != nil {
		return err
	}
	dialer := net.Dialer{Timeout: dnstapTimeout}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	// Handshakes are bounded by the writer's own timeout; the end of ctx leaves time to say goodbye.
	writer, err := framestream.NewWriter(conn, &framestream.WriterOptions{
		ContentTypes: [][]byte{dnstap.FSContentType}, Bidirectional: true, Timeout: dnstapTimeout,
	})
	if err != nil {
		return err
	}
	connected()
	err = c.send(ctx, writer, queue)
	if err == nil {
		err = writer.Close()
	}
	if errors.Is(err, io.EOF) {
		return errors.New("the collector closed the connection")
	}
	return err
}

// send writes messages until ctx ends.
func (c DnstapConfig) send(ctx context.Context, writer *framestream.Writer, queue <-chan observation) error {
	encoder := dnstap.NewEncoder(writer)
	flush := time.NewTicker(dnstapFlush)
	defer flush.Stop()
	for {
		select {
		case <-ctx.Done():
			return writer.Flush()
		case <-flush.C:
			if err := writer.Flush(); err != nil {
				return err
			}
		case o := <-queue:
			if err := c.write(encoder, &o); err != nil {
				return err
			}
		}
	}
}

// write writes the messages of an observation: the query, and the answer if one
// was sent.
func (c DnstapConfig) write(encoder *dnstap.Encoder, o *observation) error {
	kinds := []dnstap.Message_Type{dnstap.Message_AUTH_QUERY, dnstap.Message_AUTH_RESPONSE}
	if o.answer == nil {
		kinds = kinds[:1]
	}
	for _, kind := range kinds {
		err := encoder.Encode(&dnstap.Dnstap{
			Type: dnstap.Dnstap_MESSAGE.Enum(), Identity: []byte(c.Identity), Version: []byte("dstack-gateway"), Message: o.message(kind),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// dnstapProtocols are the transports in dnstap's terms.
var dnstapProtocols = map[Transport]dnstap.SocketProtocol{
	UDP: dnstap.SocketProtocol_UDP, TCP: dnstap.SocketProtocol_TCP, TLS: dnstap.SocketProtocol_DOT, HTTPS: dnstap.SocketProtocol_DOH,
}

// message describes one direction of an observation.
func (o *observation) message(kind dnstap.Message_Type) *dnstap.Message {
	family := dnstap.SocketFamily_INET6
	if o.client.Addr().Is4() {
		family = dnstap.SocketFamily_INET
	}
	port, seconds, nanoseconds := uint32(o.client.Port()), uint64(o.at.Unix()), uint32(o.at.Nanosecond())
	m := &dnstap.Message{
		Type: kind.Enum(), SocketFamily: family.Enum(), SocketProtocol: dnstapProtocols[o.transport].Enum(),
		QueryAddress: o.client.Addr().AsSlice(), QueryPort: &port, QueryTimeSec: &seconds, QueryTimeNsec: &nanoseconds,
	}
	if kind == dnstap.Message_AUTH_QUERY {
		m.QueryMessage = o.query
		return m
	}
	m.ResponseMessage, m.ResponseTimeSec, m.ResponseTimeNsec = o.answer, &seconds, &nanoseconds
	return m
}
