package scenario

import (
	"time"

	"warren.example/lab/ledger"
	"warren.example/lab/link"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// From the broker to a caller bytes pass one by one. To the broker its replies are
// delivered, their confirms have been sent, and the servers have acked the requests:
// nobody but the caller can do anything more.
//
// Promise: the caller notices when one and a half heartbeats have brought no whole
// frame, and leaves. Its reply queue goes, with the replies; it asks again under the
// same ids, and every call is answered. They are executed twice.
// Controls: where a heartbeat is longer than its patience, the calls must end at
// their deadlines; a caller that does not ask again must lose its requests, though
// all were confirmed, executed, replied to and acked.
var dripToCaller = Scenario{
	Name:    "drip-to-caller",
	Topic:   "network",
	Broke:   "network: a caller gets bytes one by one",
	Promise: "it leaves, asks again, every call is answered",
	Run:     dripAnswers("1s"),
	Controls: []Control{{
		Name:   "heartbeat 60 s",
		Shows:  "calls end at their deadlines",
		Breaks: everyCall,
		Run:    dripAnswers("60s"),
	}, {
		Name:   "no retry",
		Shows:  "acked, and nobody has the answer",
		Breaks: string(ledger.NoLoss),
		Run:    dripAnswers("1s", "--no-retry"),
	}},
}

func dripAnswers(heartbeat string, flags ...string) func(*World) {
	return func(w *World) {
		const calls = 10
		// ARRANGE  a server with ten requests of one caller in hand, held; the caller is behind a link
		server := w.Serve(Settings{"CONCURRENCY": "1"})
		server.HoldAt(fault.AfterWork, 1)
		way := w.Broker.LinkToClients()
		load := way.Load(Settings{"AMQP_HEARTBEAT": heartbeat}, append(flags, "--count", "10", "--in-flight", "10", "--timeout", "8s")...)
		w.Until("ten are confirmed and in its hands", func(l seen) bool { return len(l.With(event.Delivered).And(l.With(event.Confirmed))) == calls })
		// BREAK
		way.Drip(link.Broker, 50*time.Millisecond)
		server.Release()
		// OBSERVE  it heals when the caller has left its connection, or has given up
		load.HangsUp(passed(event.TimedOut, calls))
		way.Heal()
		v := w.Settle()
		// VERDICT
		v.Hit("all replied to, and asked again", len(v.AtLeast(2, event.Publishing).And(v.AtLeast(2, event.ReplyConfirmed))) == calls)
		v.Same(everyCall, v.With(event.Answered), v.asked())
	}
}
