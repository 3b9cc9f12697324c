package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// folder is where a run keeps all that it writes. It also remembers what was
// started, so that a later lab can sweep up after one that was killed:
//
//	owner       the lab's pid and identity
//	children    a line "pid identity" for each process
//	containers  a line for each container's name
type folder struct {
	path string
	mu   sync.Mutex
}

const folderPrefix = "warren-"

// newFolder makes the run's folder and sweeps those of dead labs.
func newFolder() (*folder, error) {
	if _, err := Sweep(); err != nil {
		return nil, err
	}
	parent, err := filepath.Abs(os.TempDir())
	if err != nil {
		return nil, fmt.Errorf("run folder: %w", err)
	}
	path, err := os.MkdirTemp(parent, fmt.Sprintf("%s%d-", folderPrefix, os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("run folder: %w", err)
	}
	f := &folder{path: path}
	return f, f.note("owner", fmt.Sprintf("%d %s", os.Getpid(), identity(os.Getpid())))
}

func (f *folder) join(elem ...string) string {
	return filepath.Join(append([]string{f.path}, elem...)...)
}

// note adds a line to one of the lists.
func (f *folder) note(list, line string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	file, err := os.OpenFile(f.join(list), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("run folder: %w", err)
	}
	_, err = fmt.Fprintln(file, line)
	return errors.Join(err, file.Close())
}

// remember notes a process. A failure costs only a later sweep.
func (f *folder) remember(pid int) {
	if id := identity(pid); id != "" {
		_ = f.note("children", fmt.Sprintf("%d %s", pid, id))
	}
}

// remove deletes the folder, or, to keep it, makes it nobody's.
func (f *folder) remove(keep bool) error {
	removeContainers(f.path)
	if keep {
		return os.Remove(f.join("owner"))
	}
	return os.RemoveAll(f.path)
}

// Sweep removes what dead labs of this user left: processes, containers and
// folders. A process is ended only if it is still the one that was started.
// It returns the folders that it removed.
func Sweep() ([]string, error) {
	folders, err := runFolders()
	if err != nil {
		return nil, err
	}
	var swept []string
	for _, path := range folders {
		owner := strings.Fields(firstLine(filepath.Join(path, "owner")))
		if len(owner) != 2 || same(owner[0], owner[1]) {
			continue // kept on purpose, being made, or in use
		}
		for _, line := range lines(filepath.Join(path, "children")) {
			if pid, id, ok := strings.Cut(line, " "); ok && same(pid, id) {
				n, _ := strconv.Atoi(pid)
				_ = syscall.Kill(-n, syscall.SIGKILL)
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
		removeContainers(path)
		if err := os.RemoveAll(path); err != nil {
			return swept, fmt.Errorf("sweep: %w", err)
		}
		swept = append(swept, path)
	}
	return swept, nil
}

// removeContainers removes what a run left on the Docker engine: a client that
// is ended between creating a container and starting it leaves it there.
func removeContainers(folder string) {
	if names := lines(filepath.Join(folder, "containers")); len(names) > 0 {
		_ = exec.Command("docker", append([]string{"rm", "--force"}, names...)...).Run() // most are gone
	}
}

// runFolders lists the run folders of this user.
func runFolders() ([]string, error) {
	all, err := filepath.Glob(filepath.Join(os.TempDir(), folderPrefix+"*"))
	if err != nil {
		return nil, err
	}
	var ours []string
	for _, path := range all {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() {
			continue
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) == os.Getuid() {
			ours = append(ours, path)
		}
	}
	return ours, nil
}

// same says whether the process pid is still the one with this identity.
func same(pid, id string) bool {
	n, err := strconv.Atoi(pid)
	return err == nil && n > 1 && id != "" && identity(n) == id
}

func lines(path string) []string {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
}

func firstLine(path string) string {
	b, _ := os.ReadFile(path)
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return string(line)
}

// Lab is one that was started by `lab up` and still runs.
type Lab struct {
	PID    int
	Folder string
	Text   string // how to use it

	identity string
}

// Announce lets `lab down` find this lab, and others how to use it.
func (s *Substrate) Announce(text string) error {
	return os.WriteFile(s.folder.join("up"), []byte(text), 0o600)
}

// Running lists the labs of this user that have announced themselves.
func Running() ([]Lab, error) {
	folders, err := runFolders()
	if err != nil {
		return nil, err
	}
	var all []Lab
	for _, path := range folders {
		text, err := os.ReadFile(filepath.Join(path, "up"))
		owner := strings.Fields(firstLine(filepath.Join(path, "owner")))
		if err != nil || len(owner) != 2 || !same(owner[0], owner[1]) {
			continue
		}
		pid, _ := strconv.Atoi(owner[0])
		all = append(all, Lab{PID: pid, Folder: path, Text: string(text), identity: owner[1]})
	}
	return all, nil
}

// Stop asks a lab to end, and returns when it and its folder are gone.
func (l Lab) Stop(ctx context.Context) error {
	if err := syscall.Kill(l.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end lab %d: %w", l.PID, err)
	}
	for identity(l.PID) == l.identity {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for lab %d to end: %w", l.PID, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}
