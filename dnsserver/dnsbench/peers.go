//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dstack.host/dnsserver"
)

// The servers that are measured. Ours is the first.
const (
	ours    = "dstack"
	knot    = "knot"
	nsd     = "nsd"
	coredns = "coredns"
)

// coreDNS is built with the plugins that it is measured with, as its
// documentation advises.
const (
	coreDNSVersion = "v1.15.0"
	coreDNSMain    = `package main

import (
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/file"
)

func main() { coremain.Run() }
`
)

// debianPackages are the programs and where they come from.
var debianPackages = map[string]string{"knotd": "knot", "nsd": "nsd", "dnsperf": "dnsperf", "kdig": "knot-dnsutils"}

// bring installs what is missing. What can't be had is left out of the
// comparison, and said so.
func bring(ctx context.Context, progress func(string, ...any)) {
	var missing []string
	for program, name := range debianPackages {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return
	}
	slices.Sort(missing)
	progress("installing %s", strings.Join(missing, ", "))
	for _, args := range [][]string{{"update", "-qq"}, append([]string{"install", "-qq", "-y", "--no-install-recommends"}, missing...)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			progress("apt-get %s: %v\n%s", args[0], err, out)
			return
		}
	}
}

// buildCoreDNS builds CoreDNS once, from the module proxy.
func buildCoreDNS(ctx context.Context, progress func(string, ...any)) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "dstack-bench", "coredns-"+coreDNSVersion)
	program := filepath.Join(dir, "coredns")
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	progress("building CoreDNS %s, once; this takes minutes", coreDNSVersion)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	module := "module corednsbench\n\ngo 1.26\n\nrequire github.com/coredns/coredns " + coreDNSVersion + "\n"
	for name, text := range map[string]string{"main.go": coreDNSMain, "go.mod": module} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=mod", "-o", program, ".")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return program, nil
}

// server is a running server.
type server struct {
	name   string
	signed bool
	addr   netip.AddrPort
	cmd    *exec.Cmd
	log    string // file
}

// launcher starts servers, each with a folder of its own, on one CPU.
type launcher struct {
	dir      string
	apps     int
	coredns  string // program; empty without
	nextPort uint16
	running  []*server
}

// launch starts a server of a zone, and returns nil if the program is not there.
func (l *launcher) launch(name string, signed bool, zone string) (*server, error) {
	l.nextPort++
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.nextPort)
	dir := filepath.Join(l.dir, fmt.Sprintf("%s-%d", name, l.nextPort))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	args, err := l.prepare(name, dir, addr, signed, zone)
	if err != nil || args == nil {
		return nil, err
	}
	s := &server{name: name, signed: signed, addr: addr, log: filepath.Join(dir, "log")}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = dir, log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := startOn(serverCPU, s.cmd); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	l.running = append(l.running, s)
	return s, s.wait()
}

// prepare writes the configuration of a server and returns its command.
func (l *launcher) prepare(name, dir string, addr netip.AddrPort, signed bool, zone string) ([]string, error) {
	program := func(name string) string {
		found, _ := exec.LookPath(name)
		return found
	}
	write := func(file, text string) error { return os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644) }
	zoneText, err := os.ReadFile(zone)
	if err != nil {
		return nil, err
	}
	if err := write("zone", string(zoneText)); err != nil { // Knot rewrites the one it signs
		return nil, err
	}
	var args []string
	var text string
	switch name {
	case ours:
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return []string{self, "-serve", addr.String(), "-apps", fmt.Sprint(l.apps), fmt.Sprintf("-signed=%v", signed)}, nil
	case knot:
		args = []string{program("knotd"), "-c", "conf"}
		text = fmt.Sprintf(knotConfig, dir, addr.Addr(), addr.Port(), map[bool]string{true: "on", false: "off"}[signed])
	case nsd:
		args = []string{program("nsd"), "-d", "-c", "conf"}
		text = fmt.Sprintf(nsdConfig, addr.Addr(), addr.Port(), dir)
	case coredns:
		args = []string{l.coredns, "-conf", "conf"}
		text = fmt.Sprintf(corednsConfig, addr.Port(), addr.Addr())
	}
	if args[0] == "" {
		return nil, nil
	}
	return args, write("conf", text)
}

// The configurations: one worker on the one CPU, no logs of queries, no limits
// of rates.
const (
	knotConfig = `server:
    rundir: "%[1]s"
    listen: %[2]s@%[3]d
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
    tcp-max-clients: 1000
log:
  - target: stderr
    any: warning
database:
    storage: "%[1]s"
acl:
  - id: transfer
    address: 127.0.0.1
    action: transfer
policy:
  - id: bench
    algorithm: ecdsap256sha256
    single-type-signing: on
zone:
  - domain: dstack.host
    storage: "%[1]s"
    file: zone
    dnssec-signing: %[4]s
    dnssec-policy: bench
    acl: transfer
`
	nsdConfig = `server:
  ip-address: %[1]s
  port: %[2]d
  server-count: 1
  do-ip6: no
  username: ""
  zonesdir: "%[3]s"
  database: ""
  pidfile: "%[3]s/pid"
  xfrdfile: "%[3]s/xfrd"
  zonelistfile: "%[3]s/zones"
  tcp-count: 200
  tcp-query-count: 0
  rrl-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: dstack.host
  zonefile: zone
`
	corednsConfig = `dstack.host:%d {
    bind %s
    file zone
}
`
)

// startOn starts a command that may use one CPU only.
func startOn(cpu int, cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	return errors.Join(cmd.Start(), unix.SchedSetaffinity(0, &before))
}

// startTimeout is how long a server may take to load, and to sign, its zone.
const startTimeout = time.Minute

// wait returns when the server answers for the last app.
func (s *server) wait() error {
	for begin := time.Now(); time.Since(begin) < startTimeout; time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		answer, err := dnsserver.Query(ctx, s.addr.String(), appID(0)+"."+origin, "A")
		cancel()
		if err == nil && answer.Rcode == "NOERROR" {
			return nil
		}
	}
	log, _ := os.ReadFile(s.log)
	return fmt.Errorf("%s does not answer after %s\n%s", s.name, startTimeout, log)
}

// stop ends all servers.
func (l *launcher) stop() {
	for _, s := range l.running {
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // the group is ours alone
		_ = s.cmd.Wait()
	}
}
