//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of /proc/stat (USER_HZ, always 100 where Go programs run).
const tick = 10 * time.Millisecond

// cpuOf returns the CPU time that a process and its children have used, to the
// nanosecond (the first field of schedstat). A process that ended counts no more.
func cpuOf(pid int) (time.Duration, error) {
	var all time.Duration
	seen := 0
	for _, p := range append(children(pid), pid) {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p))
		for _, thread := range threads {
			text, err := os.ReadFile(thread)
			if err != nil {
				continue // ended meanwhile
			}
			first, _, _ := strings.Cut(string(text), " ")
			ns, err := strconv.ParseInt(first, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", thread, err)
			}
			all += time.Duration(ns)
			seen++
		}
	}
	if seen == 0 {
		return 0, fmt.Errorf("process %d has no threads: it ended, or the kernel keeps no schedstat", pid)
	}
	return all, nil
}

// children returns the processes below a process.
func children(pid int) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				pids = append(append(pids, child), children(child)...)
			}
		}
	}
	return pids
}

// machineBusy returns the CPU time that anything has used on this machine, the
// hypervisor's share for others (steal) included.
func machineBusy() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	fields := strings.Fields(string(line)) // cpu user nice system idle iowait irq softirq steal guest guest_nice
	if len(fields) < 9 {
		return 0, errors.New("/proc/stat has no line for all CPUs")
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// usage is what a round took.
type usage struct {
	server time.Duration // CPU time of the server
	others float64       // CPUs that neither the servers nor the load used
}

// meter measures the processes that belong to a round.
type meter struct {
	server, load, busy time.Duration
	begin              time.Time
	pid                int
}

func startMeter(pid int) (*meter, error) {
	m := &meter{pid: pid, begin: time.Now()}
	return m, m.read()
}

func (m *meter) read() (err error) {
	var errs [3]error
	m.server, errs[0] = cpuOf(m.pid)
	m.load, errs[1] = cpuOf(os.Getpid()) // servers are children, and idle but for the one
	m.busy, errs[2] = machineBusy()
	return errors.Join(errs[:]...)
}

// stop returns what was used since the start. What a load used that is no
// process any more is not the others'.
func (m *meter) stop(ended time.Duration) (usage, error) {
	before := *m
	err := m.read()
	took := time.Since(m.begin)
	others := (m.busy - before.busy) - (m.load - before.load) - ended
	return usage{server: m.server - before.server, others: max(0, others.Seconds()/took.Seconds())}, err
}
