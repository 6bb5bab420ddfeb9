//go:build !linux

package dnsserver

import "syscall"

// socketOptions does nothing where path MTU discovery has no such switch.
func socketOptions(string, string, syscall.RawConn) error { return nil }
