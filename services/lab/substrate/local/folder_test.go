package local

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A sweep ends what a dead lab left, and touches nothing else.
func TestSweep(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	make := func(name, owner string) *folder {
		f := &folder{path: filepath.Join(tmp, name)}
		if err := os.Mkdir(f.path, 0o700); err != nil {
			t.Fatal(err)
		}
		if owner != "" {
			if err := f.note("owner", owner); err != nil {
				t.Fatal(err)
			}
		}
		return f
	}
	alive := fmt.Sprintf("%d %s", os.Getpid(), identity(os.Getpid()))
	dead := make("warren-1-dead", fmt.Sprintf("%d %s", os.Getpid(), "another-boot:1"))
	used := make("warren-2-used", alive)
	kept := make("warren-3-kept", "")
	other := make("something-else", "1 nobody:1")

	left, innocent := sleeper(t), sleeper(t)
	dead.remember(left.Process.Pid)
	// The pid of an innocent process, as it was used before.
	if err := dead.note("children", fmt.Sprintf("%d %s", innocent.Process.Pid, "another-boot:1")); err != nil {
		t.Fatal(err)
	}

	swept, err := Sweep()
	if err != nil || !slices.Equal(swept, []string{dead.path}) {
		t.Fatalf("Sweep: %v, %v; want %s alone", swept, err, dead.path)
	}
	for _, f := range []*folder{used, kept, other} {
		if _, err := os.Stat(f.path); err != nil {
			t.Errorf("%v, want it left alone", err)
		}
	}
	_ = left.Wait()
	if status, _ := left.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Errorf("left process: %v, want it killed", left.ProcessState)
	}
	if err := innocent.Process.Signal(syscall.Signal(0)); err != nil || identity(innocent.Process.Pid) == "" {
		t.Errorf("innocent process: %v, want it alive", err)
	}
}

func TestFolderNotWritable(t *testing.T) {
	t.Setenv("TMPDIR", "/nonexistent")
	_, err := New(t.Context(), Options{})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("New: %v, want it to name /nonexistent", err)
	}
}

// identity tells this process from another with its pid.
func TestIdentity(t *testing.T) {
	mine := identity(os.Getpid())
	if mine == "" || mine != identity(os.Getpid()) {
		t.Fatalf("identity of this process: %q, want the same each time", mine)
	}
	if parent := identity(os.Getppid()); parent == mine {
		t.Errorf("the parent's identity is ours: %q", parent)
	}
	if got := identity(1 << 30); got != "" {
		t.Errorf("identity of a pid that cannot be: %q, want none", got)
	}
}

func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}
