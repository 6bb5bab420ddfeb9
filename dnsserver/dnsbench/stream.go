//go:build linux

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// streams is how many connections a load over TCP holds open.
const streams = 32

// loadTCP asks a server over TCP for so long, so many queries at once on each
// connection.
func loadTCP(server netip.AddrPort, next source, pipeline int, d time.Duration) (t tally, err error) {
	var mu sync.Mutex
	var asking sync.WaitGroup
	begin := time.Now()
	locked := func() []byte { // packets of a cycle stay as they are
		mu.Lock()
		defer mu.Unlock()
		return next()
	}
	for range streams {
		asking.Go(func() {
			got, failed := stream(server, locked, pipeline, begin.Add(d))
			mu.Lock()
			defer mu.Unlock()
			t.answers, t.records, err = t.answers+got.answers, t.records+got.records, errors.Join(err, failed)
			for i, n := range got.rcodes {
				t.rcodes[i] += n
			}
		})
	}
	asking.Wait()
	t.took = time.Since(begin)
	return t, err
}

// stream is one connection.
func stream(server netip.AddrPort, next source, pipeline int, end time.Time) (t tally, err error) {
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(server))
	if err != nil {
		return t, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(end.Add(5 * time.Second)); err != nil {
		return t, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return t, err
	}
	in, out, answer := bufio.NewReaderSize(conn, 64<<10), []byte(nil), make([]byte, 65535)
	for time.Now().Before(end) {
		out = out[:0]
		for range pipeline {
			query := next()
			out = append(binary.BigEndian.AppendUint16(out, uint16(len(query))), query...)
		}
		if _, err := conn.Write(out); err != nil {
			return t, err
		}
		// A server that writes each answer by itself waits with the second one until
		// the first is acknowledged (RFC 896); so that is done at once.
		if err := raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) }); err != nil {
			return t, err
		}
		for range pipeline {
			if _, err := io.ReadFull(in, answer[:2]); err != nil {
				return t, err
			}
			body := answer[:binary.BigEndian.Uint16(answer)]
			if _, err := io.ReadFull(in, body); err != nil {
				return t, err
			}
			if len(body) < 12 {
				return t, errors.New("not an answer")
			}
			t.answers++
			t.rcodes[body[3]&0xf]++
			if body[6]|body[7] != 0 {
				t.records++
			}
		}
	}
	return t, nil
}
