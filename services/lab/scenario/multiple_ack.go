package scenario

import (
	"warren.example/lab/ledger"
	"warren.example/messaging/event"
)

// A worker finishes the last of five messages first, acks it, and dies.
//
// Promise: our session acks with multiple only what is done without a gap, so
// the other four come again. Control: an ack with multiple for the newest must
// stand for the four as well, and they are gone.
var multipleAck = Scenario{
	Name:    "multiple-ack",
	Topic:   "acknowledgements",
	Broke:   "a worker dies with four messages of five undone",
	Promise: "the four come again; an ack is for what is done",
	Run:     finishLastFirst(func(w *World) *Worker { return w.Broker.Take(workQueue, 5) }),
	Controls: []Control{{
		Name:   "multiple, out of order",
		Shows:  "the four are gone, undone",
		Breaks: string(ledger.NoLoss),
		Run:    finishLastFirst(func(w *World) *Worker { return w.Broker.Connect().Take(workQueue, 5, true) }),
	}},
}

func finishLastFirst(begin func(*World) *Worker) func(*World) {
	return func(w *World) {
		const sent = 5
		// ARRANGE  a worker with five messages in hand
		lab, worker, jobs := handOut(w, begin, sent, sent)
		// BREAK  it acks the fifth, and has not begun the others
		last := jobs[sent-1]
		worker.Work(last)
		w.must(last.Ack(), "ack")
		worker.Die()
		// OBSERVE  another takes what is left
		lab.Drain(workQueue)
		v := w.Settle()
		// VERDICT
		v.Hit("the fifth acked, and never again delivered", v.Times(last.ID, event.Delivered) == 1)
		v.Same("every message is worked on", v.With(event.Audited), v.With(event.Confirmed))
	}
}
