//go:build integration

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/apd/v3"
	"github.com/prometheus/client_golang/prometheus"
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/rpc"
	"warren.example/messaging/session"
)

// brokerURL is a user's URL in the virtual host of this run.
func brokerURL(t *testing.T, variable string) string {
	t.Helper()
	u := os.Getenv(variable)
	if u == "" {
		t.Fatalf("%s is not set: run the tests with `go run ./services/lab broker -- go test -tags integration ./services/client`", variable)
	}
	return u
}

// begin is the start of a test: an empty request queue, and the client's settings.
func begin(t *testing.T) {
	t.Helper()
	settings(t, map[string]string{"WARREN_AMQP_URL": brokerURL(t, "AMQP_URL_CALC_CLIENT"), "WARREN_LOG_LEVEL": "error"})
	conn, err := amqp.Dial(brokerURL(t, "AMQP_URL"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.QueuePurge(contract.RequestQueue, false); err != nil {
		t.Fatal(err)
	}
}

// serve answers every request with handle until the test ends. Handle returns
// false to leave a request unanswered and unsettled.
func serve(t *testing.T, handle func(contract.Request) (contract.Reply, bool)) {
	t.Helper()
	serveDeliveries(t, func(_ contract.Meta, r contract.Request) (contract.Reply, bool) { return handle(r) })
}

func serveDeliveries(t *testing.T, handle func(contract.Meta, contract.Request) (contract.Reply, bool)) {
	t.Helper()
	cfg := session.Config{URL: []string{brokerURL(t, "AMQP_URL_CALC_SERVER")}, Heartbeat: 2 * time.Second,
		WriteTimeout: time.Second, OpenTimeout: 5 * time.Second, MaxBackoff: 200 * time.Millisecond}
	o := session.Options{Config: cfg, Name: "test-server"}
	pub := session.NewPublisher(o, session.PublisherOptions{Exchange: contract.ReplyExchange})
	responder := rpc.NewResponder(pub, nil)
	ctx, stop := context.WithCancel(context.Background())
	var busy sync.WaitGroup
	con := session.NewConsumer(o, session.ConsumerOptions{Queue: contract.RequestQueue, Prefetch: 200, Handle: func(d *session.Delivery) {
		busy.Go(func() {
			request, meta, err := contract.Validate(&d.Delivery)
			if err != nil {
				_ = d.Reject(false)
				return
			}
			reply, answer := handle(meta, request)
			if !answer {
				return
			}
			if _, err := responder.Reply(ctx, d, reply); err == nil {
				_ = d.Ack()
			}
		})
	}})
	t.Cleanup(func() {
		closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		stop()
		if err := errors.Join(con.Close(closing), pub.Close(closing)); err != nil {
			t.Error(err)
		}
		busy.Wait()
	})
	ready, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := errors.Join(con.WaitReady(ready), pub.WaitReady(ready)); err != nil {
		t.Fatal(err)
	}
}

// calculate is as much of a calculator as these tests need.
func calculate(r contract.Request) (contract.Reply, bool) {
	no := func(code contract.Code, format string, args ...any) (contract.Reply, bool) {
		return contract.Reply{Error: &contract.Error{Code: code, Message: fmt.Sprintf(format, args...)}}, true
	}
	decimal128 := apd.Context{Precision: 34, MaxExponent: 6144, MinExponent: -6143}
	var x []*apd.Decimal
	for i, o := range r.Operands {
		d, _, err := apd.NewFromString(o)
		if err != nil {
			return no(contract.InvalidArgument, "operand %d: %q is not a number", i+1, o)
		}
		x = append(x, d)
	}
	got := new(apd.Decimal)
	switch r.Operation {
	case contract.Add:
		_, _ = decimal128.Add(got, x[0], x[1])
	case contract.Divide:
		if x[1].IsZero() {
			return no(contract.DivideByZero, "%s / 0", r.Operands[0])
		}
		_, _ = decimal128.Quo(got, x[0], x[1])
	default:
		return no(contract.Unimplemented, "%s", r.Operation)
	}
	got.Reduce(got)
	return contract.Reply{Result: got.Text('f')}, true
}

// wantStatus runs the command and ends the test unless it exits as wanted.
func wantStatus(t *testing.T, want ending, args ...string) (stdout, stderr string) {
	t.Helper()
	status, stdout, stderr := cli(t.Context(), args...)
	if status != want.Status {
		t.Fatalf("%s: got status %d, stdout %q, stderr %q; want status %d", strings.Join(args, " "), status, stdout, stderr, want.Status)
	}
	return stdout, stderr
}

func TestCallPrintsTheResult(t *testing.T) {
	begin(t)
	serve(t, calculate)
	if got, _ := wantStatus(t, answered, "call", "add", "0.1", "0.2"); got != "0.3\n" {
		t.Errorf("got %q, want 0.3", got)
	}
	if got, _ := wantStatus(t, answered, "call", "--if-no-server", "fail", "add", "-5", "2"); got != "-3\n" {
		t.Errorf("got %q, want -3", got)
	}
}

// The id is the caller's to choose, and whatever they choose finds its reply.
func TestCallUnderAnIDOfOnesOwn(t *testing.T) {
	begin(t)
	serve(t, calculate)
	for _, id := range []string{"order-4711", "order.4711", "a b/ü"} {
		got, _ := wantStatus(t, answered, "call", "--timeout", "5s", "--output", "json", "--id", id, "add", "1", "2")
		var p printed
		if err := json.Unmarshal([]byte(got), &p); err != nil || p.Request != id || p.Result == nil || *p.Result != "3" || p.Attempts != 1 || p.Milliseconds <= 0 {
			t.Errorf("got %s, %v; want the result 3 under id %q after 1 attempt", got, err, id)
		}
	}
}

// Whatever tool sets TRACEPARENT for a command finds the request by it.
func TestCallCarriesTheTraceOn(t *testing.T) {
	begin(t)
	const trace = contract.Traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	var carried atomic.Value
	serveDeliveries(t, func(meta contract.Meta, r contract.Request) (contract.Reply, bool) {
		carried.Store(meta.Trace)
		return calculate(r)
	})
	t.Setenv("TRACEPARENT", string(trace))
	wantStatus(t, answered, "call", "add", "0.1", "0.2")
	if got := carried.Load(); got != trace {
		t.Errorf("the server got trace %q, want %q", got, trace)
	}
	t.Setenv("TRACEPARENT", "of my own")
	if _, stderr := wantStatus(t, usage, "call", "add", "0.1", "0.2"); !strings.Contains(stderr, `TRACEPARENT: traceparent "of my own": want`) {
		t.Errorf("a trace that is none: got %q", stderr)
	}
}

func TestCallPrintsTheServersError(t *testing.T) {
	begin(t)
	serve(t, calculate)
	if stdout, stderr := wantStatus(t, refused, "call", "divide", "1", "0"); stdout != "" || !strings.HasPrefix(stderr, "DIVIDE_BY_ZERO: 1 / 0. ") {
		t.Errorf("got %q and %q", stdout, stderr)
	}
	if _, stderr := wantStatus(t, refused, "call", "add", "one", "2"); !strings.HasPrefix(stderr, `INVALID_ARGUMENT: operand 1: "one" is not a number. It was not executed.`) {
		t.Errorf("got %q", stderr)
	}
	got, stderr := wantStatus(t, refused, "call", "--output=json", "divide", "1", "0")
	if !strings.Contains(got, `"error":{"code":"DIVIDE_BY_ZERO","message":"1 / 0","retryable":false},"outcome":"refused"`) || stderr != "" {
		t.Errorf("got %q and %q", got, stderr)
	}
}

func TestCallWithoutAServer(t *testing.T) {
	begin(t)
	began := time.Now()
	if _, stderr := wantStatus(t, noServer, "call", "--if-no-server", "fail", "add", "1", "2"); !strings.HasPrefix(stderr, "NO_SERVER: ") {
		t.Errorf("got %q", stderr)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s of a timeout of 10s, want at once", took)
	}
	// Waiting ends by the deadline: the request was in the queue, so nobody here
	// can know that it was not executed.
	if _, stderr := wantStatus(t, deadline, "call", "--timeout", "300ms", "--id", "R", "add", "1", "2"); !strings.Contains(stderr, "It may have been executed. Retrying with --id R is safe.") {
		t.Errorf("got %q", stderr)
	}
}

func TestCallThatIsNotAnswered(t *testing.T) {
	begin(t)
	var seen atomic.Int64
	serve(t, func(contract.Request) (contract.Reply, bool) { seen.Add(1); return contract.Reply{}, false })
	began := time.Now()
	wantStatus(t, deadline, "call", "--timeout", "1s", "add", "1", "2")
	if took := time.Since(began); took < time.Second || took > 3*time.Second || seen.Load() != 1 {
		t.Errorf("took %s and reached the server %d times; want 1s and once", took, seen.Load())
	}
}

// The result is out before anything waits for the end of the connections.
func TestCallPrintsBeforeItHangsUp(t *testing.T) {
	begin(t)
	var stdout output
	var early atomic.Int64
	l := newLine(t)
	l.goodbye = func(n int64) {
		if n > 1 && stdout.String() != "3\n" { // the first is the probe's
			early.Add(1)
		}
	}
	serve(t, calculate)
	if status := run(t.Context(), []string{"call", "add", "1", "2"}, &stdout, io.Discard); status != 0 || early.Load() != 0 || l.goodbyes.Load() != 3 {
		t.Errorf("got status %d, %q, and %d of %d connections ended without the result", status, stdout.String(), early.Load(), l.goodbyes.Load())
	}
}

// A broker that is stopped holds nobody longer than --timeout and a moment,
// however long one write to it may take.
func TestCallOfAFrozenBroker(t *testing.T) {
	for name, c := range map[string]struct {
		freeze   func(l *line)
		want     ending
		attempts int
	}{
		"when the probe hangs up": {func(l *line) { l.goodbye = func(int64) { l.frozen.Store(true) } }, unavailable, 0},
		"while a server works": {func(l *line) {
			serve(l.t, func(contract.Request) (contract.Reply, bool) { l.frozen.Store(true); return contract.Reply{}, false })
		}, deadline, 1},
	} {
		t.Run(name, func(t *testing.T) {
			begin(t)
			t.Setenv("WARREN_AMQP_WRITE_TIMEOUT", "1m")
			l := newLine(t)
			c.freeze(l)
			began := time.Now()
			if got, _ := wantStatus(t, c.want, "call", "--timeout", "1s", "--output", "json", "add", "1", "2"); !strings.Contains(got, fmt.Sprintf(`"attempts":%d,`, c.attempts)) {
				t.Errorf("got %s, want %d attempts", got, c.attempts)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("took %s for a timeout of 1s", took)
			}
		})
	}
}

// A line leads to the broker, with the client's settings changed to use it.
type line struct {
	t        *testing.T
	frozen   atomic.Bool // swallow all, and close nothing
	goodbyes atomic.Int64
	goodbye  func(n int64) // called before the n-th goodbye passes
}

func newLine(t *testing.T) *line {
	t.Helper()
	u, err := url.Parse(brokerURL(t, "AMQP_URL_CALC_CLIENT"))
	if err != nil {
		t.Fatal("AMQP_URL_CALC_CLIENT is no URL")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, broker := &line{t: t, goodbye: func(int64) {}}, u.Host
	u.Host = listener.Addr().String()
	t.Setenv("WARREN_AMQP_URL", u.String())
	ctx, stop := context.WithCancel(context.Background())
	var pumps sync.WaitGroup
	pumps.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", broker)
			if err != nil {
				t.Error(err)
				_ = near.Close()
				return
			}
			context.AfterFunc(ctx, func() { _, _ = near.Close(), far.Close() })
			pumps.Go(func() { l.pump(near, far) })
			pumps.Go(func() { l.pump(far, near) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		stop()
		pumps.Wait()
	})
	return l
}

func (l *line) pump(dst, src net.Conn) {
	defer dst.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if bytes.Contains(buf[:n], []byte{0, 10, 0, 50}) { // connection.close
			l.goodbye(l.goodbyes.Add(1))
		}
		if !l.frozen.Load() {
			_, _ = dst.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

func TestCallIsInterrupted(t *testing.T) {
	begin(t)
	ctx, signal := context.WithCancel(t.Context())
	serve(t, func(contract.Request) (contract.Reply, bool) { signal(); return contract.Reply{}, false })
	status, _, stderr := cli(ctx, "call", "add", "1", "2")
	if status != interrupted.Status || !strings.HasPrefix(stderr, "INTERRUPTED: interrupted. It may have been executed.") {
		t.Errorf("got status %d, %q", status, stderr)
	}
}

func TestWrongPasswordIsOneLineAtOnce(t *testing.T) {
	begin(t)
	u, err := url.Parse(brokerURL(t, "AMQP_URL_CALC_CLIENT"))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(contract.UserClient, "s3cret")
	t.Setenv("WARREN_AMQP_URL", u.String())
	began := time.Now()
	stdout, stderr := wantStatus(t, unavailable, "call", "add", "1", "2")
	if strings.Contains(stdout+stderr, "s3cret") || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "as calc-client") || !strings.Contains(stderr, "not allowed") {
		t.Errorf("got %q and %q", stdout, stderr)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s, want at once", took)
	}
}

// One node's no is enough; an endless load is a service, and waits.
func TestLoadWithARefusedLogin(t *testing.T) {
	begin(t)
	change := func(change func(*url.URL)) string {
		u, err := url.Parse(brokerURL(t, "AMQP_URL_CALC_CLIENT"))
		if err != nil {
			t.Fatal("AMQP_URL_CALC_CLIENT is no URL")
		}
		change(u)
		return u.String()
	}
	wrong := change(func(u *url.URL) { u.User = url.UserPassword(contract.UserClient, "s3cret") })
	away := change(func(u *url.URL) { u.User, u.Host = url.UserPassword(contract.UserClient, "s3cret"), "127.0.0.1:1" })
	for name, c := range map[string]struct{ url, want string }{
		"password":                {wrong, "username or password not allowed"},
		"password, one node away": {wrong + "," + away, "username or password not allowed"},
		"password, another away":  {away + "," + wrong, "username or password not allowed"},
		"vhost":                   {change(func(u *url.URL) { u.Path = "/nowhere" }), "nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("WARREN_AMQP_URL", c.url)
			wantRefusal(t, c.want)
		})
	}
	t.Setenv("WARREN_AMQP_URL", wrong)
	endless(t)
}

// With events on, standard output is the ledger and, for a call, the result.
func TestCallWritesItsLedger(t *testing.T) {
	begin(t)
	t.Setenv("WARREN_EVENTS", "stdout")
	serve(t, calculate)
	stdout, _ := wantStatus(t, answered, "call", "--id", "R", "add", "1", "2")
	var steps []string
	for line := range strings.Lines(stdout) {
		var l event.Line
		if err := json.Unmarshal([]byte(line), &l); err == nil && l.Event != "" {
			steps = append(steps, string(l.Event))
		} else if line != "3\n" {
			t.Errorf("got line %q, want events and the result", line)
		}
	}
	got := strings.Join(steps, " ")
	if !strings.HasPrefix(got, "publishing ") || !strings.HasSuffix(got, " eof") || !strings.Contains(got, " answered ") {
		t.Errorf("got %s, want publishing … answered … eof", got)
	}
}

func TestLoadChecksEveryAnswer(t *testing.T) {
	begin(t)
	serve(t, calculate)
	for _, how := range []string{"--in-flight 16", "--rate 2000", "--in-flight 4 --confirm one", "--in-flight 32 --confirm batch --batch-size 10"} {
		args := strings.Fields("load --count 200 --operations add,divide --output json " + how)
		stdout, _ := wantStatus(t, answered, args...)
		var s summary
		if err := json.Unmarshal([]byte(stdout), &s); err != nil {
			t.Fatalf("%s: %v", stdout, err)
		}
		if s.Sent != 200 || s.Answered != 190 || s.Refused["DIVIDE_BY_ZERO"] != 10 || s.Retried != 0 || !s.OK || s.Latency.Max <= 0 || s.PerSecond <= 0 {
			t.Errorf("%s: got %s", how, stdout)
		}
		if how == "--rate 2000" && s.Seconds < 199/2000. {
			t.Errorf("%s: took %v s, faster than asked for", how, s.Seconds)
		}
	}
}

func TestLoadFindsAWrongAnswer(t *testing.T) {
	begin(t)
	var n atomic.Int64
	serve(t, func(r contract.Request) (contract.Reply, bool) {
		if n.Add(1) == 7 {
			return contract.Reply{Result: "42000"}, true
		}
		return calculate(r)
	})
	stdout, stderr := wantStatus(t, failed, "load", "--count", "20")
	if !strings.Contains(stdout, "wrong     1\n") || strings.Count(stderr, "WRONG: request ") != 1 || !strings.Contains(stderr, `got "42000", want `) {
		t.Errorf("got\n%s\n%s", stdout, stderr)
	}
}

// A signal ends the asking; what was asked gets its answer.
func TestInterruptedLoadWaitsForItsAnswers(t *testing.T) {
	begin(t)
	ctx, signal := context.WithCancel(t.Context())
	var seen atomic.Int64
	release := make(chan struct{})
	serve(t, func(r contract.Request) (contract.Reply, bool) {
		if seen.Add(1) == 8 { // all callers wait for an answer now
			signal()
			time.AfterFunc(100*time.Millisecond, func() { close(release) })
		}
		<-release
		return calculate(r)
	})
	status, stdout, stderr := cli(ctx, "load", "--count", "1000", "--output", "json")
	var s summary
	if err := json.Unmarshal([]byte(stdout), &s); err != nil {
		t.Fatalf("%q %q: %v", stdout, stderr, err)
	}
	if status != 0 || s.Sent != 8 || s.Answered != 8 || !s.Interrupted || !s.OK {
		t.Errorf("got status %d, %s; want the 8 calls in flight answered", status, stdout)
	}
}

// An open loop goes on asking: while the server stands still for half a second,
// everybody who comes meanwhile waits, not only the one whose turn it was.
func TestOpenLoopSeesAStall(t *testing.T) {
	begin(t)
	var n atomic.Int64
	var stall sync.Mutex
	serve(t, func(r contract.Request) (contract.Reply, bool) {
		first := n.Add(1) == 20
		stall.Lock()
		defer stall.Unlock()
		if first {
			time.Sleep(500 * time.Millisecond) // the stall itself
		}
		return calculate(r)
	})
	stdout, _ := wantStatus(t, answered, "load", "--rate", "100", "--count", "60", "--output", "json")
	var s summary
	if err := json.Unmarshal([]byte(stdout), &s); err != nil {
		t.Fatal(err)
	}
	// About 50 of the 60 calls fall into the stall.
	if s.Latency.P90 < 200 {
		t.Errorf("got %+v, want a p90 of hundreds of milliseconds", s.Latency)
	}
}

// A question that is asked late was already waited for.
func TestLatencyCountsFromTheIntendedStart(t *testing.T) {
	begin(t)
	serve(t, calculate)
	cfg, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	caller, err := rpc.NewCaller(cfg.callerOptions(nil, nil, registry))
	if err != nil {
		t.Fatal(err)
	}
	defer closeCaller(caller)
	flags := loadFlags{callFlags: callFlags{timeout: 10 * time.Second}, operations: []string{"add"}}
	l := &load{flags: flags, caller: caller, tally: newTally(io.Discard, registry)}
	l.tally.begin()
	if !l.ask(t.Context(), 0, time.Now().Add(-time.Minute)) {
		t.Fatal("got no reply")
	}
	if got := l.tally.summary(1).Latency.Max; got < 60_000 {
		t.Errorf("got %v ms, want a minute and more", got)
	}
}

func TestLoadWithAnAdminPortAndALedger(t *testing.T) {
	begin(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	t.Setenv("WARREN_ADMIN_ADDR", addr)
	t.Setenv("WARREN_EVENTS", "stdout")
	var once sync.Once
	pages := map[string]string{}
	serve(t, func(r contract.Request) (contract.Reply, bool) {
		once.Do(func() {
			for _, path := range []string{"/livez", "/readyz", "/metrics"} {
				pages[path] = get(t, "http://"+addr+path)
			}
		})
		return calculate(r)
	})
	stdout, stderr := wantStatus(t, answered, "load", "--count", "50")
	for path, want := range map[string]string{"/livez": "ok", "/readyz": "ready", "/metrics": `warren_client_calls_total{outcome="answered"} `} {
		if !strings.Contains(pages[path], want) {
			t.Errorf("%s: got %q, want %q", path, pages[path], want)
		}
	}
	if !strings.Contains(stderr, "answered  50\n") {
		t.Errorf("got %q on standard error, want the summary", stderr)
	}
	lines, last := 0, event.Line{}
	for line := range strings.Lines(stdout) {
		last = event.Line{}
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatalf("got line %q, want events only", line)
		}
		if lines++; last.Seq != uint64(lines) {
			t.Fatalf("got seq %d in line %d: the ledger has a gap", last.Seq, lines)
		}
	}
	if last.Event != event.EOF {
		t.Errorf("got %s as the last event, want eof", last.Event)
	}
}

func get(t *testing.T, url string) string {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}
