package dnsserver_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"

	"dstack.host/dnsserver"
)

// dial opens a TCP connection that fails the test rather than hang.
func dial(t testing.TB, server string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// framed makes TCP messages of queries for a name, with the ids first, first+1, …
func framed(t testing.TB, name string, first, n int) (out []byte) {
	t.Helper()
	for i := range n {
		m := ask(name, dns.TypeTXT)
		m.Id = uint16(first + i)
		packed, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(packed))), packed...)
	}
	return out
}

func send(t testing.TB, conn net.Conn, octets []byte) {
	t.Helper()
	if _, err := conn.Write(octets); err != nil {
		t.Fatal(err)
	}
}

// receive reads n answers and checks their ids.
func receive(t testing.TB, conn net.Conn, first, n int) {
	t.Helper()
	for i := range n {
		m, err := (&dns.Conn{Conn: conn}).ReadMsg()
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if m.Id != uint16(first+i) || m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0 {
			t.Fatalf("answer %d: %v", i, m)
		}
	}
}

// closed fails the test unless the server closes the connection without a further octet.
func closed(t testing.TB, conn net.Conn) {
	t.Helper()
	n, err := conn.Read(make([]byte, 1))
	if n > 0 || errors.Is(err, os.ErrDeadlineExceeded) || err == nil {
		t.Errorf("not closed: %d octets, %v", n, err)
	}
}

func TestTCPPipelining(t *testing.T) {
	s, server := serve(t, dnsserver.Config{})
	s.SetZones(bigZone(t))
	conn := dial(t, server)
	for round := range 3 { // a connection serves many rounds
		send(t, conn, framed(t, "big.dstack.host.", 1000*round, 100))
		receive(t, conn, 1000*round, 100)
	}
	octets := framed(t, "_acme-challenge.dstack.host.", 7, 2)
	for i := range octets { // cut anywhere
		send(t, conn, octets[i:i+1])
	}
	receive(t, conn, 7, 2)
	// One and a half queries: the first is answered before the second is whole.
	send(t, conn, octets[:len(octets)-5])
	receive(t, conn, 7, 1)
	send(t, conn, octets[len(octets)-5:])
	receive(t, conn, 8, 1)
	// A client that has said all still gets all.
	send(t, conn, framed(t, "big.dstack.host.", 5, 20))
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	receive(t, conn, 5, 20)
	closed(t, conn)
}

func TestTCPClosesOnWhatIsNoQuery(t *testing.T) {
	s, server := serve(t, dnsserver.Config{})
	s.SetZones(newZone(t, testZone()))
	for name, octets := range map[string]string{
		"length 0":           "\x00\x00",
		"length 11":          "\x00\x0b" + header[:11],
		"a response":         "\x00\x0c\x12\x34\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"TLS":                "\x16\x03\x01\x00\x05" + string(make([]byte, 6000)),
		"HTTP":               "GET / HTTP/1.1\r\nHost: dstack.host\r\n\r\n",
		"a query cut at end": "\x00\xff" + header,
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, server)
			send(t, conn, framed(t, "_acme-challenge.dstack.host.", 1, 1))
			send(t, conn, []byte(octets))
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			receive(t, conn, 1, 1) // what came before is answered
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("not closed")
			}
		})
	}
}

func TestTCPTakesALargeQuery(t *testing.T) {
	s, server := serve(t, dnsserver.Config{})
	s.SetZones(newZone(t, testZone()))
	padded := askEDNS("_acme-challenge.dstack.host.", dns.TypeTXT, 1232)
	padded.Id = 9
	padded.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, 65000)}}
	packed, err := padded.Pack()
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, server)
	send(t, conn, append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
	receive(t, conn, 9, 1)
}

func TestTCPIdle(t *testing.T) {
	s, server := serve(t, dnsserver.Config{IdleTimeout: 100 * time.Millisecond})
	s.SetZones(newZone(t, testZone()))
	query := framed(t, "_acme-challenge.dstack.host.", 1, 1)
	for name, octets := range map[string][]byte{"silent": nil, "after a query": query, "half a length": query[:1], "half a query": query[:20]} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, server)
			send(t, conn, octets)
			if name == "after a query" {
				receive(t, conn, 1, 1)
			}
			closed(t, conn)
		})
	}
	t.Run("octet by octet", func(t *testing.T) {
		conn := dial(t, server)
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		begin := time.Now()
		for i := 0; time.Since(begin) < patience; i++ {
			<-ticker.C
			if _, err := conn.Write(query[min(i, 20):][:1]); err != nil {
				return // closed, although never silent for long
			}
		}
		t.Error("not closed")
	})
}

// A client that asks much and reads nothing is let go, and holds no memory.
func TestTCPClientThatDoesNotRead(t *testing.T) {
	s, server := serve(t, dnsserver.Config{IdleTimeout: 100 * time.Millisecond})
	s.SetZones(bigZone(t))
	conn := dial(t, server)
	octets := framed(t, "big.dstack.host.", 0, 100)
	for {
		if _, err := conn.Write(octets); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("not closed")
			}
			return
		}
	}
}

func TestTCPConnectionLimits(t *testing.T) {
	for name, c := range map[string]dnsserver.Config{
		"in all":     {MaxConns: 2, IdleTimeout: patience},
		"per client": {MaxConnsPerClient: 2, IdleTimeout: patience},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := serve(t, c)
			s.SetZones(newZone(t, testZone()))
			query := framed(t, "_acme-challenge.dstack.host.", 1, 1)
			var open []*net.TCPConn
			for range 2 {
				conn := dial(t, server)
				send(t, conn, query)
				receive(t, conn, 1, 1)
				open = append(open, conn)
			}
			closed(t, dial(t, server))
			// Those that are open are not hurt, and one that ends makes room.
			send(t, open[1], query)
			receive(t, open[1], 1, 1)
			open[0].Close()
			for deadline := time.Now().Add(patience); ; {
				conn := dial(t, server)
				_, _ = conn.Write(query) // refused while the server has not seen the end
				if _, err := (&dns.Conn{Conn: conn}).ReadMsg(); err == nil {
					return
				}
				conn.Close()
				if time.Now().After(deadline) {
					t.Fatal("no room")
				}
			}
		})
	}
}

func TestRunEndsOpenConnections(t *testing.T) {
	s, err := dnsserver.New(dnsserver.Config{Listen: []string{"127.0.0.1:0"}, IdleTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, s)
	s.SetZones(bigZone(t))
	idle, deaf := dial(t, s.Addrs()[0].String()), dial(t, s.Addrs()[0].String())
	send(t, idle, framed(t, "big.dstack.host.", 1, 1))
	receive(t, idle, 1, 1)
	// The deaf client fills the buffers until the server's write blocks.
	if err := deaf.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	octets := framed(t, "big.dstack.host.", 0, 100)
	for err == nil {
		_, err = deaf.Write(octets)
	}
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	closed(t, idle)
}
