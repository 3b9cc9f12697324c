package scenario

import (
	"time"

	"warren.example/lab/link"
	"warren.example/messaging/event"
)

// From a server to the broker bytes pass one by one, so that a reply takes ten
// seconds; the other way all is well. Nobody notices: for the broker every byte is a
// sign of life, the server hears whole heartbeats, and a confirm that has not come
// yet is no failure. Only what is in hand for half an hour would be missed, by the
// broker's consumer timeout.
//
// Promise: the broker gives such a server no more than its prefetch. So many calls
// end at their deadlines, their replies are on record when they come, and all others
// are answered by another server.
// Control: where the prefetch is large, half of all calls must end at their deadlines.
var dripReply = Scenario{
	Name:    "drip-reply",
	Topic:   "network",
	Broke:   "network: a server's bytes pass one by one",
	Promise: "unnoticed; no more than a prefetch is late",
	Run:     dripReplies("5"),
	Controls: []Control{{
		Name:   "prefetch 100",
		Shows:  "half of the calls end at their deadlines",
		Breaks: fiveInVain,
		Run:    dripReplies("100"),
	}},
}

const fiveInVain = "no more than five calls in vain"

func dripReplies(prefetch string) func(*World) {
	return func(w *World) {
		// ARRANGE  a server behind a link, and one beside it; an auditor for what is taken too late
		w.Audit(nil)
		way := w.Link()
		server := w.Serve(way.Settings().With(Settings{"AMQP_HEARTBEAT": "1s", "PREFETCH": prefetch}))
		w.Serve(nil)
		// BREAK
		way.Drip(link.Service, 50*time.Millisecond)
		load := w.Load("--count", "40", "--in-flight", "40", "--timeout", "5s")
		// OBSERVE  it heals when every call has ended, after more heartbeats than either end waits for
		load.Ended()
		ready, again := server.Serves(), w.ledger.Redelivered()
		way.Heal()
		v := w.Settle()
		// VERDICT
		inVain := v.With(event.TimedOut)
		v.Hit("replies under way at the deadlines", len(inVain.And(v.With(event.Replying))) > 0)
		v.That("nobody notices", ready && len(again) == 0, "the server is ready: %t; delivered again: %s", ready, again)
		v.That(fiveInVain, len(inVain) <= 5, "%s", inVain)
		v.Same("all others are answered", v.With(event.Answered), v.asked().Minus(inVain))
		v.Same("every late reply is on record", v.With(event.LateReply, event.Orphaned), inVain)
	}
}
