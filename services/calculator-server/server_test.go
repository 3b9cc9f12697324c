package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kelseyhightower/envconfig"
	"github.com/prometheus/client_golang/prometheus"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
	"warren.example/messaging/session"
)

// world is a server whose wire and replies are written down in one order.
type world struct {
	*server
	recorder // also the wire of every delivery
	outcome  session.Outcome
	lines    bytes.Buffer
	logs     *observer.ObservedLogs
}

func (w *world) Reply(_ context.Context, _ *session.Delivery, reply contract.Reply) (session.Outcome, error) {
	err := w.say("reply %s", text(reply))
	if w.outcome != session.Confirmed {
		err = errors.New(w.outcome.String())
	}
	return w.outcome, err
}

func (w *world) ReplyUnconfirmed(_ context.Context, _ *session.Delivery, reply contract.Reply) {
	_ = w.say("unconfirmed reply %s", text(reply))
}

func text(reply contract.Reply) string {
	if reply.Error != nil {
		return string(reply.Error.Code)
	}
	return reply.Result
}

func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	t.Setenv("WARREN_AMQP_URL", "amqp://calc-server:secret@127.0.0.1/calc")
	var cfg Config
	if err := envconfig.Process("WARREN", &cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Database = filepath.Join(t.TempDir(), "calculator.db")
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	var memory Memory
	if cfg.Database != "" {
		memory = open(t, cfg)
	}
	w := &world{outcome: session.Confirmed}
	core, logs := observer.New(zapcore.DebugLevel)
	w.logs = logs
	events := event.NewRecorder(&w.lines, "run", "server-0")
	w.server = newServer(cfg, zap.New(core), events, newMetrics(prometheus.NewRegistry()), fault.New(events, faultPoints...), memory, w)
	w.crash = func() { panic("crashed") }
	return w
}

// happened is the events so far, and what the wire saw.
func (w *world) happened(t *testing.T) (events, wire string) {
	t.Helper()
	var kinds []string
	for line := range strings.Lines(w.lines.String()) {
		var l event.Line
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, string(l.Event))
	}
	w.recorder.mu.Lock()
	defer w.recorder.mu.Unlock()
	return strings.Join(kinds, " "), strings.Join(w.saw, ", ")
}

// request is a valid one, with a change.
func request(body string, change func(*amqp.Delivery)) *amqp.Delivery {
	d := &amqp.Delivery{
		MessageId: "id-1", CorrelationId: "id-1.1", UserId: contract.UserClient, ReplyTo: contract.ReplyKey(contract.UserClient, "client-0"),
		ContentType: contract.ContentType, Type: contract.RequestType, DeliveryTag: 7,
		Headers: amqp.Table{contract.HeaderDeadline: time.Now().Add(time.Hour).UnixMilli()},
		Body:    []byte(body),
	}
	if change != nil {
		change(d)
	}
	return d
}

const add = `{"operation":"add","operands":["0.1","0.2"]}`

func (w *world) deliver(d *amqp.Delivery, ended <-chan struct{}) {
	w.serve(&delivery{wire: &w.recorder, message: d, epoch: 1, ended: ended})
}

func TestServe(t *testing.T) {
	expired := func(d *amqp.Delivery) { d.Headers[contract.HeaderDeadline] = time.Now().Add(-time.Second).UnixMilli() }
	forged := func(d *amqp.Delivery) { d.ReplyTo = contract.ReplyKey("calc-admin", "x") }
	unknown := session.Unknown
	for what, tc := range map[string]struct {
		config  func(*Config)
		body    string
		change  func(*amqp.Delivery)
		outcome session.Outcome // of the reply; 0: confirmed
		events  string          // of the server; those of the reply are the Responder's
		wire    string
	}{
		"a sum": {
			body: add, events: "delivered computed acked", wire: "reply 0.3, ack",
		},
		"the caller is gone": {
			body: add, outcome: session.Returned, events: "delivered computed acked", wire: "reply 0.3, ack",
		},
		"the node with the reply queue is lost": {
			body: add, outcome: session.Nacked, events: "delivered computed acked", wire: "reply 0.3, ack",
		},
		"nobody knows whether the reply arrived": {
			body: add, outcome: unknown, events: "delivered computed", wire: "reply 0.3",
		},
		"well formed but wrong: unknown operation": {
			body: `{"operation":"frobnicate","operands":[]}`, events: "delivered computed acked", wire: "reply UNIMPLEMENTED, ack",
		},
		"well formed but wrong: one operand": {
			body: `{"operation":"add","operands":["1"]}`, events: "delivered computed acked", wire: "reply INVALID_ARGUMENT, ack",
		},
		"well formed but wrong: not a number": {
			body: `{"operation":"negate","operands":["x"]}`, events: "delivered computed acked", wire: "reply INVALID_ARGUMENT, ack",
		},
		"too much work": {
			body: `{"operation":"power","operands":["-1","1e10"]}`, events: "delivered computed acked", wire: "reply TOO_MUCH_WORK, ack",
		},
		"no result": {
			body: `{"operation":"divide","operands":["1","0"]}`, events: "delivered computed acked", wire: "reply DIVIDE_BY_ZERO, ack",
		},
		"not JSON": {
			body: `{`, events: "delivered dead-lettered", wire: "reply MALFORMED, reject requeue=false",
		},
		"an operation of 30 KB does not end the ledger": {
			body: `{"operation":"` + strings.Repeat("x", 30<<10) + `","operands":[]}`, events: "delivered computed acked", wire: "reply UNIMPLEMENTED, ack",
		},
		"not JSON, and the reply is not confirmed": {
			body: `{`, outcome: unknown, events: "delivered", wire: "reply MALFORMED",
		},
		"version of tomorrow": {
			body: add, change: func(d *amqp.Delivery) { d.Type = "calc.request.v2" },
			events: "delivered dead-lettered", wire: "reply UNIMPLEMENTED, reject requeue=false",
		},
		"reply-to missing": {
			body: add, change: func(d *amqp.Delivery) { d.ReplyTo = "" },
			events: "delivered dead-lettered", wire: "reject requeue=false",
		},
		"reply-to forged": {
			body: add, change: forged, events: "delivered dead-lettered", wire: "reject requeue=false",
		},
		"deadline passed in our hands": {
			body: add, change: expired, events: "delivered dead-lettered", wire: "reply DEADLINE_EXCEEDED, reject requeue=false",
		},
		"panic": {
			config: func(c *Config) { c.PanicOn = "add" },
			body:   add, events: "delivered dead-lettered", wire: "reply INTERNAL, reject requeue=false",
		},
		"memory": {
			body: `{"operation":"memory-add","operands":["2"]}`, events: "delivered computed acked", wire: "reply 2, ack",
		},
		"no database": {
			config: func(c *Config) { c.Database = "" },
			body:   `{"operation":"memory-recall","operands":[]}`, events: "delivered computed acked", wire: "reply UNIMPLEMENTED, ack",
		},
		"lesson: deadline not checked": {
			config: func(c *Config) { c.DeadlineCheck = false },
			body:   add, change: expired, events: "delivered computed acked", wire: "reply 0.3, ack",
		},
		"lesson: ack before reply": {
			config: func(c *Config) { c.AckBeforeReply = true },
			body:   add, events: "delivered computed acked", wire: "ack, reply 0.3",
		},
		"lesson: ack before reply is about acks only": {
			config: func(c *Config) { c.AckBeforeReply = true },
			body:   `{`, events: "delivered dead-lettered", wire: "reply MALFORMED, reject requeue=false",
		},
		"lesson: reply not confirmed": {
			config: func(c *Config) { c.ReplyConfirm = false },
			body:   add, events: "delivered computed acked", wire: "unconfirmed reply 0.3, ack",
		},
		"lesson: invalid requests requeued": {
			config: func(c *Config) { c.OnInvalid = invalidRequeue },
			body:   `{`, events: "delivered retried", wire: "reject requeue=true",
		},
		"lesson: auto-ack": { // the session says nothing on the wire then
			config: func(c *Config) { c.AutoAck = true },
			body:   add, events: "delivered acked computed", wire: "reply 0.3, ack",
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, tc.config)
			if tc.outcome != 0 {
				w.outcome = tc.outcome
			}
			w.deliver(request(tc.body, tc.change), nil)
			events, wire := w.happened(t)
			if events != tc.events || wire != tc.wire {
				t.Errorf("got  events %q, wire %q\nwant events %q, wire %q", events, wire, tc.events, tc.wire)
			}
		})
	}
}

// The same request twice, as after a redelivery or a retry of the caller.
func TestServeTwice(t *testing.T) {
	for what, tc := range map[string]struct {
		idempotency bool
		body        [2]string
		events      string
		wire        string
	}{
		"memory-add runs once": {true, [2]string{`{"operation":"memory-add","operands":["2"]}`, `{"operation":"memory-add","operands":["2"]}`},
			"delivered computed acked delivered deduplicated acked", "reply 2, ack, reply 2, ack"},
		"another body under the same id": {true, [2]string{`{"operation":"memory-add","operands":["2"]}`, `{"operation":"memory-add","operands":["3"]}`},
			"delivered computed acked delivered deduplicated acked", "reply 2, ack, reply ID_CONFLICT, ack"},
		"lesson: no idempotency key": {false, [2]string{`{"operation":"memory-add","operands":["2"]}`, `{"operation":"memory-add","operands":["2"]}`},
			"delivered computed acked delivered computed acked", "reply 2, ack, reply 4, ack"},
		"a pure function needs no key": {true, [2]string{add, add},
			"delivered computed acked delivered computed acked", "reply 0.3, ack, reply 0.3, ack"},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Idempotency = tc.idempotency })
			for _, body := range tc.body {
				w.deliver(request(body, nil), nil)
			}
			events, wire := w.happened(t)
			if events != tc.events || wire != tc.wire {
				t.Errorf("got  events %q, wire %q\nwant events %q, wire %q", events, wire, tc.events, tc.wire)
			}
		})
	}
}

// An order for a point that no delivery passes would wait for ever.
func TestEveryFaultPointFiresAndNoOtherIsTaken(t *testing.T) {
	for _, point := range faultPoints {
		w := newWorld(t, nil)
		if err := w.faults.Arm(fault.Order{Point: point, Action: fault.Hold, N: 1}); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { defer close(done); w.deliver(request(add, nil), nil) }()
		eventually(t, "let go at "+string(point), func() bool {
			w.faults.Release()
			select {
			case <-done:
				return true
			default:
				return false
			}
		})
		if events, _ := w.happened(t); !strings.Contains(events, string(event.Held)) {
			t.Errorf("%s: got events %q, want it held", point, events)
		}
	}
	err := newWorld(t, nil).faults.Arm(fault.Order{Point: fault.AfterCommit, Action: fault.Crash, N: 1})
	if err == nil || !strings.Contains(err.Error(), string(fault.AfterAck)) {
		t.Errorf("the auditor's point: got %v, want an error that names ours", err)
	}
}

func TestPanicIsLoggedWithItsStackAndTheReplyHasNone(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.PanicOn = "add" })
	w.deliver(request(add, func(d *amqp.Delivery) {
		d.Headers[contract.HeaderTraceparent] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	}), nil)
	logged := w.logs.FilterMessage("handler panicked").All()
	if len(logged) != 1 || !strings.Contains(fmt.Sprint(logged[0].ContextMap()["stack"]), "attempt") {
		t.Fatalf("log has %v, want one panic with its stack", logged)
	}
	if got := logged[0].ContextMap()["trace_id"]; got != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("trace_id %v, want the request's", got)
	}
}

func TestLessonsThatTakeTheServerDown(t *testing.T) {
	for what, change := range map[string]func(*Config){
		"no recover": func(c *Config) { c.Recover, c.PanicOn = false, "add" },
		"crash":      func(c *Config) { c.Recover, c.CrashOn = false, "add" }, // the crash is a panic here
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, change)
			defer func() {
				p := recover()
				if events, wire := w.happened(t); p == nil || events != "delivered" || wire != "" {
					t.Errorf("panic %v, events %q, wire %q; want one, delivered, and nothing", p, events, wire)
				}
			}()
			w.deliver(request(add, nil), nil)
		})
	}
}

// While the database is locked the delivery is held and nothing is settled;
// when it is back the request is answered, without a redelivery.
func TestHoldWhileTheDatabaseIsAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "calculator.db")
	w := newWorld(t, func(c *Config) { c.Database = path })
	unlock := lock(t, Config{Database: path})
	var done sync.WaitGroup
	done.Go(func() { w.deliver(request(`{"operation":"memory-add","operands":["2"]}`, nil), nil) })
	eventually(t, "held", func() bool { return w.held.Load() == 1 })
	if f := (&flow{server: w.server, publisher: fakeSession{}}); f.trouble() == nil {
		t.Error("no trouble while the database is away")
	}
	if _, wire := w.happened(t); wire != "" {
		t.Errorf("wire saw %q while the database was away", wire)
	}
	unlock()
	done.Wait()
	if events, wire := w.happened(t); events != "delivered computed acked" || wire != "reply 2, ack" {
		t.Errorf("got events %q, wire %q; want it answered and acked", events, wire)
	}
	if n := w.held.Load(); n != 0 {
		t.Errorf("%d held, want 0", n)
	}
}

// What has not begun when the server drains or the epoch ends.
func TestWaitingForASlot(t *testing.T) {
	for what, tc := range map[string]struct {
		stop func(*world, chan struct{})
		wire string
	}{
		"draining: somebody else's turn":       {func(w *world, _ chan struct{}) { close(w.draining) }, "nack requeue=true"},
		"epoch over: the broker has it by now": {func(_ *world, ended chan struct{}) { close(ended) }, ""},
		"a slot becomes free":                  {func(w *world, _ chan struct{}) { <-w.slots }, "reply 0.3, ack"},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Concurrency = 1 })
			w.slots <- struct{}{} // taken
			ended := make(chan struct{})
			var done sync.WaitGroup
			done.Go(func() { w.deliver(request(add, nil), ended) })
			tc.stop(w, ended)
			done.Wait()
			if _, wire := w.happened(t); wire != tc.wire {
				t.Errorf("wire saw %q, want %q", wire, tc.wire)
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	for tries := range 100 {
		if d := backoff(tries); d < 50*time.Millisecond || d > 2*time.Second {
			t.Errorf("backoff(%d) = %s, want 50ms to 2s", tries, d)
		}
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within 20 seconds: %s", what)
		case <-tick.C:
		}
	}
}
