package main

import (
	"bytes"
	"encoding/json"
	"testing"
)

// What the Kubernetes half needs is missing only for who wants it.
func TestDoctorOnKind(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // no docker
	for on, want := range map[string]string{"local": stateAbsent, "kind": stateMissing} {
		var out bytes.Buffer
		root := rootCommand()
		root.SetOut(&out)
		root.SetArgs([]string{"doctor", "--output", "json", "--on", on})
		_ = root.ExecuteContext(t.Context()) // there is no Go either
		var checks []check
		if err := json.Unmarshal(out.Bytes(), &checks); err != nil {
			t.Fatalf("%v: %s", err, out.String())
		}
		got := ""
		for _, c := range checks {
			if c.Name == "kind" {
				got = c.State
			}
		}
		if got != want {
			t.Errorf("doctor --on %s: kind is %q, want %q", on, got, want)
		}
	}
	root := rootCommand()
	root.SetArgs([]string{"doctor", "--on", "cluster"})
	root.SetOut(&bytes.Buffer{})
	root.SetErr(&bytes.Buffer{})
	if err := root.ExecuteContext(t.Context()); exitStatus(err) != exitUsage {
		t.Errorf("doctor --on cluster: status %d (%v), want %d", exitStatus(err), err, exitUsage)
	}
}
