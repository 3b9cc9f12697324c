//go:build integration

package rpc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/rpc"
	"warren.example/messaging/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ledger collects what a caller records.
type ledger struct {
	mu    sync.Mutex
	lines []event.Line
}

func (l *ledger) Write(b []byte) (int, error) {
	var line event.Line
	if err := json.Unmarshal(b, &line); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	return len(b), nil
}

func (l *ledger) count(k event.Kind) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if line.Event == k {
			n++
		}
	}
	return n
}

func config(t *testing.T, user string) session.Config {
	t.Helper()
	name := "AMQP_URL_" + strings.ReplaceAll(strings.ToUpper(user), "-", "_")
	url := os.Getenv(name)
	if url == "" {
		t.Fatalf("%s is not set: run the tests with `go run ./services/lab broker -- go test …`", name)
	}
	return session.Config{URL: []string{url}, Heartbeat: 2 * time.Second, WriteTimeout: time.Second, OpenTimeout: 3 * time.Second, MaxBackoff: 200 * time.Millisecond}
}

// server answers every request with handle until the test ends.
func server(t *testing.T, handle func(contract.Request) contract.Reply) *session.Consumer {
	t.Helper()
	return serve(t, func(r *rpc.Responder, d *session.Delivery) {
		req, _, err := contract.Validate(&d.Delivery)
		if err != nil {
			_ = d.Reject(false)
			return
		}
		if o, _ := r.Reply(t.Context(), d, handle(req)); o != session.Unknown {
			_ = d.Ack()
		}
	})
}

func serve(t *testing.T, handle func(*rpc.Responder, *session.Delivery)) *session.Consumer {
	t.Helper()
	purge(t) // what an earlier test left to expire
	o := session.Options{Config: config(t, contract.UserServer), Name: "test-server"}
	pub := session.NewPublisher(o, session.PublisherOptions{Exchange: contract.ReplyExchange})
	r := rpc.NewResponder(pub, nil)
	var busy sync.WaitGroup
	con := session.NewConsumer(o, session.ConsumerOptions{Queue: contract.RequestQueue, Prefetch: 200, Handle: func(d *session.Delivery) {
		busy.Go(func() { handle(r, d) })
	}})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(con.Close(ctx), pub.Close(ctx)); err != nil {
			t.Error(err)
		}
		busy.Wait()
	})
	await(t, con.WaitReady)
	await(t, pub.WaitReady)
	return con
}

func caller(t *testing.T, change func(*rpc.CallerOptions)) *rpc.Caller {
	t.Helper()
	o := rpc.CallerOptions{
		Session:    session.Options{Config: config(t, contract.UserClient), Name: "test-client"},
		Instance:   "test",
		ReplyQueue: contract.ClientReplyQueue,
	}
	if change != nil {
		change(&o)
	}
	c, err := rpc.NewCaller(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	await(t, c.WaitReady)
	return c
}

func await(t *testing.T, ready func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := ready(ctx); err != nil {
		t.Fatal(err)
	}
}

func call(t *testing.T, c *rpc.Caller, timeout time.Duration, call rpc.Call) (contract.Reply, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	return c.Call(ctx, call)
}

var add = contract.Request{Operation: contract.Add, Operands: []string{"1", "2"}}

func TestEveryCallInFlightIsAnswered(t *testing.T) {
	server(t, func(r contract.Request) contract.Reply { return contract.Reply{Result: r.Operands[1]} })
	c := caller(t, nil)
	var wrong atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 50 {
				reply, err := call(t, c, 10*time.Second, rpc.Call{Request: add})
				if err != nil || reply.Result != "2" {
					wrong.Add(1)
					t.Logf("got %+v, %v", reply, err)
				}
			}
		})
	}
	wg.Wait()
	if n := wrong.Load(); n != 0 {
		t.Fatalf("%d of 3200 calls without their answer", n)
	}
}

// A quorum queue keeps transient messages too, so that no crash would show a
// request that is not persistent; whoever copies it to a classic queue would lose it.
func TestARequestSurvivesWhereverItIsQueued(t *testing.T) {
	var mode atomic.Uint32
	serve(t, func(r *rpc.Responder, d *session.Delivery) {
		mode.Store(uint32(d.DeliveryMode))
		_, _ = r.Reply(t.Context(), d, contract.Reply{Result: "3"})
		_ = d.Ack()
	})
	if _, err := call(t, caller(t, nil), 10*time.Second, rpc.Call{Request: add}); err != nil {
		t.Fatal(err)
	}
	if got := mode.Load(); got != uint32(amqp.Persistent) {
		t.Errorf("delivery mode %d, want %d, persistent", got, amqp.Persistent)
	}
}

func TestAnIDMayHoldDots(t *testing.T) {
	server(t, func(contract.Request) contract.Reply { return contract.Reply{Result: "3"} })
	if _, err := call(t, caller(t, nil), 10*time.Second, rpc.Call{ID: "order.47.11", Request: add}); err != nil {
		t.Error(err)
	}
}

func TestTheServersNoIsTyped(t *testing.T) {
	server(t, func(contract.Request) contract.Reply {
		return contract.Reply{Error: &contract.Error{Code: contract.DivideByZero, Message: "operands: 1/0"}}
	})
	_, err := call(t, caller(t, nil), 10*time.Second, rpc.Call{Request: add})
	var refused *contract.Error
	var failed *rpc.CallError
	if !errors.As(err, &refused) || refused.Code != contract.DivideByZero || errors.As(err, &failed) {
		t.Fatalf("got %v, want the server's %s and nothing around it", err, contract.DivideByZero)
	}
}

// failure is what a caller may conclude.
func failure(err error) string {
	var f *rpc.CallError
	if !errors.As(err, &f) {
		return fmt.Sprintf("%T %v", err, err)
	}
	for _, known := range []error{rpc.ErrNoServer, rpc.ErrDeadline, rpc.ErrOverloaded, rpc.ErrUnknown, rpc.ErrUnavailable} {
		if errors.Is(err, known) {
			return fmt.Sprintf("%v, executed: %v", known, f.MayHaveExecuted)
		}
	}
	return err.Error()
}

func TestNoServer(t *testing.T) {
	c := caller(t, nil)
	if _, err := call(t, c, 10*time.Second, rpc.Call{Request: add, FailIfNoServer: true}); failure(err) != "no server takes such requests, executed: false" {
		t.Errorf("nobody consumes, asked to fail: got %s", failure(err))
	}
	if _, err := call(t, c, 200*time.Millisecond, rpc.Call{Request: add}); failure(err) != "no reply before the deadline, executed: true" {
		t.Errorf("nobody consumes, asked to wait: got %s", failure(err))
	}
	onBroker(t, func(ch *amqp.Channel) error {
		return ch.QueueUnbind(contract.RequestQueue, contract.RequestKey, contract.RequestExchange, nil)
	})
	defer onBroker(t, func(ch *amqp.Channel) error {
		return ch.QueueBind(contract.RequestQueue, contract.RequestKey, contract.RequestExchange, false, nil)
	})
	if _, err := call(t, c, 10*time.Second, rpc.Call{Request: add}); failure(err) != "no server takes such requests, executed: false" {
		t.Errorf("unroutable: got %s", failure(err))
	}
	if _, err := call(t, c, 200*time.Millisecond, rpc.Call{Request: add, NoMandatory: true}); failure(err) != "no reply before the deadline, executed: true" {
		t.Errorf("unroutable and not mandatory: got %s", failure(err))
	}
}

func onBroker(t *testing.T, do func(*amqp.Channel) error) {
	t.Helper()
	conn, err := amqp.Dial(os.Getenv("AMQP_URL"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err == nil {
		err = do(ch)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// closeConnections is what a broker does when it is told to close ours: both
// sessions of the caller end, and its reply queue is gone.
func closeConnections(t *testing.T, user string) {
	t.Helper()
	admin, err := url.Parse(os.Getenv("AMQP_MANAGEMENT_URL"))
	if err != nil {
		t.Fatal(err)
	}
	// An answered DELETE is too late for connections that the broker's own list has
	// not seen yet, and may have ended those of the test before. So what counts is
	// that the reply queue of the caller's first epoch is gone.
	gone := func() bool {
		conn, err := amqp.Dial(os.Getenv("AMQP_URL"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		_, err = ch.QueueDeclarePassive(contract.ClientReplyQueue+".test.1", false, false, false, false, nil)
		var refused *amqp.Error
		return errors.As(err, &refused) && refused.Code == amqp.NotFound
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		r, err := http.NewRequest(http.MethodDelete, admin.JoinPath("api/connections/username", user).String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Close = true
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		// Once more only if this one was for others: it would end the next epoch.
		for again := time.Now().Add(time.Second); answer.StatusCode == http.StatusNoContent && time.Now().Before(again); time.Sleep(10 * time.Millisecond) {
			if gone() {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("close connections of %s: %s", user, answer.Status)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// The caller's connections die while the server works. The answer must arrive
// on the reply queue of the next epoch, whether the first reply found it or
// the request had to be sent again.
func TestACallInFlightSurvivesAReconnect(t *testing.T) {
	working, finish := make(chan struct{}, 10), make(chan struct{})
	server(t, func(contract.Request) contract.Reply {
		working <- struct{}{}
		<-finish
		return contract.Reply{Result: "3"}
	})
	var l ledger
	c := caller(t, func(o *rpc.CallerOptions) { o.Session.Events = event.NewRecorder(&l, "r", "c") })
	type answer struct {
		reply contract.Reply
		err   error
	}
	got := make(chan answer, 1)
	go func() {
		reply, err := call(t, c, 30*time.Second, rpc.Call{Request: add})
		got <- answer{reply, err}
	}()
	<-working
	closeConnections(t, contract.UserClient)
	<-working // it was published again, under the same id
	close(finish)
	if a := <-got; a.err != nil || a.reply.Result != "3" {
		t.Fatalf("got %+v, %v", a.reply, a.err)
	}
	if n := l.count(event.Publishing); n < 2 {
		t.Errorf("published %d times, want 2 or more", n)
	}
	deadline := time.Now().Add(10 * time.Second)
	for l.count(event.DuplicateReply)+l.count(event.LateReply) == 0 { // the other execution's reply is counted
		if time.Now().After(deadline) {
			t.Fatal("two executions, and the second reply was never seen")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if n := l.count(event.Answered); n != 1 {
		t.Errorf("answered %d times, want 1", n)
	}
}

func TestWithoutRetryTheCallerIsToldThatNothingIsKnown(t *testing.T) {
	working := make(chan struct{}, 10)
	serve(t, func(_ *rpc.Responder, d *session.Delivery) { working <- struct{}{}; <-t.Context().Done(); _ = d.Ack() })
	c := caller(t, func(o *rpc.CallerOptions) { o.NoRetry = true })
	got := make(chan error, 1)
	go func() {
		_, err := call(t, c, 30*time.Second, rpc.Call{Request: add})
		got <- err
	}()
	<-working
	closeConnections(t, contract.UserClient)
	if err := <-got; failure(err) != "nobody knows what became of the request, executed: true" {
		t.Errorf("got %s", failure(err))
	}
}

func purge(t *testing.T) {
	t.Helper()
	onBroker(t, func(ch *amqp.Channel) error { _, err := ch.QueuePurge(contract.RequestQueue, false); return err })
}

func TestALateReplyIsCountedAndReachesNobody(t *testing.T) {
	late := make(chan struct{})
	server(t, func(contract.Request) contract.Reply { <-late; return contract.Reply{Result: "3"} })
	var l ledger
	c := caller(t, func(o *rpc.CallerOptions) { o.Session.Events = event.NewRecorder(&l, "r", "c") })
	_, err := call(t, c, 300*time.Millisecond, rpc.Call{Request: add})
	if failure(err) != "no reply before the deadline, executed: true" {
		t.Errorf("got %s", failure(err))
	}
	close(late)
	deadline := time.Now().Add(10 * time.Second)
	for l.count(event.LateReply) != 1 {
		if time.Now().After(deadline) {
			t.Fatalf("got %d late replies, want 1", l.count(event.LateReply))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// The caller is gone when the server replies: 312 tells the server, and that
// is on record before the request is acked.
func TestAReplyToNobodyIsReturnedAndOnRecord(t *testing.T) {
	var l ledger
	outcome := make(chan session.Outcome, 1)
	gone := make(chan struct{})
	pub := session.NewPublisher(session.Options{Config: config(t, contract.UserServer), Name: "test-server"}, session.PublisherOptions{Exchange: contract.ReplyExchange})
	t.Cleanup(func() { _ = pub.Close(context.Background()) })
	r := rpc.NewResponder(pub, event.NewRecorder(&l, "r", "s"))
	serve(t, func(_ *rpc.Responder, d *session.Delivery) {
		<-gone
		o, _ := r.Reply(context.Background(), d, contract.Reply{Result: "3"})
		_ = d.Ack()
		outcome <- o
	})
	c := caller(t, nil)
	if _, err := call(t, c, 300*time.Millisecond, rpc.Call{Request: add}); !errors.Is(err, rpc.ErrDeadline) {
		t.Fatal(err)
	}
	if err := c.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	close(gone)
	if o := <-outcome; o != session.Returned || l.count(event.Orphaned) != 1 {
		t.Errorf("got %s and %d orphans on record, want %s and 1", o, l.count(event.Orphaned), session.Returned)
	}
}

// refuse binds a queue that takes nothing, as one does whose node is lost: the
// broker nacks what is routed to it, also if another queue has it.
func refuse(t *testing.T, key string) {
	t.Helper()
	const name = "test.refuses"
	onBroker(t, func(ch *amqp.Channel) error {
		if _, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{"x-max-length": 1, "x-overflow": "reject-publish"}); err != nil {
			return err
		}
		if err := ch.Confirm(false); err != nil {
			return err
		}
		for acked := true; acked; { // until it is full
			c, err := ch.PublishWithDeferredConfirm("", name, false, false, amqp.Publishing{})
			if err != nil {
				return err
			}
			acked = c.Wait()
		}
		return ch.QueueBind(name, key, contract.ReplyExchange, false, nil)
	})
	t.Cleanup(func() {
		onBroker(t, func(ch *amqp.Channel) error { _, err := ch.QueueDelete(name, false, false, false); return err })
	})
}

// outcomes serves and tells how each reply ended.
func outcomes(t *testing.T, l *ledger) <-chan session.Outcome {
	t.Helper()
	ended := make(chan session.Outcome, 10)
	pub := session.NewPublisher(session.Options{Config: config(t, contract.UserServer), Name: "test-server"}, session.PublisherOptions{Exchange: contract.ReplyExchange})
	t.Cleanup(func() { _ = pub.Close(context.Background()) })
	r := rpc.NewResponder(pub, event.NewRecorder(l, "r", "s"))
	serve(t, func(_ *rpc.Responder, d *session.Delivery) {
		o, _ := r.Reply(t.Context(), d, contract.Reply{Result: "3"})
		_ = d.Ack()
		ended <- o
	})
	return ended
}

// A node is lost, and with it a reply queue that stays bound. Its caller is lost
// or connected anew: the reply is an orphan, and the request can be acked.
func TestAReplyThatIsRefusedEndsAsAnOrphan(t *testing.T) {
	refuse(t, contract.EpochReplyKey(contract.UserClient, "test", 1))
	var l ledger
	ended := outcomes(t, &l)
	if _, err := call(t, caller(t, nil), 10*time.Second, rpc.Call{Request: add}); err != nil {
		t.Errorf("the queue that takes it: %v", err)
	}
	if o := <-ended; o != session.Nacked || l.count(event.Orphaned) != 1 {
		t.Errorf("got %s and %d orphans on record, want %s and 1", o, l.count(event.Orphaned), session.Nacked)
	}
}

// What is left of the last epoch costs this one nothing, and replies to requests
// of then are still received.
func TestEachEpochHasAReplyKeyOfItsOwn(t *testing.T) {
	var l ledger
	ended := outcomes(t, &l)
	c := caller(t, nil)
	closeConnections(t, contract.UserClient)
	refuse(t, contract.EpochReplyKey(contract.UserClient, "test", 1))
	if _, err := call(t, c, 20*time.Second, rpc.Call{Request: add, WaitForSession: true}); err != nil {
		t.Fatal(err)
	}
	if o := <-ended; o != session.Confirmed {
		t.Errorf("got %s, want %s", o, session.Confirmed)
	}
	// A request of the last epoch, which was ahead in the queue.
	got := make(chan amqp.Return, 1)
	onBroker(t, func(ch *amqp.Channel) error {
		if err := ch.Confirm(false); err != nil {
			return err
		}
		ch.NotifyReturn(got)
		if err := ch.QueueUnbind("test.refuses", contract.EpochReplyKey(contract.UserClient, "test", 1), contract.ReplyExchange, nil); err != nil {
			return err
		}
		c, err := ch.PublishWithDeferredConfirm(contract.ReplyExchange, contract.EpochReplyKey(contract.UserClient, "test", 1), true, false, amqp.Publishing{CorrelationId: "old.1"})
		if err == nil {
			c.Wait()
		}
		return err
	})
	if len(got) > 0 {
		t.Error("a reply to a request of the last epoch reaches nobody")
	}
}

func TestABrokerThatIsAwayIsUnavailableAtOnce(t *testing.T) {
	c, err := rpc.NewCaller(rpc.CallerOptions{
		Session: session.Options{Name: "test-client", Config: session.Config{URL: []string{"amqp://calc-client:x@127.0.0.1:1/calc"},
			Heartbeat: time.Second, WriteTimeout: time.Second, OpenTimeout: time.Second, MaxBackoff: time.Second}},
		Instance: "away", ReplyQueue: contract.ClientReplyQueue,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	if _, err := call(t, c, 30*time.Second, rpc.Call{Request: add}); failure(err) != "the broker is away or blocks publishers, executed: false" {
		t.Errorf("got %s", failure(err))
	}
	if _, err := call(t, c, 100*time.Millisecond, rpc.Call{Request: add, WaitForSession: true}); failure(err) != "the broker is away or blocks publishers, executed: false" {
		t.Errorf("after waiting for it: got %s", failure(err))
	}
}

// Published, it might cost the channel of all that is in flight, with each attempt.
func TestARequestThatIsTooLargeIsNotPublished(t *testing.T) {
	var lines ledger
	c := caller(t, func(o *rpc.CallerOptions) { o.Session.Events = event.NewRecorder(&lines, "test", "test-client") })
	_, err := call(t, c, 5*time.Second, rpc.Call{Body: make([]byte, contract.MaxBody+1)})
	if err == nil || !strings.Contains(err.Error(), "32769 bytes, at most 32768") {
		t.Errorf("got %v, want an error that names both sizes", err)
	}
	if n := lines.count(event.Publishing); n != 0 {
		t.Errorf("published %d times, want never", n)
	}
}

func TestABrokerThatRefusesIsOverloaded(t *testing.T) {
	onBroker(t, func(ch *amqp.Channel) error { // the request key leads to a queue that takes nothing
		if _, err := ch.QueueDeclare("test.full", true, false, false, false, amqp.Table{"x-queue-type": "classic", "x-max-length": 0, "x-overflow": "reject-publish"}); err != nil {
			return err
		}
		return errors.Join(ch.QueueBind("test.full", contract.RequestKey, contract.RequestExchange, false, nil),
			ch.QueueUnbind(contract.RequestQueue, contract.RequestKey, contract.RequestExchange, nil))
	})
	defer onBroker(t, func(ch *amqp.Channel) error {
		_, err := ch.QueueDelete("test.full", false, false, false)
		return errors.Join(err, ch.QueueBind(contract.RequestQueue, contract.RequestKey, contract.RequestExchange, false, nil))
	})
	if _, err := call(t, caller(t, nil), 20*time.Second, rpc.Call{Request: add}); failure(err) != "the broker refuses more requests, executed: true" {
		t.Errorf("got %s", failure(err))
	}
}

// A call never blocks past its deadline, whatever the broker does. What is
// allowed beyond it is for a busy machine; each outage lasts until all calls
// have returned.
func TestNoCallOutlivesItsDeadline(t *testing.T) {
	const (
		deadline    = "no reply before the deadline, executed: true"
		unavailable = "the broker is away or blocks publishers, executed: false"
	)
	uri, err := amqp.ParseURI(config(t, contract.UserClient).URL[0])
	if err != nil {
		t.Fatal("the client's URL is no AMQP URL")
	}
	addr, gate := newGate(t, net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)))
	uri.Host, uri.Port = "127.0.0.1", addr.Port
	for name, outage := range map[string]struct {
		begin, end func()
		silent     bool // only missing heartbeats tell
	}{
		"a stopped broker": {func() { control(t, "pause") }, func() { control(t, "resume") }, true},
		"a frozen network": {gate.Lock, gate.Unlock, true},
		"a memory alarm": {func() { control(t, "ctl", "set_vm_memory_high_watermark", "0") },
			func() { control(t, "ctl", "set_vm_memory_high_watermark", "0.6") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := caller(t, func(o *rpc.CallerOptions) {
				o.Session.Config.URL, o.Session.Config.Heartbeat = []string{uri.String()}, 3*time.Second
			})
			var calls sync.WaitGroup
			returns := func(what string, timeout time.Duration, request rpc.Call, want string) {
				request.Request = add
				calls.Go(func() {
					got := make(chan error, 1)
					go func() { _, err := call(t, c, timeout, request); got <- err }()
					select {
					case err := <-got:
						if failure(err) != want {
							t.Errorf("%s: got %s, want %s", what, failure(err), want)
						}
					case <-time.After(timeout + 2*time.Second):
						t.Errorf("%s: 2s past its deadline it still waits", what)
					}
				})
			}
			outage.begin()
			end := sync.OnceFunc(outage.end)
			t.Cleanup(end) // before the caller is closed
			returns("nobody has noticed", time.Second, rpc.Call{}, deadline)
			if outage.silent {
				returns("nobody has noticed, and it asks for a server", time.Second, rpc.Call{FailIfNoServer: true}, unavailable)
				returns("its session ends under it", 9*time.Second, rpc.Call{}, deadline)
			}
			for noticed := time.Now().Add(30 * time.Second); c.Ready() == nil; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(noticed) {
					t.Fatal("not noticed within 30s")
				}
			}
			returns("noticed", time.Second, rpc.Call{}, unavailable)
			returns("noticed, and it waits", time.Second, rpc.Call{WaitForSession: true}, unavailable)
			calls.Wait()
			end()
			await(t, c.WaitReady)
			purge(t)
		})
	}
}

// control talks to the broker's keeper.
func control(t *testing.T, action string, args ...string) {
	t.Helper()
	keeper := os.Getenv("LAB_BROKER_CONTROL")
	if keeper == "" {
		t.Fatal("LAB_BROKER_CONTROL is not set: run the tests with `go run ./services/lab broker -- go test …`")
	}
	body, _ := json.Marshal(args)
	r, err := http.NewRequest(http.MethodPost, keeper+"/"+action, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Close = true
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode > 299 {
		t.Fatalf("%s %v: %s", action, args, answer.Status)
	}
}

// newGate stands between a session and the broker. While somebody holds the
// lock nothing arrives any more, on connections old and new, and none is closed.
func newGate(t *testing.T, upstream string) (*net.TCPAddr, *sync.RWMutex) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gate := new(sync.RWMutex)
	var pumps sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); pumps.Wait() })
	pump := func(dst, src net.Conn) {
		defer dst.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			if err != nil {
				return
			}
			gate.RLock()
			_, err = dst.Write(buf[:n])
			gate.RUnlock()
			if err != nil {
				return
			}
		}
	}
	pumps.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			broker, err := net.Dial("tcp", upstream)
			if err != nil {
				_ = client.Close()
				continue
			}
			pumps.Go(func() { pump(broker, client) })
			pumps.Go(func() { pump(client, broker) })
		}
	})
	return l.Addr().(*net.TCPAddr), gate
}
