// Package host says what this machine has: the repository, memory and disk.
package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Repository finds the folder of the repository above the working folder or,
// for an installed lab, above the program.
func Repository() (string, error) {
	var starts []string
	if dir, err := os.Getwd(); err == nil {
		starts = append(starts, dir)
	}
	if program, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(program))
	}
	for _, dir := range starts {
		for ; ; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "services", "lab", "go.mod")); err == nil {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", fmt.Errorf("no repository, that is no services/lab/go.mod, above %s; work inside it", strings.Join(starts, " or "))
}

// MemAvailable is the memory that new processes can have, in MiB. Only Linux
// says it.
func MemAvailable() (mib int, known bool) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &mib); n == 1 {
			return mib >> 10, true
		}
	}
	return 0, false
}

// DiskFree is the room in a folder's file system, in MiB.
func DiskFree(folder string) (int, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(folder, &stat); err != nil {
		return 0, fmt.Errorf("%s: %w", folder, err)
	}
	return int(int64(stat.Bavail) * int64(stat.Bsize) >> 20), nil
}
