package scenario

import (
	"errors"

	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// A worker acks one delivery twice.
//
// Promise: our session refuses the second ack before it is written, and the
// worker goes on. Control: with the client library alone the broker must close the
// channel (406, unknown delivery tag), and everything else that the worker had in
// hand comes again, done or not; the ack itself reports nothing.
var doubleAck = Scenario{
	Name:    "double-ack",
	Topic:   "acknowledgements",
	Broke:   "a worker acks one delivery twice",
	Promise: "the second is refused, and nothing comes again",
	Run:     ackTwice(func(w *World) *Worker { return w.Broker.Take(workQueue, 5) }),
	Controls: []Control{{
		Name:   "the library alone",
		Shows:  "406: the channel ends, and what is done comes again",
		Breaks: nothingAgain,
		Run:    ackTwice(func(w *World) *Worker { return w.Broker.Connect().Take(workQueue, 5, false) }),
	}},
}

const nothingAgain = "nothing comes again"

func ackTwice(begin func(*World) *Worker) func(*World) {
	return func(w *World) {
		const sent = 5
		// ARRANGE  a worker with five messages in hand
		lab, worker, jobs := handOut(w, begin, sent, sent)
		// BREAK
		worker.Work(jobs[0])
		w.must(jobs[0].Ack(), "ack")
		again := jobs[0].Ack()
		// OBSERVE  it works on the others and leaves; another takes what comes back
		for _, j := range jobs[1:] {
			worker.Work(j)
			_ = j.Ack() // the control's channel may be closed by now
		}
		worker.Die()
		lab.Drain(workQueue)
		v := w.Settle()
		// VERDICT
		v.Hit("five messages in hand", len(v.With(event.Audited)) == sent)
		v.That("the second ack is refused", errors.Is(again, session.ErrSettled), "it was answered %v", again)
		v.None(nothingAgain, v.Redelivered())
	}
}
