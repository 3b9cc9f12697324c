package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"warren.example/lab/cluster"
	"warren.example/lab/internal/host"
	"warren.example/lab/substrate/local"
	"warren.example/lab/substrate/vhost"
)

// check is one line of the doctor's report.
type check struct {
	Name  string `json:"name"`
	State string `json:"state"`          // ok, missing, or absent: not there and not needed
	Found string `json:"found"`          // what there is, or why not
	Mend  string `json:"mend,omitempty"` // the command that mends it
	Note  string `json:"note,omitempty"`
}

const (
	stateOK      = "ok"
	stateMissing = "missing"
	stateAbsent  = "absent"
)

func doctorCommand() *cobra.Command {
	var output, on string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is missing on this machine and the command that mends it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError("--output %s: want table or json", output)
			}
			if on != "local" && on != "kind" {
				return usageError("--on %s: want local or kind", on)
			}
			checks := examine(cmd.Context(), on == "kind")
			if err := printChecks(cmd.OutOrStdout(), output, checks); err != nil {
				return setupError(err)
			}
			for _, c := range checks {
				if c.State == stateMissing {
					return &exitError{status: exitSetup}
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&output, "output", "table", "table or json")
	cmd.Flags().StringVar(&on, "on", "local", "what is needed: local (a broker and processes), or kind (a Kubernetes cluster as well)")
	return cmd
}

func examine(ctx context.Context, onKind bool) []check {
	checks := []check{checkGo(ctx)}
	checks = append(checks, checkBrokers(ctx)...)
	checks = append(checks, checkPorts(), checkFolder(), checkMemory())
	return append(checks, checkKind(ctx, onKind)...)
}

// checkKind looks at what a kind cluster needs.
func checkKind(ctx context.Context, needed bool) []check {
	var checks []check
	for _, found := range cluster.Examine(ctx) {
		c := check{Name: found.Name, State: stateOK, Found: found.Found}
		if !found.OK {
			c.State, c.Mend = stateMissing, found.Mend
			if !needed {
				c.State, c.Note = stateAbsent, "not needed without --on kind"
			}
		}
		checks = append(checks, c)
	}
	return checks
}

func checkGo(ctx context.Context) check {
	const need = "go1.26"
	c := check{Name: "Go", Mend: "install Go 1.26 or newer: https://go.dev/doc/install"}
	out, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	c.Found = strings.TrimSpace(string(out))
	switch {
	case err != nil:
		c.State, c.Found = stateMissing, "no go on the PATH"
	case olderGo(c.Found, need):
		c.State = stateMissing
	default:
		c.State, c.Mend = stateOK, ""
	}
	return c
}

// olderGo compares go1.22.3 with go1.26; a development version is new enough.
func olderGo(found, need string) bool {
	var major, minor, wantMajor, wantMinor int
	if n, _ := fmt.Sscanf(found, "go%d.%d", &major, &minor); n != 2 {
		return false
	}
	_, _ = fmt.Sscanf(need, "go%d.%d", &wantMajor, &wantMinor)
	return major < wantMajor || major == wantMajor && minor < wantMinor
}

// checkBrokers: an installed RabbitMQ or a container will do.
func checkBrokers(ctx context.Context) []check {
	server, container := checkServer(), checkContainer(ctx)
	switch {
	case server.State == stateOK && container.State == stateMissing:
		container.State, container.Note = stateAbsent, "not needed: there is a rabbitmq-server"
	case container.State == stateOK && server.State == stateMissing:
		server.State, server.Note = stateAbsent, "not needed: there is a container"
	}
	return []check{server, container}
}

// installServer keeps the package from starting a system broker, which would
// take the default ports for ever: policy-rc.d forbids it meanwhile.
const installServer = `printf '#!/bin/sh\nexit 101\n' | %[1]stee /usr/sbin/policy-rc.d >/dev/null && %[1]schmod 755 /usr/sbin/policy-rc.d && %[1]sapt-get install --no-install-recommends --yes rabbitmq-server; %[1]srm /usr/sbin/policy-rc.d`

func checkServer() check {
	c := check{Name: "rabbitmq-server", State: stateMissing, Mend: fmt.Sprintf(installServer, sudo())}
	if _, err := os.Stat("/usr/sbin/policy-rc.d"); err == nil {
		// Somebody's policy, which must stay; it forbids the start already or is meant not to.
		c.Mend = sudo() + "apt-get install --no-install-recommends --yes rabbitmq-server"
	}
	dir, version, err := local.FindServer()
	if err != nil {
		c.Found = err.Error()
		if errors.Is(err, vhost.ErrTooOld) {
			c.Mend = "use a container, or RabbitMQ's own packages: https://www.rabbitmq.com/docs/install-debian"
		}
		return c
	}
	c.State, c.Mend, c.Found = stateOK, "", "in "+dir
	if version.Major > 0 { // else it is not known before it runs
		c.Found = version.String() + " " + c.Found
	}
	return c
}

func checkContainer(ctx context.Context) check {
	c := check{Name: "container", State: stateMissing}
	engine, err := local.FindEngine(ctx)
	if err != nil {
		c.Found, c.Mend = err.Error(), sudo()+"apt-get install --no-install-recommends --yes docker.io"
		return c
	}
	for _, image := range local.DefaultImages {
		if local.HasImage(ctx, image) {
			c.State, c.Found = stateOK, fmt.Sprintf("Docker %s with %s", engine, image)
			return c
		}
	}
	c.Found = fmt.Sprintf("Docker %s, but none of %s", engine, strings.Join(local.DefaultImages, ", "))
	c.Mend = "docker pull " + local.DefaultImages[len(local.DefaultImages)-1]
	return c
}

func checkPorts() check {
	port, err := local.FreePort()
	if err != nil {
		return check{Name: "ports", State: stateMissing, Found: err.Error(), Mend: "see what listens: ss -ltnp"}
	}
	return check{Name: "ports", State: stateOK, Found: fmt.Sprintf("127.0.0.1:%d and others are free", port)}
}

func checkFolder() check {
	const need = 500 // MiB
	c := check{Name: "folder", State: stateMissing, Mend: "export TMPDIR=/a/folder/with/room"}
	dir, err := os.MkdirTemp("", "lab-doctor-")
	if err != nil {
		c.Found = err.Error()
		return c
	}
	defer os.RemoveAll(dir)
	free, err := host.DiskFree(dir)
	if err != nil {
		c.Found = err.Error()
		return c
	}
	c.Found = fmt.Sprintf("%s is writable, %d MiB free", os.TempDir(), free)
	if free < need {
		c.Found += fmt.Sprintf(", need %d", need)
		return c
	}
	c.State, c.Mend = stateOK, ""
	return c
}

func checkMemory() check {
	const need = 800 // MiB: a broker, and 400 for everything else
	c := check{Name: "memory", State: stateOK}
	available, known := host.MemAvailable()
	if !known {
		c.Found = "unknown on " + runtime.GOOS
		return c
	}
	c.Found = fmt.Sprintf("%d MiB available", available)
	if available < need {
		c.State, c.Mend = stateMissing, fmt.Sprintf("end something: %d MiB are needed", need)
	}
	return c
}

func sudo() string {
	if os.Getuid() == 0 {
		return ""
	}
	return "sudo "
}

func printChecks(out io.Writer, format string, checks []check) error {
	if format == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(checks)
	}
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"check", "state", "found"})
	for _, c := range checks {
		found := c.Found
		if c.Note != "" {
			found += " (" + c.Note + ")"
		}
		t.AppendRow(table.Row{c.Name, c.State, found})
	}
	if _, err := fmt.Fprintln(out, t.Render()); err != nil {
		return err
	}
	for _, c := range checks { // below the table, so that they can be pasted
		if c.State == stateMissing {
			fmt.Fprintf(out, "\n%s:\n  %s\n", c.Name, c.Mend)
		}
	}
	return nil
}
