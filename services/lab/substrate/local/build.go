package local

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"warren.example/lab/internal/host"
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
		root, err := host.Repository()
		if err != nil {
			return "", fmt.Errorf("source of %s: %w or give --bin-dir", kind, err)
		}
		if err := os.MkdirAll(b.dir, 0o700); err != nil {
			return "", fmt.Errorf("build %s: %w", kind, err)
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-o", path, ".")
		cmd.Dir = filepath.Join(root, "services", string(kind))
		cmd.Env = append(os.Environ(), "GOTMPDIR="+b.dir) // a build that is cut off leaves its folder
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
