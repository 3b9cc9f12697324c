package scenario

import (
	"warren.example/lab/ledger"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// A server dies between its last two steps, whichever order they are in.
//
// Promise: with the reply first, dying in between costs a duplicate and no
// request. Control: with the ack first, dying in between must lose the request,
// because the broker has forgotten it and nobody has answered.
var ackBeforeReply = Scenario{
	Name:    "ack-before-reply",
	Topic:   "acknowledgements",
	Broke:   "server: SIGKILL between its reply and its ack",
	Promise: "reply first, ack last: nothing is lost",
	Run:     dieBetween(fault.AfterReply, nil, "15s"),
	Controls: []Control{{
		Name:   "ack first",
		Shows:  "the acked request is never answered",
		Breaks: string(ledger.NoLoss),
		Run:    dieBetween(fault.AfterAck, Settings{"ACK_BEFORE_REPLY": "true"}, "5s"),
	}},
}

func dieBetween(first fault.Point, settings Settings, patience string) func(*World) {
	return func(w *World) {
		// ARRANGE  one server
		server := w.Serve(settings)
		// BREAK  it dies after the first of the two steps for request 20
		server.CrashAt(first, 20)
		w.Load("--count", "50", "--in-flight", "5", "--timeout", patience)
		// OBSERVE  until every caller has its answer or has given up
		v := w.Settle()
		// VERDICT
		v.Hit("a request delivered again", len(v.Redelivered()) > 0)
		v.Same("every request is answered", v.With(event.Answered), v.With(event.Publishing))
	}
}
