package scenario

import (
	"strconv"

	"warren.example/lab/ledger"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// A server dies after the work for a request, before its reply and its ack.
//
// Promise: every confirmed request is answered; some are delivered twice, and
// flagged. Control: with auto-ack the broker forgets a request as soon as it is
// delivered, so the same kill must lose what the server had in hand.
var killedBeforeAck = Scenario{
	Name:    "killed-before-ack",
	Topic:   "acknowledgements",
	Broke:   "server: SIGKILL after the work, before the ack",
	Promise: "every confirmed request is answered",
	Run:     killBeforeAck(nil, "15s"),
	Controls: []Control{{
		Name:   "auto-ack",
		Shows:  "the requests in the dead server's hands are lost",
		Breaks: string(ledger.NoLoss),
		Run:    killBeforeAck(Settings{"AUTO_ACK": "true"}, "5s"),
	}},
}

func killBeforeAck(settings Settings, patience string) func(*World) {
	return func(w *World) {
		const sent = 100
		// ARRANGE  one server
		server := w.Serve(settings)
		// BREAK  it dies when request 40 has been computed and not yet answered
		server.CrashAt(fault.AfterWork, 40)
		w.Load("--count", strconv.Itoa(sent), "--in-flight", "10", "--timeout", patience)
		// OBSERVE  until every caller has its answer or has given up
		v := w.Settle()
		// VERDICT
		v.Hit("a request delivered again", len(v.Redelivered()) > 0)
		v.Count("all are sent", len(v.With(event.Publishing)), sent)
		v.Same("every request is answered", v.With(event.Answered), v.With(event.Publishing))
	}
}
