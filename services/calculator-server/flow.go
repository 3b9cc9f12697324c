package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"warren.example/messaging/event"
)

// source is what the flow of deliveries needs of a *session.Consumer, sink of a
// *session.Publisher.
type (
	source interface {
		Ready() error
		Pause(context.Context) error
		Resume()
		Close(context.Context) error
	}
	sink interface {
		Ready() error
		Close(context.Context) error
	}
)

// flow decides when deliveries come and when they stop: paused while the
// server could not answer them, drained at the end.
type flow struct {
	server    *server
	publisher sink

	mu       sync.Mutex
	consumer source // nil until the publisher was ready for the first time
	draining bool
}

// Ready says whether the server does its work. The order of the questions is
// from cause to effect.
func (f *flow) Ready() error {
	f.mu.Lock()
	consumer, draining := f.consumer, f.draining
	f.mu.Unlock()
	if draining {
		return errDraining
	}
	if err := f.trouble(); err != nil {
		return err
	}
	if consumer == nil {
		return errors.New("consumer: not started")
	}
	if err := consumer.Ready(); err != nil {
		return fmt.Errorf("consumer: %w", err)
	}
	return nil
}

// trouble is why deliveries could not be answered now, or nil.
func (f *flow) trouble() error {
	if err := f.publisher.Ready(); err != nil {
		return fmt.Errorf("publisher: %w", err)
	}
	if err := f.server.away.Load(); err != nil && f.server.held.Load() > 0 {
		return fmt.Errorf("memory: %w", *err)
	}
	return nil
}

// start begins to consume.
func (f *flow) start(consumer source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.consumer = consumer
}

// regulate pauses the consumer while there is trouble and resumes it after,
// until ctx ends. What is in hand stays in hand meanwhile. Polling is coarse on
// purpose: trouble that is over within a moment needs no pause.
func (f *flow) regulate(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	paused := false
	for {
		why := f.trouble()
		switch {
		case why != nil && !paused:
			f.server.log.Warn("consumer paused", zap.Error(why))
			if err := f.consumer.Pause(ctx); err != nil && ctx.Err() == nil {
				f.server.log.Warn("consumer not paused", zap.Error(err))
			}
			paused = true
		case why == nil && paused:
			f.server.log.Info("consumer resumed")
			f.consumer.Resume()
			paused = false
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// drain ends the flow. Each step makes the next one finite, one deadline covers
// the first three, and later steps run even if earlier ones fail.
func (f *flow) drain(timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()

	// 1. Readiness fails, so that nobody counts on us.
	f.mu.Lock()
	f.draining = true
	consumer := f.consumer
	f.mu.Unlock()
	f.server.log.Info("draining", zap.Int("in_hand", f.server.inHand.count()))
	f.server.events.Record(event.Line{Event: event.Draining})

	// 2. The broker sends nothing more. Only then is what waits for a slot given
	// away: before, the broker would give it back to us.
	var paused error
	if consumer != nil {
		paused = consumer.Pause(ctx)
	}
	close(f.server.draining)

	// 3. Work that has begun is finished, answered and acked. What is not done in
	// time is cut short: it comes again, somewhere else.
	late := 0
	if !f.server.inHand.wait(ctx) {
		late = f.server.inHand.count()
	}
	f.server.giveUp()

	// 4. The consumer first: its close flushes the acks, and the replies that they
	// speak of are confirmed already.
	closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if late > 0 {
		hurry, cancel := context.WithTimeout(closing, time.Second)
		f.server.inHand.wait(hurry) // to be released rather than cut off
		cancel()
	}
	var closed error
	if consumer != nil {
		closed = consumer.Close(closing) // its epoch is over: whatever is left lets go
		f.server.inHand.wait(closing)
	}
	closed = errors.Join(closed, f.publisher.Close(closing))
	if late > 0 {
		closed = errors.Join(closed, fmt.Errorf("%d deliveries were not finished within %s; the broker delivers them again", late, timeout))
	}

	// 5. The record says that it is complete.
	f.server.events.Record(event.Line{Event: event.Drained, Reason: fmt.Sprintf("%d deliveries late", late)})
	return errors.Join(paused, closed)
}
