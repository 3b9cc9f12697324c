package scenario

import (
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// A server is stopped by SIGSTOP with requests in hand. Unlike after SIGKILL its
// connections stay open, so only silence tells the broker.
//
// Promise: after three heartbeats the broker gives the requests to another
// server, and every call is answered; what the first does when it goes on is a
// counted duplicate.
// Control: where three heartbeats are longer than the callers' patience, the calls
// must end at their deadlines.
var serverFrozen = Scenario{
	Name:    "server-frozen",
	Topic:   "network",
	Broke:   "server: SIGSTOP with requests in hand",
	Promise: "another answers them after three heartbeats",
	Needs:   Needs{Own: true},
	Run:     freezeServer("1s"),
	Controls: []Control{{
		Name:   "heartbeat 60 s",
		Shows:  "calls end at their deadlines",
		Breaks: everyCall,
		Run:    freezeServer("60s"),
	}},
}

func freezeServer(heartbeat string) func(*World) {
	return func(w *World) {
		const calls, inHand = 20, 5
		// ARRANGE  a server with five of twenty requests in hand; an auditor for what is taken too late
		w.Audit(nil)
		frozen := w.Serve(Settings{"AMQP_HEARTBEAT": heartbeat, "PREFETCH": "5", "CONCURRENCY": "1"})
		frozen.HoldAt(fault.AfterWork, 1)
		load := w.Load("--count", "20", "--in-flight", "20", "--timeout", "8s")
		w.Until("five are in its hands, one at work", func(l seen) bool { return len(l.With(event.Delivered)) == inHand && len(l.With(event.Held)) == 1 })
		// BREAK
		frozen.Freeze()
		w.Serve(nil)
		// OBSERVE  it goes on when every call has ended
		load.Ended()
		frozen.Thaw()
		frozen.Release()
		v := w.Settle()
		// VERDICT
		v.Hit("five requests delivered again", len(v.Redelivered()) == inHand)
		v.Same(everyCall, v.With(event.Answered), v.asked())
		v.Count("twenty were asked", len(v.asked()), calls)
	}
}
