package scenario

import (
	"warren.example/lab/ledger"
	"warren.example/lab/link"
	"warren.example/messaging/event"
)

// A server's connection is reset when the broker has half of a reply.
//
// Promise: the server knows that this reply has no confirm, publishes it again
// on a new connection and acks the request after that; every call is answered.
// Control: without waiting for the confirm the request is acked all the same, and
// nobody ever has its answer.
var tornFrame = Scenario{
	Name:    "torn-frame",
	Topic:   "publishing",
	Broke:   "network: reset in the middle of a reply",
	Promise: "the reply is sent again, every call is answered",
	Run:     tearReply(nil),
	Controls: []Control{{
		Name:   "no confirm",
		Shows:  "an acked request is never answered",
		Breaks: string(ledger.NoLoss),
		Run:    tearReply(Settings{"REPLY_CONFIRM": "false"}),
	}},
}

func tearReply(settings Settings) func(*World) {
	return func(w *World) {
		// ARRANGE  one server behind a link
		way := w.Link()
		w.Serve(way.Settings().With(settings))
		// BREAK  the tenth reply is torn in two
		way.BreakAt(link.Service, "basic.publish", 10, link.Tear)
		w.Load("--count", "40", "--in-flight", "1", "--timeout", "5s")
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.Hit("a reply torn", way.Broke(1))
		v.Same(everyCall, v.With(event.Answered), v.asked())
	}
}
