package e2e

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/demo"
)

func TestEveryLineOfTheDemoWorksAndLeavesAConsistentState(t *testing.T) {
	leakless(t)
	d := start(t, demo.Options{})
	consistent(t, d)
	for _, line := range d.Lines() {
		if err := line.Try(t.Context()); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		consistent(t, d)
	}
}

func TestCheckRunsWhatItPrints(t *testing.T) {
	leakless(t)
	var out bytes.Buffer
	ok, err := demo.Check(t.Context(), demo.Options{Base: demo.DefaultBase, Program: "no-such-program", Out: &out, Logger: logger(t)})
	if err != nil || !ok {
		t.Errorf("check: %t %v\n%s", ok, err, out.String())
	}
	if got := strings.Count(out.String(), "\n$ "); got < 5 {
		t.Errorf("%d lines were run:\n%s", got, out.String())
	}
}

func TestRegistrationsOutliveARestartWithTheirAddresses(t *testing.T) {
	leakless(t)
	dir := t.TempDir()
	addresses := func(d *demo.Demo) map[string]netip.Addr {
		all := map[string]netip.Addr{}
		for inst := range d.Gateway().Snapshot().Instances() {
			all[inst.ID.String()] = inst.Addr
		}
		return all
	}
	d := start(t, demo.Options{DataDir: dir})
	before := addresses(d)
	root, err := os.ReadFile(d.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	stop(t, d)
	d = start(t, demo.Options{DataDir: dir})
	if diff := cmp.Diff(before, addresses(d), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || len(before) != 2 {
		t.Errorf("addresses before and after the restart (-before +after):\n%s", diff)
	}
	if again, err := os.ReadFile(d.CAFile()); err != nil || !bytes.Equal(root, again) {
		t.Errorf("the internal CA changed over the restart: %v", err)
	}
	consistent(t, d)
}

func TestTwoGatewaysRunInOneProcess(t *testing.T) {
	leakless(t)
	a, b := start(t, demo.Options{}), start(t, demo.Options{})
	consistent(t, a)
	consistent(t, b)
	stop(t, a)
	consistent(t, b)
}

func TestATakenPortIsToldWithTheFlagThatChangesIt(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tcp.Close() }()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = udp.Close() }()
	_, err = demo.Start(t.Context(), demo.Options{
		Base:      demo.DefaultBase,
		HTTPS:     uint16(tcp.Addr().(*net.TCPAddr).Port),
		WireGuard: uint16(udp.LocalAddr().(*net.UDPAddr).Port),
	})
	for _, want := range []string{"--https", "--wireguard"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %s", err, want)
		}
	}
}
