package scenario

import (
	"time"

	"warren.example/messaging/event"
)

// Between a server and the broker bytes pass one by one, so that a delivery takes
// half a minute. No write times out, since the network takes all that it is
// given. The two ends count differently: for the broker every byte is a sign of
// life, for the client library only a whole frame, and a heartbeat is a small one.
//
// Promise: the server notices when one and a half heartbeats have brought no whole
// frame, and leaves; another answers what was on its way, and every call is answered.
// Control: where that is longer than the callers' patience, the calls must end at
// their deadlines.
var slowDrip = Scenario{
	Name:    "slow-drip",
	Topic:   "network",
	Broke:   "network: bytes pass one by one",
	Promise: "the server leaves, every call is answered",
	Run:     dripRequests("1s"),
	Controls: []Control{{
		Name:   "heartbeat 60 s",
		Shows:  "calls end at their deadlines",
		Breaks: everyCall,
		Run:    dripRequests("60s"),
	}},
}

func dripRequests(heartbeat string) func(*World) {
	return func(w *World) {
		// ARRANGE  a server behind a link, and one beside it; an auditor for what is taken too late
		w.Audit(nil)
		way := w.Link()
		w.Serve(way.Settings().With(Settings{"AMQP_HEARTBEAT": heartbeat, "PREFETCH": "5"}))
		w.Serve(nil)
		// BREAK
		way.Drip("", 50*time.Millisecond)
		load := w.Load("--count", "20", "--in-flight", "20", "--timeout", "8s")
		// OBSERVE  it heals when every call has ended
		load.Ended()
		way.Heal()
		v := w.Settle()
		// VERDICT
		v.Hit("a request delivered again", len(v.Redelivered()) > 0)
		v.Same(everyCall, v.With(event.Answered), v.asked())
	}
}
