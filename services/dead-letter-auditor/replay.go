package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/rpc"
)

// replayer sends dead letters back as requests. The row in the store decides
// everything: whoever changes it to replaying publishes, under a generation
// that nobody else gets.
//
//	claim (commit) ─▶ publish ─▶ reply ─▶ close
//	      └─ a crash anywhere here: the lease ends, and the sweeper publishes
//	         again under the same generation. A server may see it twice, as it
//	         may any request; there is never a second generation.
type replayer struct {
	store   Store
	caller  caller
	timeout time.Duration // deadline of the replayed request
	lease   time.Duration
	events  *event.Recorder
	metrics *metrics
	log     *zap.Logger

	calls sync.WaitGroup
	slots chan struct{} // bounds the calls in flight

	trouble atomic.Pointer[error] // of the last sweep with the store; nil: none
}

// caller is an *rpc.Caller.
type caller interface {
	Ready() error
	Call(context.Context, rpc.Call) (contract.Reply, error)
}

// maxReplays is how many replays may be in flight.
const maxReplays = 64

// Unavailable says that nothing was begun, and why.
type Unavailable struct{ Err error }

func (u *Unavailable) Error() string { return "not now: " + u.Err.Error() }

// replay starts a replay and returns the row as it is then. The answer comes
// later, into the row. The call lives as long as the service's ctx, not as
// long as the request for it.
func (r *replayer) replay(ctx, service context.Context, id int64, actor string) (DeadLetter, error) {
	if err := r.caller.Ready(); err != nil {
		return DeadLetter{}, &Unavailable{err}
	}
	select {
	case r.slots <- struct{}{}:
	default:
		return DeadLetter{}, &Unavailable{fmt.Errorf("%d replays are under way", maxReplays)}
	}
	row, err := r.store.Claim(ctx, id, actor, r.lease)
	if err != nil {
		<-r.slots
		return row, err
	}
	r.log.Info("replay started", zap.String("request", row.MessageID), zap.Int64("row", row.ID), zap.Int("replay", row.Generation), zap.String("actor", actor))
	r.start(service, row, "by "+actor, true)
	return row, nil
}

// sweep publishes again what a crash or a silence has left, until ctx ends.
func (r *replayer) sweep(ctx context.Context) {
	for tick := time.NewTicker(time.Second); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		for r.caller.Ready() == nil && r.reclaim(ctx) {
		}
	}
}

// reclaim takes over one replay, if there is one and a slot for it.
func (r *replayer) reclaim(ctx context.Context) bool {
	select {
	case r.slots <- struct{}{}:
	default:
		return false
	}
	row, err := r.store.Reclaim(ctx, r.lease)
	if err != nil {
		<-r.slots
		if errors.Is(err, ErrNotFound) {
			r.trouble.Store(nil)
		} else if r.trouble.Swap(&err) == nil && ctx.Err() == nil {
			r.log.Warn("replays not swept", zap.Error(err))
		}
		return false
	}
	r.trouble.Store(nil)
	r.log.Warn("replay taken over", zap.String("request", row.MessageID), zap.Int64("row", row.ID), zap.Int("replay", row.Generation))
	r.start(ctx, row, "again, its lease had ended", false)
	return true
}

// Ready is nil while a replay can begin: its session is open, and the sweeper,
// which asks every second, finds the database.
func (r *replayer) Ready() error {
	if err := r.trouble.Load(); err != nil {
		return *err
	}
	return r.caller.Ready()
}

// start publishes in the background; the caller has taken a slot.
func (r *replayer) start(ctx context.Context, row DeadLetter, how string, first bool) {
	r.events.Record(event.Line{Event: event.Replayed, Request: row.MessageID, Replay: row.Generation, Reason: how})
	r.calls.Go(func() {
		defer func() { <-r.slots }()
		r.publish(ctx, row, first)
	})
}

// publish sends the request, waits for its answer and closes the row.
func (r *replayer) publish(ctx context.Context, row DeadLetter, first bool) {
	call, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	// The body goes out byte for byte: the server compares its hash with the one
	// that it has kept under this message-id. Of the old headers only the trace does;
	// 3.10 would count on from an x-death that is published again.
	reply, err := r.caller.Call(call, rpc.Call{
		ID: row.MessageID, Body: row.Body, Replay: row.Generation, OriginalUser: row.Asker(), Trace: row.Trace(),
	})
	to, outcome := judge(reply, err, first)
	r.metrics.replayed(to)
	if to == Replaying {
		r.log.Warn("replay unanswered", zap.String("request", row.MessageID), zap.Int64("row", row.ID), zap.Error(err))
		return // its next death or the sweeper takes it from here
	}
	closed, err := r.store.Close(context.WithoutCancel(ctx), row.Token, to, clean(outcome, 500))
	if err != nil {
		r.log.Error("replay not closed", zap.String("request", row.MessageID), zap.Int64("row", row.ID), zap.Error(err))
		return // the sweeper will publish it again and hear the same answer
	}
	r.log.Info("replay ended", zap.String("request", row.MessageID), zap.Int64("row", row.ID), zap.String("status", string(to)), zap.Bool("closed", closed))
}

// judge says what the end of a call means for the row; Replaying means that
// nothing is known. After a takeover no failure proves that the request was
// not executed: the publish before may have reached a server.
func judge(reply contract.Reply, err error, first bool) (Status, string) {
	var refused *contract.Error
	var failed *rpc.CallError
	switch {
	case err == nil:
		return Answered, reply.Result
	case errors.As(err, &refused) && refused.Retryable:
		return ReplayFailed, refused.Error()
	case errors.As(err, &refused):
		return Refused, refused.Error()
	case errors.As(err, &failed) && !failed.MayHaveExecuted && first:
		return ReplayFailed, failed.Err.Error()
	default:
		return Replaying, ""
	}
}
