package scenario

import (
	"warren.example/lab/ledger"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// A client is killed while a server works on its requests. Its reply queue dies
// with its connection.
//
// Promise: the broker returns the replies, since they are mandatory, and the
// server has them on record before it acks. Control: a server that does not wait
// for what becomes of a reply must ack requests of whose fate nobody knows.
var clientKilled = Scenario{
	Name:    "client-killed",
	Topic:   "request and reply",
	Broke:   "client: SIGKILL while it waits for its replies",
	Promise: "the replies are returned, and on record",
	Run:     killClient(nil),
	Controls: []Control{{
		Name:   "no confirm",
		Shows:  "nobody knows what became of them",
		Breaks: string(ledger.NoLoss),
		Run:    killClient(Settings{"REPLY_CONFIRM": "false"}),
	}},
}

func killClient(settings Settings) func(*World) {
	return func(w *World) {
		const calls = 5
		// ARRANGE  a server with five requests of one client in hand, held
		server := w.Serve(settings.With(Settings{"CONCURRENCY": "1"}))
		server.HoldAt(fault.AfterWork, 1)
		client := w.Load("--count", "5", "--in-flight", "5", "--timeout", "30s")
		w.Until("five are confirmed and in its hands", func(l seen) bool { return len(l.With(event.Delivered).And(l.With(event.Confirmed))) == calls })
		// BREAK  replies that are confirmed before the broker has noticed would be in the queue of a dead client
		client.Kill()
		server.Release()
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.Hit("five calls without a caller", len(v.With(event.Computed).Minus(v.With(event.Answered))) == calls)
		v.Same("every reply is on record", v.With(event.Orphaned), v.With(event.Confirmed))
	}
}
