package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// spawner starts every child from one thread that never ends: the kernel sends
// the parent-death signal when the *thread* that forked is gone, and Go ends
// threads as it likes.
var spawner = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// child is a process that we started, in a group of its own so that Ctrl-C on
// the terminal reaches the lab alone, which then ends its children in order.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it is gone and its output is read to the end
	err  error         // of Wait; read after done
}

// spawn starts cmd. The kernel ends it with the signal onOurDeath if the lab
// dies without ending it. Folder f remembers it for a later sweep.
func spawn(f *folder, cmd *exec.Cmd, onOurDeath syscall.Signal) (*child, error) {
	cmd.SysProcAttr = childAttributes(onOurDeath)
	// Should a grandchild hold the pipes open, do not wait for it for ever.
	cmd.WaitDelay = 2 * time.Second
	started := make(chan error)
	spawner() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	c := &child{cmd: cmd, done: make(chan struct{})}
	f.remember(cmd.Process.Pid)
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// signal is sent to the process alone; a process that is gone is no error.
func (c *child) signal(s syscall.Signal) error {
	if err := c.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %v to process %d: %w", s, c.pid(), err)
	}
	return nil
}

// stopped returns when no thread of a process runs any more: SIGSTOP takes
// effect in each of them by itself, some time after kill has returned.
func stopped(ctx context.Context, pid int) error {
	for {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		running := slices.ContainsFunc(threads, func(thread string) bool {
			stat, _ := os.ReadFile(thread)
			_, state, ok := strings.Cut(string(stat), ") ")
			return ok && !strings.ContainsAny(state[:1], "TZX")
		})
		if !running {
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("process %d runs on after SIGSTOP: %w", pid, ctx.Err())
		}
	}
}

// kill ends the process and what is left of its group, and waits until both
// it and its output are gone.
func (c *child) kill() {
	_ = c.signal(syscall.SIGKILL)
	_ = syscall.Kill(-c.pid(), syscall.SIGKILL)
	<-c.done
}

// gone says whether the process has ended.
func (c *child) gone() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// stop asks a process to end and insists after grace. A stopped process would
// not see SIGTERM, hence SIGCONT.
func (c *child) stop(grace time.Duration) {
	_ = c.signal(syscall.SIGTERM)
	_ = c.signal(syscall.SIGCONT)
	select {
	case <-c.done:
	case <-time.After(grace):
	}
	c.kill()
}
