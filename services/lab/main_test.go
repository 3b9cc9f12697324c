package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"warren.example/lab/substrate"
)

func TestExitStatus(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want int
		line string
	}{
		"held":                {nil, exitHeld, ""},
		"verdict, all said":   {&exitError{status: exitBroken}, exitBroken, ""},
		"usage":               {usageError("--nodes %d: want 1 or 3", 2), exitUsage, "--nodes 2: want 1 or 3"},
		"set-up":              {setupError(errors.New("no broker")), exitSetup, "no broker"},
		"any other error":     {errors.New("odd"), exitSetup, "odd"},
		"two errors":          {errors.Join(errors.New("one"), errors.New("two")), exitSetup, "one; two"},
		"interrupted":         {setupError(fmt.Errorf("broker: %w", context.Canceled)), exitSetup, "interrupted"},
		"wrapped exit status": {fmt.Errorf("run: %w", usageError("no")), exitUsage, "run: no"},
	} {
		if got := exitStatus(tc.err); got != tc.want {
			t.Errorf("%s: status %d, want %d", name, got, tc.want)
		}
		if got := oneLine(tc.err); got != tc.line {
			t.Errorf("%s: line %q, want %q", name, got, tc.line)
		}
	}
}

// What cannot be understood is one line and status 64, before anything is
// started.
func TestUsage(t *testing.T) {
	t.Setenv("WARREN_AMQP_URL", "")
	for _, args := range [][]string{
		{"nope"}, {"--nope"},
		{"up", "extra"}, {"up", "--nope"}, {"up", "--nodes", "2"}, {"up", "--nodes", "two"}, {"up", "--servers", "0"},
		{"down", "extra"},
		{"broker"}, {"broker", "--broker", "cloud", "--", "true"},
		{"doctor", "--output", "xml"}, {"doctor", "extra"},
		{"topology"}, {"topology", "nope"}, {"topology", "apply"}, {"topology", "apply", "--amqp-url", "x", "--timeout", "0s"},
		{"topology", "apply", "--amqp-url", "x", "--wait", "-1s"}, {"topology", "apply", "--amqp-url", "x", "--users", "/tmp"},
		{"wait", "extra"}, {"check", "extra"}, {"check", "--timeout", "0s"}, {"check", "--auditor-url", "auditor"}, {"check", "--token-file", "/nowhere"},
		{"list", "extra"}, {"run"}, {"run", "--all", "one"}, {"run", "no-such-scenario"}, {"explain"},
		{"soak", "extra"}, {"soak", "--for", "0s"}, {"soak", "--seed", "-1"}, {"soak", "--nodes", "2"}, {"replay"}, {"replay", "/nowhere"},
	} {
		root := rootCommand()
		root.SetArgs(args)
		root.SetOut(&bytes.Buffer{})
		root.SetErr(&bytes.Buffer{})
		err := root.ExecuteContext(t.Context())
		if got := exitStatus(err); got != exitUsage {
			t.Errorf("lab %s: status %d (%v), want %d", strings.Join(args, " "), got, err, exitUsage)
		}
		if line := oneLine(err); line == "" || strings.Contains(line, "\n") {
			t.Errorf("lab %s: said %q, want one line", strings.Join(args, " "), line)
		}
	}
}

// An unreachable broker is one line without the password, and status 3.
func TestUnreachableBroker(t *testing.T) {
	root := rootCommand()
	root.SetArgs([]string{"topology", "apply", "--amqp-url", "amqp://topology:S3cr3t@127.0.0.1:1/calc"})
	err := root.ExecuteContext(t.Context())
	line := oneLine(err)
	if exitStatus(err) != exitSetup || !strings.Contains(line, "127.0.0.1:1") || strings.Contains(line, "S3cr3t") {
		t.Errorf("status %d, %q; want %d and the address, not the password", exitStatus(err), line, exitSetup)
	}
}

func TestOlderGo(t *testing.T) {
	for found, want := range map[string]bool{
		"go1.25.9": true, "go1.26": false, "go1.26.8": false, "go1.27rc1": false, "go2.0": false, "devel +abc": false,
	} {
		if got := olderGo(found, "go1.26"); got != want {
			t.Errorf("%s older than go1.26: %v, want %v", found, got, want)
		}
	}
}

// The doctor's two sources of a broker: one is enough, none is not.
func TestDoctorNeedsOneBroker(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // neither docker nor go
	var out bytes.Buffer
	root := rootCommand()
	root.SetOut(&out)
	root.SetArgs([]string{"doctor", "--output", "json"})
	if err := root.ExecuteContext(t.Context()); exitStatus(err) != exitSetup {
		t.Errorf("without Go: status %d (%v), want %d", exitStatus(err), err, exitSetup)
	}
	var checks []check
	if err := json.Unmarshal(out.Bytes(), &checks); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	byName := map[string]check{}
	for _, c := range checks {
		byName[c.Name] = c
		if (c.State == stateOK) != (c.Mend == "") {
			t.Errorf("%s: state %s with mend %q; want a mend for all that is not ok", c.Name, c.State, c.Mend)
		}
	}
	if c := byName["Go"]; c.State != stateMissing {
		t.Errorf("Go: %s, want %s", c.State, stateMissing)
	}
	server, container := byName["rabbitmq-server"], byName["container"]
	if server.State == stateOK && container.State != stateAbsent || server.State == stateMissing && container.State != stateMissing {
		t.Errorf("rabbitmq-server is %s and the container %s", server.State, container.State)
	}
}

func TestInstallKeepsTheSystemBrokerAway(t *testing.T) {
	mend := fmt.Sprintf(installServer, "sudo ")
	for _, part := range []string{"sudo tee /usr/sbin/policy-rc.d", "exit 101", "apt-get install --no-install-recommends --yes rabbitmq-server", "rm /usr/sbin/policy-rc.d"} {
		if !strings.Contains(mend, part) {
			t.Errorf("%s: want %q in it", mend, part)
		}
	}
}

// recorder is a broker that notes what it is asked; the real one is under the
// integration tests.
type recorder struct {
	substrate.Broker
	asked []string
}

func (r *recorder) note(what string, node int) error {
	r.asked = append(r.asked, fmt.Sprint(what, node))
	if node > 2 {
		return errors.New("no such node")
	}
	return nil
}

func (r *recorder) Crash(_ context.Context, n int) error  { return r.note("crash ", n) }
func (r *recorder) Start(_ context.Context, n int) error  { return r.note("start ", n) }
func (r *recorder) Pause(_ context.Context, n int) error  { return r.note("pause ", n) }
func (r *recorder) Resume(_ context.Context, n int) error { return r.note("resume ", n) }
func (r *recorder) Command(_ context.Context, n int, args ...string) ([]byte, error) {
	return []byte("done"), r.note(strings.Join(args, ",")+" ", n)
}

func TestControl(t *testing.T) {
	for _, tc := range []struct {
		path, body, asked string
		status            int
	}{
		{"/crash", "", "crash 0", 200},
		{"/start?node=2", "", "start 2", 200},
		{"/pause?node=1", "", "pause 1", 200},
		{"/resume", "", "resume 0", 200},
		{"/ctl?node=1", `["set_vm_memory_high_watermark","0"]`, "set_vm_memory_high_watermark,0 1", 200},
		{"/ctl", `"list_queues"`, "", 500},
		{"/crash?node=9", "", "crash 9", 500},
		{"/crash?node=x", "", "", 400},
		{"/reboot", "", "", 404},
	} {
		r := &recorder{}
		w := httptest.NewRecorder()
		control(r).ServeHTTP(w, httptest.NewRequest(http.MethodPost, tc.path, strings.NewReader(tc.body)))
		if got := strings.Join(r.asked, " "); w.Code != tc.status || got != tc.asked {
			t.Errorf("POST %s: status %d, asked %q; want %d, %q", tc.path, w.Code, got, tc.status, tc.asked)
		}
	}
}
