package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"warren.example/messaging/service"
)

func TestConfig(t *testing.T) {
	for what, tc := range map[string]struct {
		env  map[string]string
		want []string // parts of the error; none: it is valid
	}{
		"defaults":            {nil, nil},
		"prefetch 0":          {map[string]string{"WARREN_PREFETCH": "0"}, []string{"WARREN_PREFETCH=0: "}},
		"prefetch not number": {map[string]string{"WARREN_PREFETCH": "many"}, []string{"WARREN_PREFETCH=many: "}},
		"concurrency":         {map[string]string{"WARREN_CONCURRENCY": "-1"}, []string{"WARREN_CONCURRENCY=-1: "}},
		"bare seconds":        {map[string]string{"WARREN_DRAIN_TIMEOUT": "20"}, []string{"WARREN_DRAIN_TIMEOUT=20: "}},
		"unknown":             {map[string]string{"WARREN_PREFECH": "1"}, []string{"WARREN_PREFECH: unknown"}},
		"crash on what":       {map[string]string{"WARREN_CRASH_ON": "ad"}, []string{"WARREN_CRASH_ON=ad: ", "memory-add"}},
		"faults without port": {map[string]string{"WARREN_FAULTS": "true", "WARREN_ADMIN_ADDR": ""}, []string{"WARREN_FAULTS=true: "}},
		"all at once": {map[string]string{"WARREN_EVENTS": "stderr", "WARREN_INSTANCE": "A B", "WARREN_LOG_LEVEL": "loud", "WARREN_ON_INVALID": "drop",
			"WARREN_WORK_DELAY": "-1s", "WARREN_RUN": strings.Repeat("x", 65), "WARREN_AMQP_URL": "amqp://guest:guest@127.0.0.1/calc"},
			[]string{"WARREN_EVENTS=stderr", "WARREN_INSTANCE=A B", "WARREN_LOG_LEVEL=loud", "WARREN_ON_INVALID=drop", "WARREN_WORK_DELAY=-1s", "WARREN_RUN=xxx", "guest"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Setenv("WARREN_AMQP_URL", "amqp://calc-server:secret@127.0.0.1/calc")
			for k, v := range tc.env {
				t.Setenv(k, v)
			}
			var cfg Config
			err := service.Load(&cfg)
			if (err != nil) != (tc.want != nil) {
				t.Fatalf("got %v, want an error: %t", err, tc.want != nil)
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error lacks %q:\n%v", part, err)
				}
			}
		})
	}
}

func TestLessonsAreNamed(t *testing.T) {
	if on := newWorld(t, nil).cfg.lessons(); len(on) != 0 {
		t.Errorf("lessons by default: %v", on)
	}
	w := newWorld(t, func(c *Config) { c.AutoAck, c.Drain, c.CrashOn = true, false, "add" })
	const want = "WARREN_AUTO_ACK=true WARREN_DRAIN=false WARREN_CRASH_ON=add"
	if got := strings.Join(w.cfg.lessons(), " "); got != want {
		t.Errorf("lessons %q, want %q", got, want)
	}
}

// A broker that is away is waited for; a port that somebody else has is not.
func TestATakenPortEndsTheProcess(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	server := exec.CommandContext(ctx, os.Args[0])
	server.Env = append(os.Environ(), "SERVER_TEST_RUN=1", "WARREN_AMQP_URL=amqp://calc-server:secret@127.0.0.1:1/calc", "WARREN_ADMIN_ADDR="+l.Addr().String())
	out, err := server.CombinedOutput()
	if want := "WARREN_ADMIN_ADDR: listen on " + l.Addr().String(); server.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), want) {
		t.Errorf("ended with %v and %q, want status 1 and %q", err, out, want)
	}
}

func TestArguments(t *testing.T) {
	for args, want := range map[string]struct {
		out   string
		fails bool
	}{
		"-h":        {"WARREN_PREFETCH", false},
		"--version": {"calculator-server", false},
		"serve":     {"", true},
		"-h extra":  {"", true},
	} {
		t.Run(args, func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), strings.Fields(args), &out)
			if (err != nil) != want.fails || !strings.Contains(out.String(), want.out) {
				t.Errorf("error %v, output %q; want %q, error %t", err, out.String(), want.out, want.fails)
			}
		})
	}
}
