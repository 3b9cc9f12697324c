//go:build integration

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/rpc"
	"warren.example/messaging/session"
)

// These tests run the server as a process of its own, see TestMain, against a real broker and look at what
// others see of it: replies, its events, its exit status, the broker's queues.

func env(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: run the tests with `go run ./services/lab broker -- go test …`", name)
	}
	return value
}

// process is a running server.
type process struct {
	*exec.Cmd
	t      *testing.T
	admin  string
	exited chan struct{}

	mu    sync.Mutex
	lines []event.Line
	log   bytes.Buffer
}

// start starts a server with settings like "PREFETCH=1".
func start(t *testing.T, settings ...string) *process {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free now
	if err != nil {
		t.Fatal(err)
	}
	p := &process{Cmd: exec.Command(os.Args[0]), t: t, admin: l.Addr().String(), exited: make(chan struct{})}
	_ = l.Close()
	p.Env = append(os.Environ(), "SERVER_TEST_RUN=1", "WARREN_AMQP_URL="+env(t, "AMQP_URL_CALC_SERVER"), "WARREN_EVENTS=stdout", "WARREN_FAULTS=true",
		"WARREN_ADMIN_ADDR="+p.admin, "WARREN_INSTANCE=server-0", "WARREN_AMQP_MAX_BACKOFF=200ms")
	for _, s := range settings {
		p.Env = append(p.Env, "WARREN_"+s)
	}
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Stderr = &p.log
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.exited)
		for scan := bufio.NewScanner(stdout); scan.Scan(); {
			var line event.Line
			if err := json.Unmarshal(scan.Bytes(), &line); err != nil {
				t.Errorf("standard output has %q: %v", scan.Text(), err)
			}
			p.mu.Lock()
			p.lines = append(p.lines, line)
			p.mu.Unlock()
		}
		_ = p.Cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("log of the server with %v:\n%s", settings, &p.log)
			for _, l := range p.lines {
				t.Logf("%s %s attempt %d, tag %d, redelivered %t %s", l.Request, l.Event, l.Attempt, l.Tag, l.Redelivered, l.Reason)
			}
		}
	})
	return p
}

// exit waits for the end of the process.
func (p *process) exit() *os.ProcessState {
	p.t.Helper()
	select {
	case <-p.exited:
		return p.ProcessState
	case <-time.After(30 * time.Second):
		p.t.Fatal("the server has not ended within 30 seconds")
		return nil
	}
}

func (p *process) terminate() {
	p.t.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
}

// events are the kinds recorded for a request; "" is for the process's own.
func (p *process) events(request string) []event.Kind {
	p.mu.Lock()
	defer p.mu.Unlock()
	var kinds []event.Kind
	for _, l := range p.lines {
		if l.Request == request {
			kinds = append(kinds, l.Event)
		}
	}
	return kinds
}

func (p *process) has(request string, k event.Kind) func() bool {
	return func() bool { return slices.Contains(p.events(request), k) }
}

func (p *process) ready() bool {
	r, err := http.Get("http://" + p.admin + "/readyz")
	if err != nil {
		return false
	}
	defer r.Body.Close()
	return r.StatusCode == http.StatusOK
}

// alive says whether the admin port answers yet.
func (p *process) alive() bool {
	r, err := http.Get("http://" + p.admin + "/livez")
	if err != nil {
		return false
	}
	defer r.Body.Close()
	return r.StatusCode == http.StatusOK
}

func (p *process) get(path string) string {
	p.t.Helper()
	r, err := http.Get("http://" + p.admin + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(body)
}

func (p *process) post(path, body string) {
	p.t.Helper()
	r, err := http.Post("http://"+p.admin+path, "application/json", strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusNoContent {
		p.t.Fatalf("POST %s: %s", path, r.Status)
	}
}

// broker is a channel of somebody who may do everything, with empty queues.
func broker(t *testing.T) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(env(t, "AMQP_URL"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{contract.RequestQueue, contract.DeadLetterQueue} {
		if _, err := ch.QueuePurge(q, false); err != nil {
			t.Fatal(err)
		}
	}
	return ch
}

func caller(t *testing.T) *rpc.Caller {
	t.Helper()
	c, err := rpc.NewCaller(rpc.CallerOptions{
		Session: session.Options{Name: "test", Config: session.Config{URL: []string{env(t, "AMQP_URL_CALC_CLIENT")},
			Heartbeat: 10 * time.Second, WriteTimeout: 5 * time.Second, OpenTimeout: 5 * time.Second, MaxBackoff: 200 * time.Millisecond}},
		Instance: "test", ReplyQueue: contract.ClientReplyQueue,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = c.Close(ctx)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// call answers with a result or a code.
func call(t *testing.T, c *rpc.Caller, id string, op contract.Operation, operands ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	reply, err := c.Call(ctx, rpc.Call{ID: id, Request: contract.Request{Operation: op, Operands: operands}})
	var refused *contract.Error
	switch {
	case errors.As(err, &refused):
		return string(refused.Code)
	case err != nil:
		t.Errorf("call %s: %v", id, err)
		return ""
	}
	return reply.Result
}

const whole = "delivered computed replying reply-confirmed acked"

func TestAnswersAndDrains(t *testing.T) {
	broker(t)
	p := start(t, "DATABASE="+filepath.Join(t.TempDir(), "calculator.db"))
	c := caller(t)
	eventually(t, "ready", p.ready)
	for i, tc := range []struct {
		op       contract.Operation
		operands []string
		want     string
	}{
		{contract.Add, []string{"0.1", "0.2"}, "0.3"},
		{contract.Divide, []string{"1", "0"}, "DIVIDE_BY_ZERO"},
		{contract.MemoryAdd, []string{"5"}, "5"},
		{contract.MemoryRecall, nil, "5"},
		{"frobnicate", nil, "UNIMPLEMENTED"},
	} {
		if got := call(t, c, "id-"+strconv.Itoa(i), tc.op, tc.operands...); got != tc.want {
			t.Errorf("%s %v = %s, want %s", tc.op, tc.operands, got, tc.want)
		}
	}
	eventually(t, "all acked", func() bool { return fmt.Sprint(p.events("id-4")) == "["+whole+"]" })
	if metrics := p.get("/metrics"); !strings.Contains(metrics, `warren_server_computed_total{code="DIVIDE_BY_ZERO",operation="divide"} 1`) {
		t.Errorf("/metrics lacks the division by zero:\n%s", metrics)
	}
	p.terminate()
	if state := p.exit(); state.ExitCode() != 0 {
		t.Errorf("ended with %s, want 0", state)
	}
	if got := p.events(""); !slices.Equal(got, []event.Kind{event.Draining, event.Drained, event.EOF}) {
		t.Errorf("last events %v, want draining, drained, eof", got)
	}
}

// Killed when the reply is confirmed and the request not yet acked: the next
// server gets it again, and finds the key.
func TestKilledBetweenReplyAndAck(t *testing.T) {
	for engine, settings := range engines {
		t.Run(engine, func(t *testing.T) { testKilledBetweenReplyAndAck(t, environment(settings(t))) })
	}
}

func testKilledBetweenReplyAndAck(t *testing.T, db []string) {
	broker(t)
	first := start(t, db...)
	eventually(t, "ready", first.ready)
	c := caller(t)
	first.post("/faults", `{"point":"after-reply","action":"crash","n":1}`)
	if got := call(t, c, "once", contract.MemoryAdd, "5"); got != "5" {
		t.Errorf("memory-add 5 = %s, want 5", got)
	}
	if status := first.exit().Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Errorf("ended with %v, want SIGKILL", status)
	}
	second := start(t, db...)
	eventually(t, "acked", second.has("once", event.Acked))
	if got := fmt.Sprint(second.events("once")); got != "[delivered deduplicated replying reply-confirmed acked]" {
		t.Errorf("second server: %v", got)
	}
	if got := call(t, c, "recall", contract.MemoryRecall); got != "5" {
		t.Errorf("memory is %s, want 5", got)
	}
}

// One request is being worked on, three wait for the only slot. SIGTERM: the
// one is finished, the others are given away, and nobody waits for a timeout.
func TestDrainFinishesWhatHasBegunAndReleasesTheRest(t *testing.T) {
	broker(t)
	first := start(t, "CONCURRENCY=1", "WORK_DELAY=1s")
	eventually(t, "ready", first.ready)
	c := caller(t)
	ids := []string{"a", "b", "c", "d"}
	var calls sync.WaitGroup
	for _, id := range ids {
		calls.Go(func() {
			if got := call(t, c, id, contract.Add, "1", "1"); got != "2" {
				t.Errorf("call %s = %s, want 2", id, got)
			}
		})
	}
	for _, id := range ids {
		eventually(t, "delivered "+id, first.has(id, event.Delivered))
	}
	first.terminate()
	eventually(t, "unready", func() bool { return !first.ready() })
	if state := first.exit(); state.ExitCode() != 0 {
		t.Errorf("ended with %s, want 0", state)
	}
	start(t)
	calls.Wait()
	count := map[event.Kind]int{}
	for _, id := range ids {
		kinds := first.events(id)
		count[kinds[len(kinds)-1]]++
	}
	if count[event.Acked] < 1 || count[event.Released] < 1 || count[event.Acked]+count[event.Released] != len(ids) {
		t.Errorf("the first server's requests ended as %v; want some acked, the rest released", count)
	}
}

// The request that kills whoever touches it: delivered is on record, and the
// process is gone as by SIGKILL.
func TestCrashOn(t *testing.T) {
	ch := broker(t)
	p := start(t, "CRASH_ON=negate")
	eventually(t, "ready", p.ready)
	c := caller(t)
	if got := call(t, c, "harmless", contract.Add, "1", "1"); got != "2" {
		t.Errorf("add 1 1 = %s, want 2", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.Call(ctx, rpc.Call{ID: "deadly", Request: contract.Request{Operation: contract.Negate, Operands: []string{"1"}}}); !errors.Is(err, rpc.ErrDeadline) {
		t.Errorf("call: %v, want %v", err, rpc.ErrDeadline)
	}
	if status := p.exit().Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Errorf("ended with %v, want SIGKILL", status)
	}
	if got := fmt.Sprint(p.events("deadly")); got != "[delivered]" {
		t.Errorf("events %s, want [delivered]", got)
	}
	_, _ = ch.QueuePurge(contract.RequestQueue, false)
}

func TestLeavesAtOnceWithoutDrain(t *testing.T) {
	broker(t)
	p := start(t, "DRAIN=false", "WORK_DELAY=1m")
	eventually(t, "ready", p.ready)
	c := caller(t)
	var calls sync.WaitGroup
	calls.Go(func() { call(t, c, "left", contract.Add, "1", "1") })
	eventually(t, "delivered", p.has("left", event.Delivered))
	p.terminate()
	p.exit()
	if got := p.events(""); len(got) != 0 {
		t.Errorf("events %v, want no drained and no eof", got)
	}
	next := start(t)
	calls.Wait()
	eventually(t, "delivered", next.has("left", event.Delivered))
	next.mu.Lock()
	defer next.mu.Unlock()
	if len(next.lines) == 0 || !next.lines[0].Redelivered {
		t.Error("the next server has no redelivery")
	}
}

// The database is locked by somebody else: unready, nothing settled, and the
// one delivery that is held is answered when it is back.
func TestHoldsWhileTheDatabaseIsLocked(t *testing.T) {
	broker(t)
	db := filepath.Join(t.TempDir(), "calculator.db")
	p := start(t, "DATABASE="+db)
	eventually(t, "ready", p.ready)
	c := caller(t)
	unlock := lock(t, Config{Database: db})
	var calls sync.WaitGroup
	calls.Go(func() {
		if got := call(t, c, "held", contract.MemoryAdd, "5"); got != "5" {
			t.Errorf("memory-add 5 = %s, want 5", got)
		}
	})
	eventually(t, "unready", func() bool { return !p.ready() })
	if why := p.get("/readyz"); !strings.Contains(why, "memory") {
		t.Errorf("/readyz says %q, want the memory named", why)
	}
	unlock()
	calls.Wait()
	eventually(t, "ready again", p.ready)
	eventually(t, "acked", p.has("held", event.Acked))
	p.mu.Lock()
	defer p.mu.Unlock()
	computed := 0
	for _, l := range p.lines {
		if l.Redelivered {
			t.Errorf("delivery %d is a redelivery: the first was not held", l.Tag)
		}
		if l.Event == event.Computed {
			computed++
		}
	}
	if computed != 1 {
		t.Errorf("computed %d times, want 1", computed)
	}
}

// Unreadable requests end in the dead-letter queue; none is executed.
func TestDeadLettersTheUnreadable(t *testing.T) {
	ch := broker(t)
	p := start(t)
	eventually(t, "ready", p.ready)
	c := caller(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := c.Call(ctx, rpc.Call{ID: "answerable", Body: []byte("{")})
	if refused := new(contract.Error); !errors.As(err, &refused) || refused.Code != contract.Malformed {
		t.Errorf("got %v, want MALFORMED", err)
	}
	if err := ch.PublishWithContext(ctx, contract.RequestExchange, contract.RequestKey, true, false,
		amqp.Publishing{MessageId: "silent", Body: []byte("{")}); err != nil {
		t.Fatal(err)
	}
	dead := map[string]bool{}
	eventually(t, "two dead letters", func() bool {
		d, ok, err := ch.Get(contract.DeadLetterQueue, true)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			dead[d.MessageId] = true
		}
		return len(dead) == 2
	})
	for id, want := range map[string]string{
		"answerable": "[delivered replying reply-confirmed dead-lettered]",
		"silent":     "[delivered dead-lettered]",
	} {
		eventually(t, id, func() bool { return fmt.Sprint(p.events(id)) == want })
	}
}

// A client that is gone: the reply is returned, that is on record, and the
// request is acked.
func TestOrphanedReply(t *testing.T) {
	ch := broker(t)
	p := start(t)
	eventually(t, "ready", p.ready)
	gone := request(add, nil)
	if err := ch.PublishWithContext(t.Context(), contract.RequestExchange, contract.RequestKey, true, false, amqp.Publishing{
		MessageId: "gone", CorrelationId: "gone.1", ReplyTo: contract.ReplyKey("admin", "gone"), UserId: "admin",
		ContentType: gone.ContentType, Type: gone.Type, Headers: gone.Headers, Body: gone.Body,
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "acked", p.has("gone", event.Acked))
	if got := fmt.Sprint(p.events("gone")); got != "[delivered computed replying reply-returned orphaned acked]" {
		t.Errorf("events %s", got)
	}
}

func TestOutlivesABrokerThatIsAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close() // nobody listens there now
	p := start(t, "AMQP_URL=amqp://calc-server:s3cret@"+l.Addr().String()+"/calc")
	eventually(t, "unready", func() bool {
		r, err := http.Get("http://" + p.admin + "/readyz")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusServiceUnavailable
	})
	if got := p.get("/livez"); got != "ok\n" {
		t.Errorf("/livez says %q, want ok", got)
	}
	p.terminate()
	if state := p.exit(); state.ExitCode() != 0 {
		t.Errorf("ended with %s, want 0", state)
	}
	if strings.Contains(p.log.String(), "s3cret") {
		t.Error("the log has the password")
	}
}

func TestBadSettingsEndTheProcess(t *testing.T) {
	for setting, want := range map[string]struct {
		code int
		says string
	}{
		"PREFETCH=0":                           {exitUsage, "WARREN_PREFETCH=0: "},
		"PREFECH=1":                            {exitUsage, "WARREN_PREFECH: unknown setting"},
		"DATABASE=/proc/none/x.db":             {1, "WARREN_DATABASE=/proc/none/x.db: "},
		"DATABASE=postgres://warren@db/warren": {exitUsage, "WARREN_DATABASE: sslmode=: want "},
	} {
		t.Run(setting, func(t *testing.T) {
			p := start(t, setting)
			if state := p.exit(); state.ExitCode() != want.code || !strings.Contains(p.log.String(), want.says) {
				t.Errorf("ended with %s and %q, want %d and %q", state, p.log.String(), want.code, want.says)
			}
		})
	}
}
