package scenario

import (
	"warren.example/lab/link"
	"warren.example/messaging/event"
)

// The network between a server and the broker falls silent when the server sends
// its first reply: nothing passes, and neither end is told.
//
// Promise: both notice by their heartbeats, the server after one and a half, the
// broker after three; it gives the requests to another server, and every call is
// answered.
// Control: where three heartbeats are longer than the callers' patience, the calls
// must end at their deadlines.
var halfOpen = Scenario{
	Name:    "half-open",
	Topic:   "network",
	Broke:   "network: silent, and nobody is told",
	Promise: "heartbeats notice, every call is answered",
	Run:     silenceLink("1s"),
	Controls: []Control{{
		Name:   "heartbeat 60 s",
		Shows:  "calls end at their deadlines",
		Breaks: everyCall,
		Run:    silenceLink("60s"),
	}},
}

func silenceLink(heartbeat string) func(*World) {
	return func(w *World) {
		// ARRANGE  a server behind a link, and one beside it; an auditor for what is taken too late
		w.Audit(nil)
		way := w.Link()
		w.Serve(way.Settings().With(Settings{"AMQP_HEARTBEAT": heartbeat, "PREFETCH": "5", "CONCURRENCY": "1"}))
		w.Serve(nil)
		// BREAK
		way.BreakAt(link.Service, "basic.publish", 1, link.Freeze)
		load := w.Load("--count", "20", "--in-flight", "20", "--timeout", "8s")
		// OBSERVE  it heals when every call has ended
		load.Ended()
		way.Heal()
		v := w.Settle()
		// VERDICT
		v.Hit("the link silent", way.Broke(1))
		v.Hit("a request delivered again", len(v.Redelivered()) > 0)
		v.Same(everyCall, v.With(event.Answered), v.asked())
	}
}
