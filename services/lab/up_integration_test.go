//go:build integration

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// However lab up ends, nothing of it stays: the temporary folder that it was
// given is empty and no process names it.
func TestUpLeavesNothing(t *testing.T) {
	lab := filepath.Join(t.TempDir(), "lab")
	if out, err := exec.Command("go", "build", "-o", lab, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	cases := map[string]struct {
		after  string // this line of its output
		signal syscall.Signal
		status int
	}{
		"interrupted while the broker starts": {"starting 1 node", syscall.SIGINT, exitSetup},
		"interrupted while services start":    {"topology    ready", syscall.SIGTERM, exitSetup},
		"ended by Ctrl-C":                     {"Ctrl-C here", syscall.SIGINT, exitHeld},
		"terminal closed":                     {"Ctrl-C here", syscall.SIGHUP, exitHeld},
		"killed":                              {"Ctrl-C here", syscall.SIGKILL, -1},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			tmp := t.TempDir()
			cmd := exec.Command(lab, "up", "--servers", "1", "--broker", kind())
			cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = cmd.Stdout
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			var seen []string
			found := false
			for lines := bufio.NewScanner(out); lines.Scan(); {
				seen = append(seen, lines.Text())
				if strings.Contains(lines.Text(), tc.after) && !found {
					found = true
					if err := cmd.Process.Signal(tc.signal); err != nil {
						t.Fatal(err)
					}
				}
			}
			_ = cmd.Wait()
			if !found {
				t.Fatalf("lab up never said %q:\n%s", tc.after, strings.Join(seen, "\n"))
			}
			if got := cmd.ProcessState.ExitCode(); got != tc.status {
				t.Errorf("exit status %d, want %d:\n%s", got, tc.status, strings.Join(seen, "\n"))
			}
			if tc.signal == syscall.SIGKILL {
				// The kernel ends its children; the folder waits for the next lab.
				down := exec.Command(lab, "down")
				down.Env = cmd.Env
				if out, err := down.CombinedOutput(); err != nil || !strings.Contains(string(out), "left by a lab that was killed") {
					t.Errorf("lab down: %v: %s", err, out)
				}
			}
			waitUntilGone(t, tmp)
		})
	}
}

// lab up --detach returns when all is ready, and lab down ends it.
func TestDetached(t *testing.T) {
	lab := filepath.Join(t.TempDir(), "lab")
	if out, err := exec.Command("go", "build", "-o", lab, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	tmp := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(lab, args...)
		cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("lab %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	text := run("up", "--detach", "--servers", "1", "--broker", kind())
	t.Cleanup(func() {
		cmd := exec.Command(lab, "down")
		cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
		_ = cmd.Run()
	})
	_, paste, _ := strings.Cut(text, "Call it:\n")
	paste, _, _ = strings.Cut(paste, "Dead letters")
	out, err := exec.Command("sh", "-c", paste).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "0.3" {
		t.Errorf("what lab up printed:\n%s\ngave %q, %v; want 0.3", paste, out, err)
	}
	if out := run("down"); !strings.Contains(out, "ended lab") {
		t.Errorf("lab down: %s, want a lab ended", out)
	}
	waitUntilGone(t, tmp)
	if out := run("down"); !strings.Contains(out, "nothing is up") {
		t.Errorf("second lab down: %s, want nothing is up", out)
	}
}

func kind() string {
	if k := os.Getenv("LAB_BROKER"); k != "" {
		return k
	}
	return "auto"
}

// waitUntilGone wants the folder empty and nobody to name it.
func waitUntilGone(t *testing.T, dir string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		left := naming(t, dir)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, filepath.Join(dir, e.Name()))
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left behind: %v", left)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// naming lists the processes with text in their arguments or environment,
// except this test.
func naming(t *testing.T, text string) []string {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		if e == fmt.Sprintf("/proc/%d", os.Getpid()) {
			continue
		}
		args, _ := os.ReadFile(e + "/cmdline")
		env, _ := os.ReadFile(e + "/environ")
		if strings.Contains(string(args), text) || strings.Contains(string(env), text) {
			found = append(found, e+" "+strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return found
}
