package main

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestConfirmIsTranslated(t *testing.T) {
	for confirm, want := range map[string]int{"one": 1, "batch": 37, "async": 0} {
		flags := loadFlags{confirm: confirm, batchSize: 37}
		if got := flags.confirmEvery(); got != want {
			t.Errorf("--confirm %s: got %d, want %d", confirm, got, want)
		}
	}
}

// A load without its broker waits, says what for, and ends by its deadlines.
func TestLoadOutlivesAMissingBroker(t *testing.T) {
	settings(t, nowhere)
	t.Setenv("WARREN_LOG_LEVEL", "error")
	status, stdout, stderr := cli(t.Context(), "load", "--count", "4", "--in-flight", "2", "--timeout", "200ms")
	if status != failed.Status || !strings.Contains(stdout, "failed    4 (unavailable 4), 0 may have been executed") {
		t.Errorf("got status %d and\n%s%s\nwant status %d and 4 failures that were not executed", status, stdout, stderr, failed.Status)
	}
	if strings.Contains(stdout+stderr, "s3cret") {
		t.Errorf("the password is in %q", stdout+stderr)
	}
}

// A signal before anything was sent is no success.
func TestInterruptedBeforeTheFirstCall(t *testing.T) {
	settings(t, nowhere)
	t.Setenv("WARREN_LOG_LEVEL", "error")
	t.Setenv("WARREN_EVENTS", "stdout")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	status, stdout, stderr := cli(ctx, "load", "--count", "4")
	if status != failed.Status || !strings.Contains(stderr, "nothing was sent (interrupted)") {
		t.Errorf("got status %d, stderr %q", status, stderr)
	}
	if !strings.Contains(stdout, `"seq":1,`) || !strings.Contains(stdout, `"event":"eof"`) || strings.Count(stdout, "\n") != 1 {
		t.Errorf("got %q, want the ledger's last line and nothing else", stdout)
	}
}

// An endless load asks until the signal, then waits for its calls.
func TestEndlessLoadEndsWithTheSignal(t *testing.T) {
	settings(t, nowhere)
	t.Setenv("WARREN_LOG_LEVEL", "error")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := make(chan struct{})
	var once sync.Once
	var status int
	var stdout output
	var running sync.WaitGroup
	running.Go(func() {
		status = run(ctx, []string{"load", "--endless", "--rate", "100", "--timeout", "50ms"}, &stdout, writerFunc(func(p []byte) (int, error) {
			if bytes.Contains(p, []byte("FAILED")) {
				once.Do(func() { close(asked) })
			}
			return len(p), nil
		}))
	})
	<-asked
	cancel()
	running.Wait()
	if status != failed.Status || !strings.Contains(stdout.String(), "(interrupted)") {
		t.Errorf("got status %d and %q, want status %d and an interrupted load", status, stdout.String(), failed.Status)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestEveryStopsAfterItsLastTick(t *testing.T) {
	var mu sync.Mutex
	var said bytes.Buffer
	ticked := make(chan struct{})
	var once sync.Once
	stop := every(time.Millisecond, func() {
		mu.Lock()
		defer mu.Unlock()
		said.WriteByte('t')
		once.Do(func() { close(ticked) })
	}, func() { said.WriteByte('l') })
	<-ticked
	stop()
	if got := said.String(); !strings.HasSuffix(got, "l") || strings.Count(got, "l") != 1 {
		t.Errorf("got %q, want ticks and one last", got)
	}
}
