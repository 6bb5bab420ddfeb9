//go:build linux

package main

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// meter tells how much of the machine others used while it ran.
type meter struct {
	begin     time.Time
	own, busy time.Duration
}

func startMeter() (meter, error) {
	own, busy, err := cpu()
	return meter{time.Now(), own, busy}, err
}

// others is how many CPUs anything but this process has used since the start.
func (m meter) others() (float64, error) {
	own, busy, err := cpu()
	return max(0, (busy-m.busy-own+m.own).Seconds()/time.Since(m.begin).Seconds()), err
}

// cpu is the CPU time that this process, and that everything on this machine has used.
func cpu() (own, busy time.Duration, err error) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, 0, err
	}
	own = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	fields := strings.Fields(string(line)) // cpu user nice system idle iowait irq softirq steal …
	if len(fields) < 9 {
		return 0, 0, errors.New("/proc/stat has no line for all CPUs")
	}
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		ticks, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, 0, err
		}
		busy += time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100 on Linux
	}
	return own, busy, nil
}
