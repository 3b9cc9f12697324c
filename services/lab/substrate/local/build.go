package local

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"warren.example/lab/substrate"
)

// binaries are the services' programs, each built when it is first started.
type binaries struct {
	dir   string // where they are, or will be
	ready bool   // they are there already: --bin-dir
	mu    sync.Mutex
	built map[substrate.Kind]bool
}

func (b *binaries) path(ctx context.Context, kind substrate.Kind) (string, error) {
	path := filepath.Join(b.dir, string(kind))
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.built[kind] {
		return path, nil
	}
	if !b.ready {
		source, err := serviceFolder(kind)
		if err != nil {
			return "", err
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-o", path, ".")
		cmd.Dir = source
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", kind, err, out)
		}
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("program of %s: %w", kind, err)
	}
	if b.built == nil {
		b.built = map[substrate.Kind]bool{}
	}
	b.built[kind] = true
	return path, nil
}

// serviceFolder finds a service's source above the working folder or, for an
// installed lab, above the program.
func serviceFolder(kind substrate.Kind) (string, error) {
	var starts []string
	if dir, err := os.Getwd(); err == nil {
		starts = append(starts, dir)
	}
	if program, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(program))
	}
	for _, dir := range starts {
		for ; ; dir = filepath.Dir(dir) {
			source := filepath.Join(dir, "services", string(kind))
			if _, err := os.Stat(filepath.Join(source, "go.mod")); err == nil {
				return source, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", fmt.Errorf("source of %s: no services/%s above %v; work inside the repository or give --bin-dir", kind, kind, starts)
}
