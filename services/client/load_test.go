package main

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http/httptest"
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

// What waiting does not mend ends a load at once; the wrong passwords are in the
// integration tests.
func TestLoadEndsAtARefusal(t *testing.T) {
	stranger := httptest.NewUnstartedServer(nil)
	stranger.Config.ErrorLog = log.New(io.Discard, "", 0)
	stranger.StartTLS()
	defer stranger.Close()
	plain := httptest.NewServer(nil)
	defer plain.Close()
	for name, c := range map[string]struct {
		addr net.Addr
		want string
	}{
		"a certificate of nobody we know": {stranger.Listener.Addr(), "certificate"},
		"no TLS there":                    {plain.Listener.Addr(), "TLS handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			settings(t, map[string]string{"WARREN_AMQP_URL": "amqps://calc-client:s3cret@" + c.addr.String() + "/calc"})
			wantRefusal(t, c.want)
		})
	}
}

// wantRefusal runs a load that must end with one line and nothing sent.
func wantRefusal(t *testing.T, want string) {
	t.Helper()
	t.Setenv("WARREN_LOG_LEVEL", "error")
	status, stdout, stderr := cli(t.Context(), "load", "--count", "8", "--timeout", "2s")
	if status != unavailable.Status || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "UNAVAILABLE: ") || !strings.Contains(stderr, want) {
		t.Errorf("got status %d and\n%s%s\nwant status %d and one line with %q", status, stdout, stderr, unavailable.Status, want)
	}
	if strings.Contains(stderr, "s3cret") {
		t.Errorf("the password is in %q", stderr)
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
	endless(t)
}

// endless runs a load whose every call fails.
func endless(t *testing.T) {
	t.Helper()
	t.Setenv("WARREN_LOG_LEVEL", "error")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked, ended := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var status int
	var stdout output
	go func() {
		defer close(ended)
		status = run(ctx, []string{"load", "--endless", "--rate", "100", "--timeout", "50ms"}, &stdout, writerFunc(func(p []byte) (int, error) {
			if bytes.Contains(p, []byte("FAILED")) {
				once.Do(func() { close(asked) })
			}
			return len(p), nil
		}))
	}()
	select {
	case <-asked:
	case <-ended: // by itself
	}
	cancel()
	<-ended
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
