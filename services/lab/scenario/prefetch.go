package scenario

import (
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// A server dies with as many requests in hand as its prefetch allows.
//
// Promise: at prefetch 5 the broker delivers at most five again, and every call
// is answered. Control: at prefetch 50 the same death must drag more along.
var prefetch = Scenario{
	Name:    "prefetch",
	Topic:   "acknowledgements",
	Broke:   "server: SIGKILL with its prefetch in hand",
	Promise: "at most five requests come again",
	Run:     killWithPrefetch("5"),
	Controls: []Control{{
		Name:   "prefetch 50",
		Shows:  "one death makes dozens come again",
		Breaks: fewAgain,
		Run:    killWithPrefetch("50"),
	}},
}

const fewAgain = "at most five come again"

func killWithPrefetch(prefetch string) func(*World) {
	return func(w *World) {
		// ARRANGE  a server that works on one request at a time, and more requests than it may hold
		server := w.Serve(Settings{"PREFETCH": prefetch, "CONCURRENCY": "1"})
		// BREAK  it dies when the third is worked out
		server.CrashAt(fault.AfterWork, 3)
		w.Load("--count", "60", "--in-flight", "60", "--timeout", "30s")
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.Hit("a request delivered again", len(v.Redelivered()) > 0)
		v.That(fewAgain, len(v.Redelivered()) <= 5, "%d came again", len(v.Redelivered()))
		v.Same("every call is answered", v.With(event.Answered), v.asked())
	}
}
