package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"warren.example/lab/scenario"
	"warren.example/messaging/event"
)

// execute runs the lab as the shell would, and returns its exit status.
func execute(t *testing.T, args ...string) (status int, stdout, said string) {
	t.Helper()
	root := rootCommand()
	var out, errs bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return exitStatus(err), out.String(), oneLine(err)
}

func TestWrongCommandLinesStartNothing(t *testing.T) {
	for line, want := range map[string]string{
		"run":                      "no scenario",
		"run poisson":              `"poisson": unknown; there are [killed-before-ack`,
		"run --all poison":         "one or the other",
		"run poison --output yaml": "--output yaml",
		"run poison --count 0":     "--count 0",
		"run poison --parallel 0":  "--parallel 0",
		"run poison --parallel 2 --amqp-url amqp://u:p@h/":            "--parallel 2: needs --management-url",
		"run poison --on cloud":                                       "--on cloud: want local, kind or cluster",
		"run poison --on cluster":                                     "--on cluster: needs --context",
		"run poison --on kind --context x":                            "--context: only with --on cluster",
		"run poison --on kind --broker url --amqp-url amqp://u:p@h/v": "only with --on local",
		"run poison --reuse":                                          "--reuse: only with --on kind",
		"run poison --on kind --nodes 2":                              "2",
		"run poison --on cluster --context x --release -":             "release",
		"up --on cluster --context x --detach":                        "--detach: only with --on local or kind",
		"down --context x":                                            "--context: only with --on cluster",
		"down --on kind --namespace A":                                "namespace",
		"list --output yaml":                                          "--output yaml",
		"list poison":                                                 "poison",
		"explain":                                                     "1 arg",
		"explain x --ledger /no/such/file":                            "/no/such/file",
	} {
		status, _, said := execute(t, strings.Fields(line)...)
		if status != exitUsage || !strings.Contains(said, want) {
			t.Errorf("lab %s: got status %d, %q, want %d and %q", line, status, said, exitUsage, want)
		}
	}
}

func TestListNamesEveryScenario(t *testing.T) {
	for _, output := range []string{"table", "json"} {
		status, out, said := execute(t, "list", "--output", output)
		if status != exitHeld {
			t.Errorf("list --output %s: got status %d, %s", output, status, said)
		}
		for _, s := range scenario.All() {
			if !strings.Contains(out, s.Name) {
				t.Errorf("list --output %s lacks %s", output, s.Name)
			}
		}
	}
}

func TestTheDemoShowsFourOrMoreThatExist(t *testing.T) {
	if chosen, err := scenario.Find(shown...); err != nil || len(chosen) < 4 {
		t.Errorf("got %d scenarios, %v, want at least 4", len(chosen), err)
	}
}

func TestExplainReadsTheLastRun(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	status, _, said := execute(t, "explain", "a")
	if status != exitUsage || !strings.Contains(said, "no run is on record") {
		t.Errorf("before any run: got status %d, %q, want %d and a hint", status, said, exitUsage)
	}
	if err := os.MkdirAll(filepath.Join(cache, "warren"), 0o700); err != nil {
		t.Fatal(err)
	}
	line := `{"run":"r","instance":"client-0","seq":1,"start":1,"event":"publishing","request":"a","operation":"add"}` + "\n"
	if err := os.WriteFile(filepath.Join(cache, "warren", "last-run.jsonl"), []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, out, said := execute(t, "explain", "a"); status != exitHeld || !strings.Contains(out, "Request a (add).") {
		t.Errorf("got status %d, %q, %q, want the life of request a", status, out, said)
	}
	if status, _, said := execute(t, "explain", "b"); status != exitUsage || !strings.Contains(said, "request b: not in the ledger") {
		t.Errorf("an unknown request: got status %d, %q, want %d and its id", status, said, exitUsage)
	}
}

// The command to run something again is pasted into tickets: it must not carry
// a password.
func TestAgainKeepsPasswordsToItself(t *testing.T) {
	cmd := runCommand()
	if err := cmd.ParseFlags([]string{"--all", "--nodes", "3", "--output", "json", "--amqp-url", "amqp://u:secret@h/v"}); err != nil {
		t.Fatal(err)
	}
	got := again(cmd, "poison")
	if strings.Contains(got, "secret") || !strings.HasSuffix(got, "run poison --keep --amqp-url … --nodes=3") {
		t.Errorf("got %q, want it to end in: run poison --keep --amqp-url … --nodes=3", got)
	}
}

func TestChooseAll(t *testing.T) {
	chosen, err := choose(nil, true)
	if err != nil || len(chosen) != len(scenario.All()) || !slices.Contains(scenarioNames(), chosen[0].Name) {
		t.Errorf("got %d scenarios, %v, want all %d", len(chosen), err, len(scenario.All()))
	}
}

// What breaks the broker for all must not meet anybody; the others must meet, or
// nothing was gained.
func TestTwoAtOnceAndThenAlone(t *testing.T) {
	chosen := []scenario.Scenario{{Name: "first"}, {Name: "breaker", Alone: true}, {Name: "second"}}
	meet, others := make(chan struct{}), atomic.Int32{}
	inTurn(chosen, 2, func(i int) {
		if chosen[i].Alone {
			if others.Load() != 2 {
				t.Errorf("%s began before the others had ended", chosen[i].Name)
			}
			return
		}
		select {
		case meet <- struct{}{}:
		case <-meet:
		case <-time.After(10 * time.Second):
			t.Errorf("%s met nobody", chosen[i].Name)
		}
		others.Add(1)
	})
	var order []string
	inTurn(chosen, 1, func(i int) { order = append(order, chosen[i].Name) })
	if !slices.Equal(order, []string{"first", "breaker", "second"}) {
		t.Errorf("one at a time: got %v, want the order of the command", order)
	}
}

// Two runs at once: the ledger of the one that ends last is whole.
func TestRunsAtOnceKeepTheirLedgersApart(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	first, endFirst, err1 := keepLedger()
	second, endSecond, err2 := keepLedger()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		first(event.Line{Instance: "a"})
		second(event.Line{Instance: "b"})
	}
	if err := errors.Join(endSecond(), endFirst()); err != nil {
		t.Fatal(err)
	}
	path, err := ledgerFile()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if got := strings.Count(string(file), `"instance":"a"`); err != nil || got != 2 || strings.Contains(string(file), `"instance":"b"`) {
		t.Errorf("got %v\n%s\nwant the two lines of the run that ended last", err, file)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("got %v, want one file", left)
	}
}

// A child that went to the background itself would start another, for ever.
func TestTheChildOfADetachedLabStays(t *testing.T) {
	for _, spelt := range []string{"--detach", "--detach=true", "--detach=1", "--detach=T"} {
		cmd := upCommand()
		if err := cmd.ParseFlags(inForeground([]string{"--servers", "1", spelt})); err != nil {
			t.Fatal(err)
		}
		if detach, err := cmd.Flags().GetBool("detach"); err != nil || detach {
			t.Errorf("%s: got %t, %v, want the child in the foreground", spelt, detach, err)
		}
	}
}

func TestASettingThatWouldHaveNoEffectIsRefused(t *testing.T) {
	t.Setenv("WARREN_PREFETCH", "5")
	t.Setenv("WARREN_AMQP_URL", "amqp://h/v")
	for _, line := range []string{"run poison", "demo", "up"} {
		status, _, said := execute(t, strings.Fields(line)...)
		if status != exitUsage || !strings.HasPrefix(said, "WARREN_PREFETCH: ") {
			t.Errorf("lab %s: got status %d, %q, want %d and the variable", line, status, said, exitUsage)
		}
	}
}
