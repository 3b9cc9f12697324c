package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"warren.example/messaging/contract"
)

// eventually waits until check finds nothing wrong.
func eventually(t *testing.T, check func() (wrong string)) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		wrong := check()
		if wrong == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s: %s", wrong)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func command(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	return commandOn(t, "", args...)
}

func commandOn(t *testing.T, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	status = execute(t.Context(), args, strings.NewReader(stdin), &out, &err)
	return status, out.String(), err.String()
}

func TestCommands(t *testing.T) {
	s, srv := newAPI(t, &wire{answer: answers(contract.Reply{Result: "0.3"}, nil)}, secret)
	mustAudit(t, s, newLetter("m"))
	mustAudit(t, s, newLetter("bell\a", func(l *DeadLetter) { l.MessageID = "n"; l.Body = []byte("\x1b[31m\a"); l.BodySize = 7 }))
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(string(secret)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := []string{"--url", srv.URL, "--token-file", file}
	for _, c := range []struct {
		args   []string
		status int
		out    string // that stdout or stderr contains
	}{
		{[]string{"list"}, 0, "1   open    1     m        expired in calc.requests"},
		{[]string{"list", "--reason", "rejected", "--output", "json"}, 0, `"dead_letters": []`},
		{[]string{"list", "--limit", "1"}, 0, "more: --after 2"},
		{[]string{"list", "--status", "shut"}, exitUsage, "status=shut: want one of"},
		{[]string{"show", "n"}, 0, `body (the first 6 of 7 bytes)  "\x1b[31m\a"`},
		{[]string{"show", "nobody"}, exitRefused, "no such dead letter: nobody"},
		{[]string{"replay", "1", "--as", "ann", "--wait", "20s"}, 0, "answered: 0.3"},
		{[]string{"replay", "1", "--as", "ann"}, exitRefused, "dead letter 1 is answered"},
		{[]string{"replay", "2", "--as", "ann"}, exitRefused, "it cannot be replayed: only 6 of its 7 bytes were kept"},
		{[]string{"discard", "2", "--as", "bob", "--reason", "only a test"}, 0, "discarded 2"},
		{[]string{"trail"}, 0, "bob                  discard  2   open       discarded  only a test"},
		{[]string{"discard", "2", "--as", "bob"}, exitUsage, `required flag(s) "reason" not set`},
		{[]string{"discard", "2", "--as", "", "--reason", "x"}, exitUsage, `--as "": want your name`},
		{[]string{"list", "--output", "yaml"}, exitUsage, "--output yaml: want text or json"},
		{[]string{"list", "extra"}, exitUsage, `unknown command "extra"`},
		{[]string{"show"}, exitUsage, "accepts 1 arg(s), received 0"},
		{[]string{"list", "--colour"}, exitUsage, "unknown flag: --colour"},
	} {
		status, stdout, stderr := command(t, append(c.args, at...)...)
		if status != c.status || !strings.Contains(stdout+stderr, c.out) {
			t.Errorf("%v: got %d\n%s%swant %d and %q", c.args, status, stdout, stderr, c.status, c.out)
		}
	}
	for name, c := range map[string]struct {
		args   []string
		status int
		out    string
	}{
		"no token":           {[]string{"list", "--url", srv.URL}, exitRefused, "Authorization: want Bearer and the token"},
		"nobody listens":     {[]string{"list", "--url", "http://127.0.0.1:1"}, exitUnreachable, "connection refused"},
		"not a URL":          {[]string{"list", "--url", "localhost:8080"}, exitUsage, "--url localhost:8080: want http://host:port"},
		"no token file":      {[]string{"list", "--url", srv.URL, "--token-file", "/nowhere"}, exitUsage, "--token-file /nowhere: no such file or directory"},
		"no such command":    {[]string{"bury", "1"}, exitUsage, `unknown command "bury"`},
		"not the auditor's":  {[]string{"list", "--url", srv.URL + "/elsewhere", "--token-file", file}, exitRefused, "answers 404 Not Found"},
		"help is no mistake": {[]string{"--help"}, 0, "Exit status: 0 done"},
	} {
		if status, stdout, stderr := command(t, c.args...); status != c.status || !strings.Contains(stdout+stderr, c.out) {
			t.Errorf("%s: got %d\n%s%swant %d and %q", name, status, stdout, stderr, c.status, c.out)
		}
	}
}

// The service refuses wrong settings before it touches anything.
func TestServiceRefusesWrongSettings(t *testing.T) {
	t.Setenv("WARREN_AMQP_URL", "amqp://dlq-auditor:hunter2@127.0.0.1:1/x")
	t.Setenv("WARREN_DATABASE", filepath.Join(t.TempDir(), "x.db"))
	for name, c := range map[string]struct{ key, value, want string }{
		"unknown":      {"WARREN_DATABSE", "x", "WARREN_DATABSE: unknown setting"},
		"not a number": {"WARREN_PREFETCH", "many", "WARREN_PREFETCH=many: not a int"},
		"out of range": {"WARREN_PREFETCH", "0", "WARREN_PREFETCH=0: want 1 to 2000; 0 would mean unlimited to the broker"},
		"open address": {"WARREN_HTTP_ADDR", ":8080", "WARREN_HTTP_TOKEN_FILE: required, because WARREN_HTTP_ADDR=:8080 can be reached from other machines"},
		"short lease":  {"WARREN_REPLAY_LEASE", "30s", "WARREN_REPLAY_LEASE=30s: want at least 5s more than WARREN_REPLAY_TIMEOUT=30s"},
		"instance":     {"WARREN_INSTANCE", "A B", "WARREN_INSTANCE=A B: want 1 to 64 of a-z, 0-9 and -"},
		"events":       {"WARREN_EVENTS", "file", "WARREN_EVENTS=file: want off or stdout"},
		"level":        {"WARREN_LOG_LEVEL", "loud", "WARREN_LOG_LEVEL=loud: want debug, info, warn or error"},
		"token file":   {"WARREN_HTTP_TOKEN_FILE", "/nowhere", "WARREN_HTTP_TOKEN_FILE=/nowhere: no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(c.key, c.value)
			status, _, stderr := command(t, "serve")
			if status != exitUsage || !strings.Contains(stderr, c.want) || strings.Contains(stderr, "hunter2") {
				t.Errorf("got %d %s\nwant %d %s", status, stderr, exitUsage, c.want)
			}
		})
	}
}

// The commands need no settings, and refuse one that is misspelt.
func TestEveryCommandRefusesAnUnknownSetting(t *testing.T) {
	_, srv := newAPI(t, &wire{}, "")
	if status, _, stderr := command(t, "list", "--url", srv.URL); status != 0 {
		t.Errorf("without any: got %d %s", status, stderr)
	}
	t.Setenv("WARREN_DATABSE", "x")
	for _, args := range [][]string{{}, {"serve"}, {"list"}, {"show", "1"}, {"replay", "1"}, {"discard", "1", "--reason", "r"}, {"trail"}, {"reconcile", "-"}} {
		status, _, stderr := command(t, args...)
		if status != exitUsage || !strings.Contains(stderr, "WARREN_DATABSE: unknown setting") {
			t.Errorf("%v: got %d %s, want %d and the variable", args, status, stderr, exitUsage)
		}
	}
}

func TestServiceRefusesATakenPort(t *testing.T) {
	_, srv := newAPI(t, &wire{}, "")
	taken := strings.TrimPrefix(srv.URL, "http://")
	t.Setenv("WARREN_AMQP_URL", "amqp://dlq-auditor:hunter2@127.0.0.1:1/x")
	t.Setenv("WARREN_DATABASE", filepath.Join(t.TempDir(), "x.db"))
	t.Setenv("WARREN_LOG_LEVEL", "error")
	t.Setenv("WARREN_HTTP_ADDR", "127.0.0.1:0")
	for _, key := range []string{"WARREN_HTTP_ADDR", "WARREN_ADMIN_ADDR"} {
		t.Run(key, func(t *testing.T) {
			t.Setenv(key, taken)
			status, _, stderr := command(t)
			if want := key + ": listen on " + taken; status != exitRefused || !strings.Contains(stderr, want) {
				t.Errorf("got %d %s\nwant %d %s", status, stderr, exitRefused, want)
			}
		})
	}
	t.Run("WARREN_DATABASE", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "no", "x.db")
		t.Setenv("WARREN_DATABASE", path)
		status, _, stderr := command(t)
		if want := "WARREN_DATABASE: open " + path; status != exitRefused || !strings.Contains(stderr, want) {
			t.Errorf("got %d %s\nwant %d %s", status, stderr, exitRefused, want)
		}
	})
}
