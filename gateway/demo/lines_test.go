package demo_test

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"

	"dstack.host/gateway/demo"
)

// A line is run as it is printed, by a shell that has to read the words that were meant.
func TestPrintedLinesSurviveAShell(t *testing.T) {
	words := []string{"printf", "%s|", "/tmp/a 2d/ca.pem", "it's", `"quoted"`, "$HOME", "`date`", "a;b", "", "plain-1.2/x:y@z=%", "*"}
	out, err := exec.Command("sh", "-c", demo.Line{Command: words}.String()).Output()
	if want := strings.Join(words[2:], "|") + "|"; err != nil || string(out) != want {
		t.Errorf("%q (%v), want %q", out, err, want)
	}
}

func TestPortsAreToldByTheirFlags(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	tcp, udp := uint16(taken.Addr().(*net.TCPAddr).Port), uint16(socket.LocalAddr().(*net.UDPAddr).Port)
	for _, row := range []struct {
		options demo.Options
		want    string
	}{
		{demo.Options{HTTPS: tcp}, fmt.Sprintf("tcp port %d is taken; choose another: ./dstack-gateway demo --https PORT", tcp)},
		{demo.Options{DNS: tcp}, fmt.Sprintf("tcp port %d is taken; choose another: ./dstack-gateway demo --dns PORT", tcp)},
		{demo.Options{DNS: udp}, fmt.Sprintf("udp port %d is taken; choose another: ./dstack-gateway demo --dns PORT", udp)},
		{demo.Options{Enroll: tcp}, fmt.Sprintf("tcp port %d is taken; choose another: ./dstack-gateway demo --rpc PORT", tcp)},
		{demo.Options{WireGuard: udp}, fmt.Sprintf("udp port %d is taken; choose another: ./dstack-gateway demo --wireguard PORT", udp)},
		{demo.Options{HTTPS: 18999, Enroll: 18999}, "--https and --rpc can't both have tcp port 18999"},
	} {
		row.options.Base = demo.DefaultBase
		d, err := demo.Start(t.Context(), row.options)
		if err == nil {
			d.Stop()
			_ = d.Wait()
		}
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%v, want %q", err, row.want)
		}
	}
}
