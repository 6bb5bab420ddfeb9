//go:build !linux

package tunnel

import (
	"fmt"
	"runtime"
)

func openKernel(*Config) (platform, error) {
	return nil, fmt.Errorf("%w on %s", errUnavailable, runtime.GOOS)
}

func openTUN(*Config) (platform, error) {
	return nil, fmt.Errorf("%w on %s", errUnavailable, runtime.GOOS)
}
