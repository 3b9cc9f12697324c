package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRepository(t *testing.T) {
	root, err := Repository()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "services", "lab", "internal", "host", "host_test.go")); err != nil {
		t.Errorf("Repository() = %s, which does not hold this test", root)
	}
	t.Chdir("/")
	if root, err := Repository(); err == nil {
		t.Errorf("Repository() in / with the program elsewhere = %s, want an error", root)
	}
}

func TestDiskFree(t *testing.T) {
	if free, err := DiskFree(t.TempDir()); err != nil || free <= 0 {
		t.Errorf("DiskFree of a temporary folder = %d, %v", free, err)
	}
	if _, err := DiskFree("/nowhere/at/all"); err == nil {
		t.Error("DiskFree of a folder that is not there: no error")
	}
}
