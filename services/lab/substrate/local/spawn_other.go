//go:build !linux

package local

import "syscall"

// childAttributes: other systems have no parent-death signal; a lab that is
// killed by SIGKILL leaves its children there.
func childAttributes(syscall.Signal) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// identity is unknown, so that nothing is ever swept here.
func identity(int) string { return "" }
