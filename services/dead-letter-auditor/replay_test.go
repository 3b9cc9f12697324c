package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"warren.example/messaging/contract"
	"warren.example/messaging/rpc"
)

// wire stands for the broker and the servers: it records each call and answers.
type wire struct {
	away   error
	answer func(ctx context.Context, call rpc.Call) (contract.Reply, error)

	mu  sync.Mutex
	saw []rpc.Call
}

func (w *wire) Ready() error { return w.away }

func (w *wire) Call(ctx context.Context, call rpc.Call) (contract.Reply, error) {
	w.mu.Lock()
	w.saw = append(w.saw, call)
	w.mu.Unlock()
	return w.answer(ctx, call)
}

func answers(reply contract.Reply, err error) func(context.Context, rpc.Call) (contract.Reply, error) {
	return func(context.Context, rpc.Call) (contract.Reply, error) { return reply, err }
}

func newReplayer(store Store, w *wire) *replayer {
	return &replayer{store: store, caller: w, timeout: time.Second, lease: time.Minute,
		metrics: newMetrics(prometheus.NewRegistry(), store), log: zap.NewNop(), slots: make(chan struct{}, maxReplays)}
}

func TestReplayClosesTheRow(t *testing.T) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	failed := func(may bool, err error) error {
		return &rpc.CallError{Request: "m", Attempts: 1, MayHaveExecuted: may, Err: err}
	}
	for name, c := range map[string]struct {
		reply   contract.Reply
		err     error
		status  Status
		outcome string
	}{
		"a result":                    {contract.Reply{Result: "0.3"}, nil, Answered, "0.3"},
		"the server's no":             {contract.Reply{}, &contract.Error{Code: contract.DivideByZero, Message: "1/0"}, Refused, "DIVIDE_BY_ZERO: 1/0"},
		"the server's not now":        {contract.Reply{}, &contract.Error{Code: contract.Internal, Message: "x", Retryable: true}, ReplayFailed, "INTERNAL: x"},
		"no queue":                    {contract.Reply{}, failed(false, rpc.ErrNoServer), ReplayFailed, rpc.ErrNoServer.Error()},
		"silence: it may be executed": {contract.Reply{}, failed(true, rpc.ErrDeadline), Replaying, ""},
		"in flight in this process":   {contract.Reply{}, errors.New("in flight already"), Replaying, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			row := mustAudit(t, s, newLetter("m", func(l *DeadLetter) { l.Headers = []byte(`{"calc-attempt":2,"traceparent":"` + trace + `"}`) }))
			w := &wire{answer: answers(c.reply, c.err)}
			r := newReplayer(s, w)
			if _, err := r.replay(t.Context(), t.Context(), row.ID, "ann"); err != nil {
				t.Fatal(err)
			}
			r.calls.Wait()
			got := mustFind(t, s, row.ID)
			if got.Status != c.status || got.Outcome != c.outcome {
				t.Errorf("got %s %q, want %s %q", got.Status, got.Outcome, c.status, c.outcome)
			}
			call := w.saw[0]
			if call.ID != "m" || call.Replay != 1 || call.OriginalUser != "calc-client" || call.Trace != trace || string(call.Body) != string(row.Body) {
				t.Errorf("published %+v, want message m, generation 1, for calc-client, in its trace, with the body as it was", call)
			}
		})
	}
}

func TestReplayTwiceIsOneGeneration(t *testing.T) {
	s := newStore(t)
	row := mustAudit(t, s, newLetter("m"))
	let := make(chan struct{})
	w := &wire{answer: func(context.Context, rpc.Call) (contract.Reply, error) {
		<-let
		return contract.Reply{Result: "1"}, nil
	}}
	r := newReplayer(s, w)
	var conflicts int
	var mu sync.Mutex
	var people sync.WaitGroup
	for person := range 5 {
		people.Go(func() {
			_, err := r.replay(context.Background(), context.Background(), row.ID, fmt.Sprint("p", person))
			var conflict *Conflict
			mu.Lock()
			defer mu.Unlock()
			if errors.As(err, &conflict) {
				conflicts++
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	people.Wait()
	close(let)
	r.calls.Wait()
	if conflicts != 4 || len(w.saw) != 1 {
		t.Errorf("got %d conflicts and %d publishes, want 4 and 1", conflicts, len(w.saw))
	}
	if _, err := r.replay(t.Context(), t.Context(), row.ID, "late"); err == nil {
		t.Error("an answered dead letter was replayed again")
	}
}

// A crash between the claim and the publish, or between publish and answer,
// leaves a lease. The sweeper publishes again, under the same generation.
func TestSweeperFinishesWhatACrashLeft(t *testing.T) {
	s := newStore(t)
	row := mustAudit(t, s, newLetter("m"))
	if _, err := s.Claim(t.Context(), row.ID, "ann", -time.Millisecond); err != nil { // and here the process died
		t.Fatal(err)
	}
	answered := make(chan struct{})
	w := &wire{answer: func(context.Context, rpc.Call) (contract.Reply, error) {
		defer close(answered)
		return contract.Reply{Result: "7"}, nil
	}}
	r := newReplayer(s, w)
	ctx, stop := context.WithCancel(t.Context())
	swept := make(chan struct{})
	go func() { defer close(swept); r.sweep(ctx) }()
	select {
	case <-answered:
	case <-time.After(10 * time.Second):
		t.Error("nothing was published within 10 s")
	}
	stop()
	<-swept
	r.calls.Wait()
	if got := mustFind(t, s, row.ID); got.Status != Answered || got.Outcome != "7" || got.Generation != 1 {
		t.Errorf("got %s %q generation %d, want answered 7 generation 1", got.Status, got.Outcome, got.Generation)
	}
	if w.saw[0].Replay != 1 {
		t.Errorf("published as generation %d, want 1", w.saw[0].Replay)
	}
}

// After a takeover "not executed" is true of this publish only.
func TestATakeoverNeverCallsTheReplayFailed(t *testing.T) {
	err := &rpc.CallError{Request: "m", Err: rpc.ErrUnavailable}
	if to, _ := judge(contract.Reply{}, err, true); to != ReplayFailed {
		t.Errorf("first: got %s, want %s", to, ReplayFailed)
	}
	if to, _ := judge(contract.Reply{}, err, false); to != Replaying {
		t.Errorf("takeover: got %s, want %s", to, Replaying)
	}
}

func TestNothingBeginsWhileTheBrokerIsAway(t *testing.T) {
	s := newStore(t)
	row := mustAudit(t, s, newLetter("m"))
	r := newReplayer(s, &wire{away: errors.New("not connected")})
	if r.Ready() == nil {
		t.Error("ready while every replay is refused")
	}
	var unavailable *Unavailable
	if _, err := r.replay(t.Context(), t.Context(), row.ID, "ann"); !errors.As(err, &unavailable) {
		t.Errorf("got %v, want unavailable", err)
	}
	if got := mustFind(t, s, row.ID); got.Status != Open || got.Generation != 0 {
		t.Errorf("got %s generation %d, want it untouched", got.Status, got.Generation)
	}
}
