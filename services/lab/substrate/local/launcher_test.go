package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"warren.example/messaging/topology"
)

// Where packages put RabbitMQ, and what that says about its version.
func TestInstalledVersion(t *testing.T) {
	for name, tc := range map[string]struct {
		folders []string
		scripts string
		want    string // empty: not known
	}{
		"Debian":          {[]string{"rabbitmq/bin", "rabbitmq/lib/rabbitmq_server-3.10.8"}, "rabbitmq/bin", "3.10.8"},
		"generic archive": {[]string{"rabbitmq_server-4.3.6/sbin"}, "rabbitmq_server-4.3.6/sbin", "4.3.6"},
		"another":         {[]string{"opt/broker/sbin"}, "opt/broker/sbin", ""},
	} {
		root := t.TempDir()
		for _, f := range tc.folders {
			if err := os.MkdirAll(filepath.Join(root, f), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		v, known := installedVersion(filepath.Join(root, tc.scripts))
		if known != (tc.want != "") || known && v.String() != tc.want {
			t.Errorf("%s: %v, %v; want %q", name, v, known, tc.want)
		}
	}
}

// An old broker is refused before it is started, and the error names both
// what there is and what is needed.
func TestOldServerIsRefused(t *testing.T) {
	root := t.TempDir()
	scripts := filepath.Join(root, "rabbitmq_server-3.9.13", "sbin")
	if err := os.MkdirAll(scripts, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(scripts, "rabbitmq-server"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", scripts)
	dir, v, err := FindServer()
	if dir == scripts || v == (topology.Version{Major: 3, Minor: 9, Patch: 13}) {
		t.Errorf("FindServer: %s, %v, %v; want 3.9.13 refused", dir, v, err)
	}
	if err != nil && !strings.Contains(err.Error(), "3.9.13: too old, need 3.10") {
		t.Errorf("FindServer: %v, want both versions named", err)
	}
}
