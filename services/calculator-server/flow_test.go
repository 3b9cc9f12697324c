package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeSession is a publisher or consumer that writes down what it was told.
type fakeSession struct {
	name string
	log  *recorder
	why  func() error
}

func (f fakeSession) Ready() error {
	if f.why == nil {
		return nil
	}
	return f.why()
}
func (f fakeSession) Pause(context.Context) error { return f.log.say("%s pause", f.name) }
func (f fakeSession) Resume()                     { _ = f.log.say("%s resume", f.name) }
func (f fakeSession) Close(context.Context) error { return f.log.say("%s close", f.name) }

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.saw, ", ")
}

func TestReady(t *testing.T) {
	away := func() error { return errors.New("away") }
	for what, tc := range map[string]struct {
		publisher, consumer func() error
		started             bool
		change              func(*flow)
		want                string
	}{
		"all is well":       {nil, nil, true, nil, ""},
		"not yet consuming": {nil, nil, false, nil, "consumer: not started"},
		"no publisher":      {away, nil, true, nil, "publisher: away"},
		"no consumer":       {nil, away, true, nil, "consumer: away"},
		"no database":       {nil, nil, true, func(f *flow) { err := away(); f.server.away.Store(&err); f.server.held.Add(1) }, "memory: away"},
		"database is back":  {nil, nil, true, func(f *flow) { err := away(); f.server.away.Store(&err) }, ""},
		"draining":          {nil, nil, true, func(f *flow) { f.draining = true }, "draining"},
	} {
		t.Run(what, func(t *testing.T) {
			f := &flow{server: newWorld(t, nil).server, publisher: fakeSession{why: tc.publisher}}
			if tc.started {
				f.start(fakeSession{why: tc.consumer})
			}
			if tc.change != nil {
				tc.change(f)
			}
			got := ""
			if err := f.Ready(); err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("Ready: %q, want %q", got, tc.want)
			}
		})
	}
}

func TestRegulatePausesWhileThereIsTrouble(t *testing.T) {
	var log recorder
	var mu sync.Mutex
	var why error
	set := func(err error) { mu.Lock(); defer mu.Unlock(); why = err }
	f := &flow{server: newWorld(t, nil).server, publisher: fakeSession{why: func() error { mu.Lock(); defer mu.Unlock(); return why }}}
	f.start(fakeSession{name: "consumer", log: &log})
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { f.regulate(ctx, time.Millisecond) })
	for _, step := range []struct {
		why  error
		want string
	}{
		{errors.New("blocked"), "consumer pause"},
		{nil, "consumer pause, consumer resume"},
		{errors.New("away"), "consumer pause, consumer resume, consumer pause"},
	} {
		set(step.why)
		eventually(t, step.want, func() bool { return log.String() == step.want })
	}
	cancel()
	done.Wait()
}

func TestDrain(t *testing.T) {
	const order = "consumer pause, consumer close, publisher close"
	for what, tc := range map[string]struct {
		inHand func(w *world) // a delivery's goroutine, or nil
		fails  bool
	}{
		"nothing in hand":             {nil, false},
		"work that ends in time":      {func(w *world) { <-w.draining }, false},
		"work that takes much longer": {func(w *world) { <-w.work.Done() }, true},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, nil)
			var log recorder
			f := &flow{server: w.server, publisher: fakeSession{name: "publisher", log: &log}}
			f.start(fakeSession{name: "consumer", log: &log})
			if tc.inHand != nil {
				w.inHand.add(1)
				go func() {
					defer w.inHand.add(-1)
					tc.inHand(w)
				}()
			}
			timeout := 10 * time.Second
			if tc.fails {
				timeout = 10 * time.Millisecond
			}
			if err := f.drain(timeout); (err != nil) != tc.fails {
				t.Errorf("drain: %v, want an error: %t", err, tc.fails)
			}
			if got := log.String(); got != order {
				t.Errorf("order %q, want %q", got, order)
			}
			if events, _ := w.happened(t); events != "draining drained" {
				t.Errorf("events %q, want draining drained", events)
			}
			if err := f.Ready(); err == nil {
				t.Error("ready after the drain")
			}
		})
	}
}
