package local

import (
	"context"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestStoppedWaitsForEveryThread(t *testing.T) {
	cmd := exec.Command("sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	brief, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := stopped(brief, cmd.Process.Pid); err == nil {
		t.Error("a process that runs counts as stopped")
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := stopped(t.Context(), cmd.Process.Pid); err != nil {
		t.Error(err)
	}
}
