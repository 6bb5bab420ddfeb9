//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A load keeps so many queries on their way: enough that a server always finds
// some, and few enough that the buffer of its socket takes them all.
const (
	loadSockets = 4
	loadWindow  = 48
	stalled     = 50 * time.Millisecond // nothing comes any more: what was on its way is lost
	answerRoom  = 1500
)

// tally is what came of a load.
type tally struct {
	answers, lost int
	truncated     int // not among the answers
	rcodes        [16]int
	records       int // answers with records in their answer section
	took          time.Duration
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// channel is a connected socket with its queries on their way. It moves many
// packets with one system call, so that the load costs less than the server.
type channel struct {
	fd      int
	out     int // queries on their way
	in      [loadWindow]mmsghdr
	send    [loadWindow]mmsghdr
	inv     [loadWindow]unix.Iovec
	sendv   [loadWindow]unix.Iovec
	answers [loadWindow][answerRoom]byte
	queries [loadWindow][512]byte
	id      uint16
}

func openChannel(server netip.AddrPort) (*channel, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) // without the privilege the default has to do
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	c := &channel{fd: fd}
	for i := range loadWindow {
		c.inv[i].Base = &c.answers[i][0]
		c.inv[i].SetLen(answerRoom)
		c.in[i].hdr.Iov, c.in[i].hdr.Iovlen = &c.inv[i], 1
		c.sendv[i].Base = &c.queries[i][0]
		c.send[i].hdr.Iov, c.send[i].hdr.Iovlen = &c.sendv[i], 1
	}
	return c, nil
}

// fill sends queries until so many are on their way.
func (c *channel) fill(next source, window int) error {
	n := 0
	for ; c.out+n < window; n++ {
		query := c.queries[n][:]
		c.sendv[n].SetLen(copy(query, next()))
		binary.BigEndian.PutUint16(query, c.id)
		c.id++
	}
	for sent := 0; sent < n; {
		got, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&c.send[sent])), uintptr(n-sent), 0, 0, 0)
		switch errno {
		case 0:
			sent += int(got)
		case unix.EAGAIN, unix.EINTR:
		default:
			return errno
		}
	}
	c.out += n
	return nil
}

// drain takes what has come.
func (c *channel) drain(t *tally) (n int, err error) {
	got, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&c.in[0])), loadWindow, unix.MSG_DONTWAIT, 0, 0)
	if errno == unix.EAGAIN || errno == unix.EINTR {
		return 0, nil
	}
	if errno != 0 {
		return 0, errno
	}
	n = int(got)
	for i := range n {
		answer := c.answers[i][:c.in[i].n]
		if len(answer) < 12 || answer[2]&0x80 == 0 {
			return n, fmt.Errorf("not an answer: %x", answer)
		}
		if answer[2]&0x02 != 0 {
			t.truncated++
			continue
		}
		t.answers++
		t.rcodes[answer[3]&0xf]++
		if answer[6]|answer[7] != 0 {
			t.records++
		}
	}
	c.out = max(c.out-n, 0)
	return n, nil
}

// load asks a server for so long, as fast as it answers.
func load(server netip.AddrPort, next source, d time.Duration) (t tally, err error) {
	channels := make([]*channel, loadSockets)
	for i := range channels {
		if channels[i], err = openChannel(server); err != nil {
			return t, err
		}
		defer unix.Close(channels[i].fd)
	}
	begin := time.Now()
	last := begin
	for now := begin; now.Sub(begin) < d; now = time.Now() {
		for _, c := range channels {
			if now.Sub(last) > stalled {
				t.lost += c.out
				c.out = 0
			}
			n, err := c.drain(&t)
			if err != nil {
				return t, err
			}
			if n > 0 {
				last = now
			}
			if err := c.fill(next, loadWindow); err != nil {
				return t, err
			}
		}
		if now.Sub(last) > stalled {
			last = now
		}
	}
	t.took = time.Since(begin)
	return t, nil
}

// probe asks hits one after the other while a flood of so many queries a second
// goes to the same server, and returns the latencies of the hits, sorted.
func probe(server netip.AddrPort, hits, flood source, perSecond int, d time.Duration) (latencies []time.Duration, err error) {
	asking, err := openChannel(server)
	if err != nil {
		return nil, err
	}
	defer unix.Close(asking.fd)
	flooding, err := openChannel(server)
	if err != nil {
		return nil, err
	}
	defer unix.Close(flooding.fd)
	var answered, ignored tally
	begin := time.Now()
	asked, sent := begin, 0
	for now := begin; now.Sub(begin) < d; now = time.Now() {
		if due := int(now.Sub(begin).Seconds() * float64(perSecond)); due > sent {
			if _, err := flooding.drain(&ignored); err != nil {
				return nil, err
			}
			burst := min(due-sent, 16)
			flooding.out = 0
			if err := flooding.fill(flood, burst); err != nil {
				return nil, err
			}
			sent += burst
		}
		if asking.out == 0 || now.Sub(asked) > stalled {
			asking.out, asked = 0, time.Now()
			if err := asking.fill(hits, 1); err != nil {
				return nil, err
			}
		}
		if n, err := asking.drain(&answered); err != nil {
			return nil, err
		} else if n > 0 {
			latencies = append(latencies, time.Since(asked))
		}
	}
	slices.Sort(latencies)
	return latencies, nil
}
