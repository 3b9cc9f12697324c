package scenario

import (
	"time"

	"warren.example/messaging/event"
)

// Every frame between a server and the broker takes 100 ms longer, in either
// direction. A request takes four: its delivery, the reply, the reply's confirm
// and the ack.
//
// Promise: with many requests in hand they all take that time at once, and every
// call is answered before its deadline.
// Control: with one in hand, forty take forty times as long, 16 s: calls must end at
// their deadlines.
var slowLink = Scenario{
	Name:    "slow-link",
	Topic:   "network",
	Broke:   "network: every frame takes 100 ms longer",
	Promise: "with many in hand every deadline is met",
	Run:     slowDown("100"),
	Controls: []Control{{
		Name:   "prefetch 1",
		Shows:  "calls end at their deadlines",
		Breaks: everyCall,
		Run:    slowDown("1"),
	}},
}

func slowDown(prefetch string) func(*World) {
	return func(w *World) {
		const delay = 100 * time.Millisecond
		// ARRANGE  one server, behind a link; what expires in the queue is audited
		w.Audit(nil)
		way := w.Link()
		w.Serve(way.Settings().With(Settings{"PREFETCH": prefetch, "CONCURRENCY": "40"}))
		// BREAK
		way.Slow(delay)
		load := w.Load("--count", "40", "--in-flight", "40", "--timeout", "5s")
		// OBSERVE  it heals when every call has ended
		load.Ended()
		way.Heal()
		v := w.Settle()
		// VERDICT
		quick := v.Where(func(l event.Line) bool {
			return l.Event == event.ReplyConfirmed && v.Took(l.Request, event.Replying, event.ReplyConfirmed) < 2*delay
		})
		v.Hit("every reply and its confirm slow", len(quick) == 0)
		v.Same(everyCall, v.With(event.Answered), v.asked())
	}
}
